"""systemd in memory: units on disk and as loaded, what enables, starts, restarts and stops them; and its quoting.

The reader of unit files is written after systemd.syntax(7), systemd.service(5) and systemd.unit(5), not after our
writer, so that each checks the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.lab.fake_kernel import FakeProcess, Kernel, Refusal
from vmreconcile.agent import envfile

SPECIFIERS = {"%": "%", "H": "fakehost", "u": "root"}
ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " ", "\\": "\\", '"': '"',
    "'": "'",
}  # fmt: skip
NUMERIC = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\([0-7]{3})")


@dataclass(slots=True, kw_only=True)
class FakeUnit:
    """A unit as systemd has it in memory. `loaded` is the text it has read, None before it read any."""

    name: str
    loaded: str | None = None
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    enabled: bool = False
    restarts: int = 0
    exit_code: int | None = None
    main_pid: int | None = None


class FakeSystemd:
    """The manager of one scope; `folder` is where its units are."""

    def __init__(self, kernel: Kernel, *, version: int | None = 252, folder: str = "/etc/systemd/system") -> None:
        """`version` None: the machine runs without systemd."""
        self.kernel = kernel
        self.version = version
        self.folder = folder
        self.units: dict[str, FakeUnit] = {}
        self.drop_ins: dict[str, list[str]] = {}
        """Paths of drop-ins by slug; what they say is told by hand."""
        self.token_places: dict[str, list[dict[str, Any]]] = {}
        """Where drop-ins name tokens, by slug, in the wire's form with `value` for the fingerprint."""

    def text(self, name: str) -> str | None:
        """What stands on disk."""
        file = self.kernel.files.get(f"{self.folder}/{name}")
        return file.content if file else None

    def names(self) -> list[str]:
        """Every unit of ours that has a file or runs."""
        on_disk = {path.rpartition("/")[2] for path in self.kernel.files if path.startswith(self.folder + "/")}
        running = {process.unit for process in list(self.kernel.processes.values()) if process.unit}
        loaded = {unit.name for unit in self.units.values() if unit.active != "inactive"}
        return sorted(on_disk | running | loaded)

    def unit(self, name: str) -> FakeUnit:
        """A unit; what is on disk is read where nothing was read before."""
        unit = self.units.setdefault(name, FakeUnit(name=name))
        if unit.loaded is None:
            unit.loaded = self.text(name)
        return unit

    def call(self, verb: str, name: str) -> bool:
        """One verb of systemctl; whether it changed something.

        Raises:
            Refusal: with systemctl's words.
        """
        if verb == "daemon-reload":
            self.reload()
            return True
        unit = self.unit(name)
        if unit.loaded is None and verb in {"enable", "start", "restart"}:
            raise Refusal("systemctl-failed", f"systemctl {verb} -- {name}: Unit {name} could not be found.")
        match verb:
            case "enable" | "disable":
                changed, unit.enabled = unit.enabled != (verb == "enable"), verb == "enable"
                return changed
            case "reset-failed":
                changed = unit.active == "failed"
                if changed:
                    unit.active, unit.sub, unit.result = "inactive", "dead", "success"
                return changed
            case "start":
                return unit.active != "active" and self.start(unit)
            case "stop":
                return self.stop(unit)
            case "restart":
                self.stop(unit)
                return self.start(unit)
        raise Refusal("bad-request", f"systemctl {verb!r} is not among our verbs")

    def reload(self) -> None:
        """Read every unit file again."""
        for unit in self.units.values():
            unit.loaded = self.text(unit.name)
            if unit.loaded is None:
                unit.enabled = False

    def start(self, unit: FakeUnit) -> bool:
        """Start the unit's program with its environment."""
        service = directives(unit.loaded or "")
        try:
            environment = self._environment(service)
            argv = command(service["ExecStart"][-1], environment)
            slug = unit.name.removeprefix("vmreconcile-").removesuffix(".service")
            root = self.kernel.start(slug, argv, environment, unit=unit.name)
        except (Refusal, ValueError, KeyError) as error:
            unit.active, unit.sub, unit.result = "failed", "failed", "resources"
            raise Refusal("systemctl-failed", f"systemctl start -- {unit.name}: {error}") from error
        unit.active, unit.sub, unit.result, unit.main_pid = "active", "running", "success", root.pid
        unit.exit_code, unit.restarts = None, 0
        if root.behaviour.exit_code is not None:
            self.ended(unit, root, root.behaviour.exit_code)
        return True

    def _environment(self, service: dict[str, list[str]]) -> dict[str, str]:
        environment: dict[str, str] = {}
        for line in service.get("Environment", []):
            environment |= dict(word.split("=", 1) for word in words(line))
        for line in service.get("EnvironmentFile", []):
            path = specified(line)
            if path not in self.kernel.files:
                raise Refusal("not-found", f"Failed to load environment files: {path}: No such file or directory")
            environment |= envfile.parse(self.kernel.files[path].content)
        for line in service.get("LoadCredential", []):
            token = self.kernel.files[specified(line.partition(":")[2])].content
            environment |= {"HF_TOKEN": token} if token else {}  # as it is reported; a process has it in a file
        return environment

    def ended(self, unit: FakeUnit, root: FakeProcess, code: int) -> None:
        """The root ended by itself: what is left of the group goes too, then Restart= decides."""
        self.kernel.end(root, family=True)
        service = directives(unit.loaded or "")
        prevented = {int(word) for word in " ".join(service.get("RestartPreventExitStatus", [])).split()}
        unit.exit_code, unit.main_pid, unit.result = code, None, "success" if code == 0 else "exit-code"
        if "always" in service.get("Restart", []) and code not in prevented:
            unit.active, unit.sub, unit.restarts = "activating", "auto-restart", unit.restarts + 1
        else:
            unit.active, unit.sub = ("inactive", "dead") if code == 0 else ("failed", "failed")

    def stop(self, unit: FakeUnit) -> bool:
        """End everything in the unit's group."""
        changed = unit.active not in {"inactive", "failed"}
        for process in [each for each in list(self.kernel.processes.values()) if each.unit == unit.name]:
            self.kernel.processes.pop(process.pid, None)
        if changed:
            unit.active, unit.sub, unit.result, unit.main_pid, unit.exit_code = "inactive", "dead", "success", None, 0
        return changed

    def boot(self) -> None:
        """What a reboot does: everything is read anew, and what is enabled is started."""
        enabled = [name for name, unit in self.units.items() if unit.enabled]
        self.units = {}
        for name in enabled:
            unit = self.unit(name)
            unit.enabled = True
            try:
                self.start(unit)
            except Refusal:
                continue


def directives(text: str) -> dict[str, list[str]]:
    """Every directive of a unit file with all its values, lines joined as systemd joins them."""
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").split("\n"):
        name, equals, value = line.strip().partition("=")
        if equals and not line.startswith(("#", ";", "[")):
            found.setdefault(name, []).append(value.strip())
    return found


def command(line: str, environment: dict[str, str]) -> tuple[str, ...]:
    """The argv that ExecStart= makes of a line: words, then specifiers, then variables."""
    found = [specified(word) for word in words(line)]
    head = found[0].lstrip("-@:+!")
    expanded: list[str] = []
    for word in found[1:]:
        if re.fullmatch(r"\$[A-Za-z_][A-Za-z0-9_]*", word):
            expanded += environment.get(word[1:], "").split()
        else:
            expanded.append(_variables(word, environment))
    return (head, *expanded)


def _variables(word: str, environment: dict[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else environment.get(found[1], "")

    return re.sub(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value, word)


def specified(text: str) -> str:
    """Specifiers resolved.

    Raises:
        ValueError: one that there is not.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in SPECIFIERS:
            raise ValueError(f"Failed to resolve unit specifiers in {text}")
        return SPECIFIERS[found[1]]

    return re.sub("%(.?)", value, text, flags=re.DOTALL)


def words(line: str) -> list[str]:
    """Split a line into words; quotes group, a backslash escapes as in C.

    Raises:
        ValueError: an unknown escape, or quotes that do not end.
    """
    found: list[str] = []
    at = 0
    while at < len(line):
        if line[at] in " \t":
            at += 1
            continue
        word, at = _word(line, at)
        found.append(word)
    return found


def _word(line: str, at: int) -> tuple[str, int]:
    quote, out = "", ""
    while at < len(line):
        letter = line[at]
        if letter == "\\":
            text, at = _escape(line, at)
            out += text
            continue
        if quote:
            quote, out = ("", out) if letter == quote else (quote, out + letter)
        elif letter in "\"'":
            quote = letter
        elif letter in " \t":
            break
        else:
            out += letter
        at += 1
    if quote:
        raise ValueError("Unbalanced quoting")
    return out, at


def _escape(line: str, at: int) -> tuple[str, int]:
    if numeric := NUMERIC.match(line, at):
        digits = numeric[1] or numeric[2] or numeric[3]
        return chr(int(digits, 16) if digits else int(numeric[4], 8)), numeric.end()
    letter = line[at + 1 : at + 2]
    if letter not in ESCAPES or not letter:
        raise ValueError(f"Invalid escape sequence \\{letter}")
    return ESCAPES[letter], at + 2
