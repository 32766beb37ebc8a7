"""Sources that are run: executable inventories, and `ansible-inventory` for those that need an Ansible plugin.

Owns the processes: their arguments, their environment, their timeout. What they print goes to `listing`.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vmreconcile.effects.inventory.adding import Adding
from vmreconcile.effects.inventory.listing import add_listing, decode_variables
from vmreconcile.errors import Place
from vmreconcile.model.values import JsonValue

TIMEOUT = 60.0
"""Seconds that one call of a program may take."""

_STDERR_LINES = 12
_NOT_A_PROGRAM = {errno.ENOEXEC, errno.EACCES, errno.EPERM}


class _FailedError(Exception):
    """A program that gave no answer; `str()` says why, `stderr` what it said."""

    def __init__(self, message: str, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


def add_program(path: Path, adding: Adding, *, environ: Mapping[str, str], timeout: float = TIMEOUT) -> bool:
    """Run an executable source and add what it lists; False where the system cannot run it, so it is a plain file."""
    place = Place(file=str(path))
    program = str(path.absolute())

    def host_variables(host: str) -> Mapping[str, JsonValue]:
        try:
            return decode_variables(_run((program, "--host", host), environ, timeout))
        except _FailedError as error:
            _report(error, place, f"--host {host}", adding)
        except ValueError as error:
            _report(_FailedError(f"its output is not JSON: {error}"), place, f"--host {host}", adding)
        return {}

    try:
        text = _run((program, "--list"), environ, timeout)
    except _FailedError as error:
        _report(error, place, "--list", adding)
    except OSError as error:
        if error.errno in _NOT_A_PROGRAM:
            return False
        _report(_FailedError(f"cannot be run: {error.strerror}"), place, "--list", adding)
    else:
        add_listing(text, place, adding, host_variables=host_variables)
    return True


def add_through_ansible(
    sources: Sequence[Path], adding: Adding, *, environ: Mapping[str, str], timeout: float = TIMEOUT
) -> None:
    """Let an installed `ansible-inventory` read the last of the sources (the others are those it builds on)."""
    place = Place(file=str(sources[-1]))
    program = shutil.which("ansible-inventory", path=environ.get("PATH", os.defpath))
    if program is None:
        adding.problems.error(
            place,
            "plugin-source",
            "only an Ansible plugin can read this source, and ansible-inventory is not on PATH",
            why="It has a 'plugin:' key: its hosts come from elsewhere.",
            remedy="Install ansible-core with that plugin, or save the output of ansible-inventory --list in a file.",
        )
        return
    arguments = [program, *(argument for source in sources for argument in ("-i", str(source.absolute())))]
    strict = {**environ, "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true", "ANSIBLE_NOCOLOR": "1"}
    try:
        text = _run((*arguments, "--list", "--export"), strict, timeout)
    except (_FailedError, OSError) as error:
        failed = error if isinstance(error, _FailedError) else _FailedError(f"cannot be run: {error}")
        _report(failed, place, "ansible-inventory --list", adding)
    else:
        add_listing(text, place, adding, host_variables=lambda _: {})


def _run(argv: Sequence[str], environ: Mapping[str, str], timeout: float) -> str:
    """Run a program in a process group of its own, so that a timeout ends its children too."""
    with subprocess.Popen(  # noqa: S603 - the user's own program, named on the command line; no shell
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            said = (late.stderr or b"").decode(errors="replace")
            _end_group(process.pid)
            raise _FailedError(f"did not answer within {timeout:g} s", said) from None
        except BaseException:
            _end_group(process.pid)
            raise
    if process.returncode:
        raise _FailedError(f"ended with status {process.returncode}", errors.decode(errors="replace"))
    try:
        return output.decode()
    except UnicodeDecodeError:
        raise _FailedError("printed something that is not UTF-8", errors.decode(errors="replace")) from None


def _end_group(leader: int) -> None:
    """Kill a program and what it has started; the leader may have ended before the others."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _report(error: _FailedError, place: Place, call: str, adding: Adding) -> None:
    said = "\n".join(error.stderr.strip().splitlines()[-_STDERR_LINES:])
    adding.problems.error(
        place,
        "program-failed",
        f"{call}: {error}",
        why=f"It said:\n{said}" if said else "It said nothing.",
        remedy=f"Run it by hand: {place.file} {call}" if call.startswith("--") else f"Run it by hand: {call}",
    )
