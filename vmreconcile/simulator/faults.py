"""What is to go wrong, and how long things take: read from the environment and from files.

Owns the names of the switches. Must not act on them. A switch NAME is the variable `VLLM_SIMULATOR_NAME`, or a line
`NAME=value` in a file. The files are read again whenever a switch matters, so that a server that runs under systemd can
be made to fail without being restarted. Later ones win: the environment, `<installed>/faults`,
`<installed>/faults.<port>`, then the file that `VLLM_SIMULATOR_FAULTS` names. A file's lines hold for every server it
reaches; a value of nothing takes the default back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PREFIX = "VLLM_SIMULATOR_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The switches; times are in seconds. docs/simulator.md says what each does.

    A negative `crash_after` never crashes, a negative `die_code` is the failure's own.
    """

    early_seconds: float = 0.05
    start_seconds: float = 0.15
    die: str = ""
    die_code: int = -1
    die_text: str = ""
    hang_on_term: bool = False
    wedged: bool = False
    request_seconds: float = 0.0
    stop_seconds: float = 0.05
    term_seconds: float = 2.0
    orphan_seconds: float = 6.0
    watchdog_seconds: float = 5.0
    crash_after: float = -1.0
    crash_on_request: bool = False
    gpu_gib: float = 79.65
    weights_gib: float = 0.9
    gpus: str = ""


def read_faults(environ: Mapping[str, str], *, folder: str = "", port: int = 0) -> Faults:
    """Read the switches as they stand now; `folder` is where the simulator was installed, "" for nowhere.

    Raises:
        ValueError: a switch has an unknown name or an unusable value; the text says where.
    """
    given: dict[str, tuple[str, str]] = {
        name.removeprefix(PREFIX).lower(): (value, f"environment variable {name}")
        for name, value in environ.items()
        if name.startswith(PREFIX) and name != f"{PREFIX}FAULTS"
    }
    paths = [f"{folder}/faults", f"{folder}/faults.{port}"] if folder else []
    for path in [*paths, environ.get(f"{PREFIX}FAULTS", "")]:
        given.update(_read_file(path) if path else {})
    return replace(Faults(), **{name: _value(name, text, where) for name, (text, where) in given.items() if text})


def _read_file(path: str) -> dict[str, tuple[str, str]]:
    """Read `NAME=value` lines; `#` starts a comment, a missing file holds nothing."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for number, line in enumerate(lines, 1):
        name, _, value = line.partition("=")
        if name.strip() and not name.lstrip().startswith("#"):
            found[name.strip().removeprefix(PREFIX).lower()] = (value.strip(), f"{path}:{number}")
    return found


def _value(name: str, text: str, where: str) -> Any:  # noqa: ANN401 - as many types as switches have
    """Turn a switch's text into its type, which is that of its default."""
    if name not in Faults.__slots__:
        raise ValueError(f"{where}: the simulator of vLLM has no switch {name!r}; known: {', '.join(Faults.__slots__)}")
    default = getattr(_DEFAULTS, name)
    if isinstance(default, bool):
        return text.lower() not in {"0", "false", "no", "off"}
    try:
        return type(default)(text)
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a number, which the switch {name!r} wants") from None


_DEFAULTS = Faults()
