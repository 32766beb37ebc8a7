"""How a host is reached: `Connection`, filled from its variables. Opens nothing."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmreconcile.model.secret import Secret


class ConnectionKind(enum.StrEnum):
    """`ansible_connection`: over SSH, or on the controller itself."""

    SSH = "ssh"
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One host's way in.

    `host` is the name in the inventory; `address` the name or address to connect to, to which `~/.ssh/config` applies
    ("" means `host`). `port` None and `user` "" leave the choice to `~/.ssh/config`, then to 22 and the login name.
    `private_key_file`, `proxy_jump` and `proxy_command` "" likewise. With `become`, the agent runs as `become_user`
    through sudo. `python_interpreter` "" means found on the host; `vllm_executable` "" means found on its PATH (the
    Python beside it is a candidate for the agent); `vllm_state_dir` "" means the user's default folders.
    """

    host: str
    address: str = ""
    port: int | None = None
    user: str = ""
    kind: ConnectionKind = ConnectionKind.SSH
    private_key_file: str = ""
    proxy_jump: str = ""
    proxy_command: str = ""
    become: bool = False
    become_user: str = "root"
    become_password: Secret | None = None
    password: Secret | None = None
    python_interpreter: str = ""
    vllm_executable: str = ""
    vllm_state_dir: str = ""

    @property
    def target(self) -> str:
        """The name or address to connect to."""
        return self.address or self.host
