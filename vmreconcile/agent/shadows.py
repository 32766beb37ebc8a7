"""Where a unit and its drop-ins name a Hub token beside our env file, and whether that is what the server gets.

systemd's order (man 5 systemd.exec): PassEnvironment=, Environment=, then each EnvironmentFile= over what came before;
UnsetEnvironment= takes names away at the end; an empty value of a directive forgets what was said so far.
"""

from __future__ import annotations

import glob
import shlex

from . import envfile, masks, proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Iterator

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
DIRECTIVES = ("PassEnvironment", "Environment", "EnvironmentFile", "UnsetEnvironment")
OURS = "ours"


def places(texts: Iterable[tuple[str, str]], env_path: str, salt: bytes) -> list[dict[str, Any]]:
    """Every place but our env file, in systemd's order; `texts` are (path, text) of the unit and its drop-ins."""
    passed: list[tuple[str, str, int]] = []
    said: list[tuple[str, str, int, str]] = []
    files: list[tuple[str, str, int]] = []
    unset: set[str] = set()
    for path, text in texts:
        for line, name, value in directives(text):
            if not value:
                lists: dict[str, Any] = {"PassEnvironment": passed, "Environment": said, "EnvironmentFile": files}
                lists.get(name, unset).clear()
            elif name == "EnvironmentFile":
                files.append((value, path, line))
            elif name == "Environment":
                pairs = (word.partition("=") for word in words(value))
                said.extend((left, path, line, right) for left, equals, right in pairs if equals)
            elif name == "PassEnvironment":
                passed.extend((word, path, line) for word in words(value))
            else:
                unset.update(word.partition("=")[0] for word in words(value))
    found = [_place(name, path, line, None, salt) for name, path, line in passed if name in TOKENS]
    found += [_place(name, path, line, value, salt) for name, path, line, value in said if name in TOKENS]
    for value, path, line in files:
        found += _of_file(value, (path, line), env_path, salt)
    winners = {row["variable"]: row for row in found}
    for row in found:
        row["wins"] = winners[row["variable"]] is row and row["variable"] not in unset
    return [row for row in found if row["path"] != OURS]


def directives(text: str) -> Iterator[tuple[int, str, str]]:
    """The directives of [Service] that we look for: (line, name, value); a line may go on after a backslash."""
    section, begun, held = "", 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if held and line.lstrip().startswith(("#", ";")):
            continue
        begun = begun if held else number
        held += line
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        whole, held = held.strip(), ""
        if whole.startswith("["):
            section = whole
        name, equals, value = whole.partition("=")
        if equals and section == "[Service]" and name.strip() in DIRECTIVES:
            yield begun, name.strip(), value.strip()


def words(value: str) -> list[str]:
    """The words of a directive, quotes taken away; none where they do not close."""
    try:
        return shlex.split(value)
    except ValueError:
        return []


def _of_file(value: str, place: tuple[str, int], env_path: str, salt: bytes) -> list[dict[str, Any]]:
    """What an EnvironmentFile= gives; the line in that file, or the unit's where it cannot be found there."""
    pattern = value.lstrip("-").replace("%%", "%").strip("\"'")
    if pattern.replace("\\", "") == env_path:
        entries, _ = _entries(env_path)
        return [{"variable": name, "path": OURS, "line": 0} for name in TOKENS if name in entries]
    found = []
    for path in sorted(glob.glob(pattern)):
        entries, text = _entries(path)
        for name in TOKENS:
            if name in entries:
                line = next((at for at, said in enumerate(text.splitlines(), 1) if name in said), 0)
                where = (path, line) if line else place
                found.append(_place(name, where[0], where[1], entries[name], salt))
    return found


def _entries(path: str) -> tuple[dict[str, str], str]:
    data = proc.read(path, 1 << 20)
    text = proc.text(data) if data is not None else ""
    return envfile.parse(text), text


def _place(name: str, path: str, line: int, value: str | None, salt: bytes) -> dict[str, Any]:
    mark = None if value is None else masks.fingerprint(salt, TOKENS[0], value)  # comparable, whatever its name
    return {"variable": name, "path": path, "line": line, "fingerprint": mark, "wins": False}
