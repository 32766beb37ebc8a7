"""systemd: what `systemctl show` says of our units. Starts at most one program, and none where we have no unit."""

from __future__ import annotations

import os

from . import command
from .folders import PREFIX, SUFFIX, Folders, slug_of_unit
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,UnitFileState,NRestarts,MainPID,ExecMainCode,ExecMainStatus,"
    "FragmentPath,DropInPaths,NeedDaemonReload,ControlGroup,TimeoutStopUSec"
)
BOOTED = "/run/systemd/system"
EXITED = "1"
LIBRARIES = (
    "/usr/lib/systemd",
    "/lib/systemd",
    "/usr/lib/x86_64-linux-gnu/systemd",
    "/usr/lib/aarch64-linux-gnu/systemd",
)


def scope(uid: int) -> str:
    """Root's units are the system's, everybody else's their own manager's."""
    return "system" if uid == 0 else "user"


def arguments(wanted: str) -> list[str]:
    """How systemctl or journalctl is told the scope."""
    return ["--user"] if wanted == "user" else ["--system"]


def surroundings(wanted: str, uid: int) -> dict[str, str]:
    """What systemctl needs to find a user's manager when no login session says it."""
    if wanted != "user":
        return {}
    runtime = "/run/user/{}".format(uid)
    return {"XDG_RUNTIME_DIR": runtime, "DBUS_SESSION_BUS_ADDRESS": "unix:path={}/bus".format(runtime)}


def version() -> int | None:
    """Find systemd's version by its library's name, else by asking it; None where it does not run this host."""
    if not os.path.isdir(BOOTED):
        return None
    for folder in LIBRARIES:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.startswith("libsystemd-shared-"):
                digits = name[len("libsystemd-shared-") :].partition(".")[0].partition("-")[0]
                if digits.isdigit():
                    return int(digits)
    words = command.run(["systemctl", "--version"], 10)[1].split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


def lingering(user: str) -> bool:
    """Whether a user's manager outlives the login (loginctl enable-linger)."""
    return os.path.exists("/var/lib/systemd/linger/" + user)


def names(folders: Folders, records: dict[str, Any]) -> list[str]:
    """Our units: those with a file, with a cgroup, or with a record that says systemd."""
    found = {"{}{}{}".format(PREFIX, slug, SUFFIX) for slug, record in records.items() if is_unit_record(record)}
    places = [folders.unit_folder()]
    if folders.uid == 0:
        places += ["/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/systemd/system.slice"]
    for place in places:
        try:
            entries = os.listdir(place)
        except OSError:
            continue
        found.update(name for name in entries if slug_of_unit(name))
    return sorted(found)


def is_unit_record(record: object) -> bool:
    """Whether a record is of runtime `systemd`."""
    return isinstance(record, dict) and record.get("runtime") == "systemd"


def is_foreign(text: str | None, slug: str, folders: Folders, record: object) -> bool:
    """Whether a unit only bears a name like ours: a person's own, or that of another state folder of this host.

    What we wrote names our env file; a unit edited beyond recognition is ours as long as our record says so.
    """
    named = "\nEnvironmentFile={}\n".format(folders.env_file(slug).replace("%", "%%"))
    return text is not None and named not in text and not is_unit_record(record)


def show(wanted: Iterable[str], uid: int) -> dict[str, dict[str, str]]:
    """Properties by unit name, with one call of systemctl; from the files alone where the user's manager does not run.

    Raises:
        Problem: where systemctl is missing or does not answer.
    """
    where = scope(uid)
    if where == "user" and not has_manager(uid):
        return {}
    argv = ["systemctl", *arguments(where), "show", "--no-pager", "--property=" + PROPERTIES, "--", *wanted]
    status, said = command.run(argv, 20, surroundings(where, uid))
    if status:
        raise Problem("systemctl-failed", "systemctl show: {}".format(said.strip()[-500:] or status))
    return parse_show(said)


def appends(text: str | None, path: str) -> bool:
    """Whether a unit's text says that its output goes to the file `path`."""
    return "=append:{}\n".format(path.replace("%", "%%")) in (text or "")


def plain(text: str | None) -> bool:
    """Whether a unit says no more about its environment than we write: our marker and our env file."""
    said = "\n" + (text or "")
    return said.count("\nEnvironment") <= 2 and "\nPassEnvironment" not in said


def invocation(unit: str) -> list[str]:
    """What narrows journalctl to a system unit's latest start; nothing where systemd has forgotten it."""
    said = command.run(["systemctl", "show", "--property=InvocationID", "--value", "--", unit], 20)[1].strip()
    return ["_SYSTEMD_INVOCATION_ID=" + said] if said.isalnum() else []


def has_manager(uid: int) -> bool:
    """Whether a user's own systemd runs (it does while logged in, and always with lingering)."""
    return os.path.exists("/run/user/{}/bus".format(uid)) or os.path.exists("/run/user/{}/systemd/private".format(uid))


def asleep(name: str, path: str) -> dict[str, str]:
    """What `systemctl show` would say of a unit file while no manager runs."""
    return {
        "Id": name,
        "LoadState": "loaded",
        "ActiveState": "inactive",
        "SubState": "dead",
        "Result": "success",
        "FragmentPath": path,
    }


def parse_show(text: str) -> dict[str, dict[str, str]]:
    """Split `systemctl show`: blocks of KEY=VALUE, a blank line between them."""
    found = {}
    for block in text.split("\n\n"):
        pairs = (line.partition("=") for line in block.splitlines() if "=" in line)
        properties = {key: value for key, _, value in pairs}
        if "Id" in properties:
            found[properties["Id"]] = properties
    return found


def number(text: str | None) -> int:
    """A count that systemd may leave empty or unset."""
    return int(text) if text and text.isdigit() else 0


def exit_code(properties: dict[str, str]) -> int | None:
    """How the main process last ended: its status, or minus the signal; None while it runs or never ran."""
    code = properties.get("ExecMainCode", "0")
    if code == "0":
        return None
    status = number(properties.get("ExecMainStatus"))
    return status if code == EXITED else -status


def described(name: str, properties: dict[str, str], text: str | None) -> dict[str, Any]:
    """A unit in the wire's form; `text` is its file's."""
    return {
        "name": name,
        "path": properties.get("FragmentPath") or None,
        "load": properties.get("LoadState", ""),
        "active": properties.get("ActiveState", ""),
        "sub": properties.get("SubState", ""),
        "result": properties.get("Result", ""),
        "enabled": properties.get("UnitFileState", ""),
        "restarts": number(properties.get("NRestarts")),
        "main_pid": number(properties.get("MainPID")) or None,
        "exit_code": exit_code(properties),
        "text": text,
        "drop_ins": sorted(properties.get("DropInPaths", "").split()),
        "needs_reload": properties.get("NeedDaemonReload") == "yes",
    }
