"""The same ten tasks as in playbook.yml, as a pyinfra deploy.

Health is asked with curl, since pyinfra has no operation for it; it raises where a server does not answer.
"""

from pyinfra import host
from pyinfra.facts.server import Command
from pyinfra.operations import files

files.file(name="The executable is there", path=host.data.vllm)
host.get_fact(Command, "pgrep -fc 'vllm serve'")
for server in ("alpha", "beta", "gamma", "delta"):
    files.template(
        name=f"Env file of {server}",
        src="server.env.j2",
        dest=f"{host.data.target}/{server}.env",
        mode="600",
        server=server,
    )
for port in (8001, 8002, 8003, 8004):
    host.get_fact(Command, f"curl -sf http://127.0.0.1:{port}/health")
