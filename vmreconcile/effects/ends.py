"""Why a command on a host ended before the agent could answer, in one line for the user. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmreconcile.effects.ship import NO_PYTHON
from vmreconcile.errors import UnreachableError
from vmreconcile.model.observed import NO_PYTHON as HAS_NO_PYTHON

if TYPE_CHECKING:
    from vmreconcile.model.connection import Connection

NOT_FOUND = 127
_LONGEST = 200

_TOO_OLD = re.compile(r"vmreconcile: Python (\S+) is too old: (\S+)")

_SUDO = (
    # What sudo says in English (LC_ALL=C), as a pattern; what we say; what to do.
    (
        r"a password is required|a terminal is required to read the password|no password was provided",
        "sudo needs a password",
        "set ansible_become_password, or allow {login} to use sudo without one (NOPASSWD)",
    ),
    (r"try again|incorrect password", "sudo refused the password", "check ansible_become_password"),
    (
        r"is not in the sudoers file|is not allowed to (?:execute|run)|may not run sudo",
        "sudo does not allow {login} to become {user}",
        "add a rule for {login} to the host's sudoers",
    ),
    (
        r"must have a tty|no tty present",
        "sudo insists on a terminal",
        "take 'requiretty' for {login} out of the host's sudoers",
    ),
    (r"unknown user:? ", "there is no user {user} to become", "check ansible_become_user"),
)


def explain(connection: Connection, status: int | None, said: str) -> UnreachableError:
    """The error for a command that ended with `status` (None: not known) after it `said` this on standard error."""
    if connection.become:
        words = {"login": connection.user or "the login user", "user": connection.become_user}
        for pattern, reason, remedy in _SUDO:
            if re.search(pattern, said, re.IGNORECASE):
                return UnreachableError(reason.format(**words), remedy=remedy.format(**words))
        if status == NOT_FOUND:  # the shell line that follows sudo never ends so
            return UnreachableError(
                "sudo is not installed", remedy="install sudo there, or set ansible_become to false"
            )
    if status == NO_PYTHON:
        return _no_python(said)
    last = last_line(said)
    told = f": {last}" if last else ""
    if status is None:
        return UnreachableError(f"the connection was lost{told}")
    return UnreachableError(f"the command on the host ended with status {status} before it answered{told}")


def last_line(text: str) -> str:
    """The last line that is not blank, cut to a readable length, control characters taken out."""
    lines = (re.sub(r"[^\x20-\x7e\u00a0-\ufffc]+", " ", line).strip() for line in reversed(text.splitlines()))
    return next((line[:_LONGEST] for line in lines if line), "")


def _no_python(said: str) -> UnreachableError:
    found = ", ".join(f"{version} at {path}" for version, path in dict.fromkeys(_TOO_OLD.findall(said)))
    return UnreachableError(
        f"no Python 3.8 or newer there (found: {found})" if found else "no Python there",
        remedy="install python3 (3.8 or newer) on the host, or name one in ansible_python_interpreter; "
        "the one beside vllm_executable serves as well",
        cause=HAS_NO_PYTHON,
    )
