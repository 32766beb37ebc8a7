"""The hosts that are measured on: one real sshd in a private corner of this machine, under as many addresses as wanted.

Owns the corner (network, processes and mounts of its own, gone with it), the sshd, the files of the fleets and of the
peers, and the servers that run in it: four simulators of vLLM. Every address leads to the same system, so every host
of the fleet RUNNING sees the same four servers as its own; of the fleet STOPPED there are records and env files only.
Measures nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vmreconcile.simulator.install import install  # noqa: E402 - the path comes first

PEERS = Path(__file__).resolve().parent / "peers"
NAMES = ("alpha", "beta", "gamma", "delta")
"""The four servers of each host."""

RUNNING, STOPPED = "running", "stopped"
"""Two fleets over the same hosts: what is wanted of the servers, and what they are."""

FIRST_PORT = 8001
MODEL = "example/tiny"


def outside() -> str:
    """Say why no corner can be made here; an empty text where it can."""
    if os.geteuid() != 0:
        return "root is needed, for a network of its own"
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [
        tool for tool in ("unshare", "ip", "sshd", "ssh", "ssh-keygen", "curl") if not shutil.which(tool, path=search)
    ]
    return f"not installed: {', '.join(absent)}" if absent else ""


def enter(argv: list[str]) -> int:
    """Run `argv` in a new corner; when it ends, so does everything in it."""
    corner = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]
    return subprocess.run([*corner, *argv], check=False).returncode


@dataclass(slots=True)
class World:
    """The corner from inside. `hosts` are addresses; `home` is the home of the person at the controller."""

    folder: Path
    hosts: tuple[str, ...]

    @property
    def home(self) -> Path:
        """Holds `.ssh/config` and `.ssh/known_hosts`, which ours and the peers read."""
        return self.folder / "home"

    @property
    def key(self) -> Path:
        """The private key that is let in."""
        return self.folder / "login"

    def state(self, fleet: str) -> Path:
        """`vllm_state_dir` of every host of a fleet."""
        return self.folder / fleet / "hosts"

    @property
    def vllm(self) -> Path:
        """The simulated `vllm`."""
        return self.folder / "vllm/bin/vllm"

    def environment(self) -> dict[str, str]:
        """The environment of whatever is measured: nothing of this machine's owner."""
        search = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": str(self.home), "PATH": search, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}

    def list_of(self, count: int) -> Path:
        """A file with the first `count` hosts, one a line."""
        path = self.folder / f"hosts-{count}"
        path.write_text("".join(f"{host}\n" for host in self.hosts[:count]))
        return path

    def start(self, peer_hosts: int) -> None:
        """Bring up the network, the sshd, all files, then the servers through our own `apply`.

        Ansible and pyinfra get the first `peer_hosts` hosts.
        """
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self._start_sshd()
        install(self.folder / "vllm")
        self._write_fleet(RUNNING)
        self._write_fleet(STOPPED)
        self._write_peers(peer_hosts)
        self._start_servers()
        self._note_stopped()

    def _start_sshd(self) -> None:
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        (self.folder / "login-home").mkdir()
        for key in (self.key, self.folder / "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text(SSHD_CONFIG.format(folder=self.folder))
        with (self.folder / "sshd.log").open("wb") as log:
            sshd = shutil.which("sshd") or "/usr/sbin/sshd"
            subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        public = " ".join((self.folder / "host.pub").read_text().split()[:2])
        known = "".join(f"{host} {public}\n" for host in self.hosts)
        (self.home / ".ssh/known_hosts").write_text(known)
        (self.home / ".ssh/config").write_text(SSH_CONFIG.format(key=self.key, home=self.home))

    def _write_fleet(self, fleet: str) -> None:
        inventory, models = self.folder / fleet / "inventory", self.folder / fleet / "models.d"
        inventory.mkdir(parents=True)
        models.mkdir()
        hosts = "".join(f"    {host}:\n" for host in self.hosts)
        (inventory / "hosts.yml").write_text(INVENTORY.format(hosts=hosts, world=self, state=self.state(fleet)))
        for number, name in enumerate(NAMES):
            text = MODEL_FILE.format(name=name, model=MODEL, port=FIRST_PORT + number, state=fleet)
            (models / f"{name}.yaml").write_text(text)

    def _write_peers(self, count: int) -> None:
        """The peers' own files, and their inventories, of the hosts that they get."""
        target = self.folder / "peers"
        shutil.copytree(PEERS, target)
        (target / "target").mkdir()
        for name in NAMES:  # what the peers write is there already: they too find nothing to do
            content = (target / "server.env.j2").read_text().replace("{{ server }}", name)
            (target / f"target/{name}.env").write_text(content)
            (target / f"target/{name}.env").chmod(0o600)
        hosts = "\n".join(self.hosts[:count])
        (target / "hosts.ini").write_text(ANSIBLE_INVENTORY.format(hosts=hosts, world=self, target=target / "target"))
        pyinfra = {
            "ssh_user": "root",
            "ssh_key": str(self.key),
            "ssh_config_file": f"{self.home}/.ssh/config",
            "ssh_known_hosts_file": f"{self.home}/.ssh/known_hosts",
            "vllm": str(self.vllm),
            "target": str(target / "target"),
        }
        for size in {count, len(self.hosts)}:
            (target / f"inventory_{size}.py").write_text(f"gpu = ({list(self.hosts[:size])!r}, {pyinfra!r})\n")

    def _start_servers(self) -> None:
        """Start the four servers with our own `apply` over SSH, and wait until a plan finds nothing to do."""
        done = subprocess.run(
            ours(self, RUNNING, "apply", "-y", "--limit", self.hosts[0]),
            env=self.environment(),
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise SystemExit(f"the servers cannot be started:\n{done.stdout}{done.stderr}")

    def _note_stopped(self) -> None:
        """Write for the fleet STOPPED what a stop leaves: the env files as they are, and records that say so."""
        shutil.copytree(self.state(RUNNING), self.state(STOPPED), ignore=shutil.ignore_patterns("log", "lock"))
        for path in self.state(STOPPED).glob("state/servers/*.json"):
            record = json.loads(path.read_text())
            kept = {name: record[name] for name in ("server", "runtime", "env_names")}
            path.write_text(json.dumps({**kept, "state": STOPPED}))


def ours(world: World, fleet: str, command: str, *further: str) -> list[str]:
    """The argv of one of our commands over one of the world's fleets."""
    files = ["-i", str(world.folder / fleet / "inventory"), "-m", str(world.folder / fleet / "models.d")]
    return [sys.executable, "-m", "vmreconcile", command, *files, *further]


SSHD_CONFIG = """\
Port 22
ListenAddress 0.0.0.0
PidFile none
HostKey {folder}/host
AuthorizedKeysFile {folder}/login.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 1000
SetEnv HOME={folder}/login-home PATH=/usr/sbin:/usr/bin:/sbin:/bin
Subsystem sftp internal-sftp
"""

SSH_CONFIG = """\
Host *
  User root
  IdentityFile {key}
  IdentitiesOnly yes
  UserKnownHostsFile {home}/.ssh/known_hosts
  BatchMode yes
"""

ANSIBLE_INVENTORY = """\
[gpu]
{hosts}

[gpu:vars]
ansible_user=root
ansible_ssh_private_key_file={world.key}
ansible_ssh_common_args=-F {world.home}/.ssh/config
vllm={world.vllm}
target={target}
"""

INVENTORY = """\
gpu:
  hosts:
{hosts}
  vars:
    ansible_user: root
    ansible_ssh_private_key_file: {world.key}
    ansible_python_interpreter: /usr/bin/python3
    vllm_executable: {world.vllm}
    vllm_runtime: process
    vllm_state_dir: {state}
"""

MODEL_FILE = """\
name: {name}
model: {model}
hosts: gpu
port: {port}
state: {state}
hf_token: null
health: {{soak: 0}}
args:
  max_model_len: 4096
  max_num_seqs: 64
  gpu_memory_utilization: 0.2
  enable_prefix_caching: true
env:
  VLLM_LOGGING_LEVEL: INFO
  HF_HUB_OFFLINE: "1"
"""
