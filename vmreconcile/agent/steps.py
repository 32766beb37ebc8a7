"""The request `steps`: one function a step, by name; carried out in order, under the host's lock, until one fails."""

from __future__ import annotations

import fcntl
import os
import time

from . import envfile, jsontext, proc, stop, survey, units
from .classify import classify
from .files import open_folder, read_file, remove_file, write_file
from .folders import Folders, is_slug, slug_of_unit, token_beside
from .lock import keep
from .problems import Problem, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .frames import Channel

    Step = dict[str, Any]
    Run = Callable[[Step, Folders], Step]

LOCK_S = 60.0
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "write-file": {"path": (str,), "content": (str,), "mode": (int,)},
    "write-env": {"path": (str,), "entries": (list,)},
    "remove-file": {"path": (str,)},
    "write-record": {"slug": (str,), "record": (dict,)},
    "remove-server": {"slug": (str,)},
    "systemctl": {"verb": (str,)},
    "stop-unit": {"unit": (str,), "grace_s": (int, float)},
    "enable-linger": {},
    "spawn": {"slug": (str,), "argv": (list,), "env_path": (str,), "log_path": (str,), "record": (dict,)},
    "stop-process": {
        "slug": (str,), "pid": (int,), "start_ticks": (int,), "boot_id": (str,), "grace_s": (int, float),
    },
    "end-orphans": {"slug": (str,), "processes": (list,), "grace_s": (int, float)},
    "note-measured": {"slug": (str,), "pid": (int,), "start_ticks": (int,), "measured": (dict,)},
    "keep-revision": {"slug": (str,), "revision": (dict,)},
}  # fmt: skip


def steps(request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]) -> dict[str, Any]:
    """Carry out every step of a request; what was secret in it is forgotten before the answer.

    Raises:
        Problem: of the first step that fails, with `index`; the steps before it are done, those after it are not.
    """
    del channel
    secrets = request.pop("secrets", None) or {}
    wanted = request.get("steps")
    if not isinstance(wanted, list) or not isinstance(secrets, dict):
        raise Problem("bad-request", "steps is a list, secrets an object")
    changed = False
    checked = [_at(index, _checked, step) for index, step in enumerate(wanted)]
    lock = hold_lock(folders, float(request.get("lock_timeout", LOCK_S)))
    try:
        keep(folders)
        if "root" in request:
            expect_root(request.get("slug"), request["root"], folders)
        for index, (step, _) in enumerate(checked):
            _at(index, spare_foreign, step, folders)
        for index, (step, run) in enumerate(checked):
            begun = time.monotonic()
            if step["step"] == "write-env":
                step = dict(step, secrets=secrets)  # noqa: PLW2901 - only this step ever sees them
            result = _at(index, run, step, folders)
            changed = changed or bool(result["changed"])
            progress(index=index, seconds=round(time.monotonic() - begun, 3), **result)
    finally:
        secrets.clear()
        os.close(lock)
    return {"changed": changed}


def _at(index: int, call: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - passes through
    """Note in a problem which step it was."""
    try:
        return call(*arguments)
    except Problem as problem:
        problem.index = index
        raise
    except OSError as error:
        refused = from_os_error(error, str(error.filename or "?"))
        refused.index = index
        raise refused from None


def _checked(step: Any) -> tuple[Step, Run]:  # noqa: ANN401 - from the wire
    """Make sure of a step's name and the kinds of its fields, before the first one runs."""
    name = step.get("step") if isinstance(step, dict) else None
    if name not in FIELDS:
        raise Problem("bad-request", "no step is called {!r}".format(str(name)[:40]))
    for field, kinds in FIELDS[name].items():
        if not isinstance(step.get(field), kinds) or isinstance(step.get(field), bool):
            raise Problem("bad-request", "{}: {} is missing or of the wrong kind".format(name, field))
    if "slug" in FIELDS[name] and not is_slug(step["slug"]):
        raise Problem("bad-request", "{}: {!r} is no server's name".format(name, step["slug"][:80]))
    if step.get("scope") not in (None, "system", "user"):
        raise Problem("bad-request", "{}: scope is system or user".format(name))
    if name == "note-measured":
        from . import measured  # noqa: PLC0415 - one step in many

        measured.check(step["measured"])
    if name == "keep-revision":
        from . import history  # noqa: PLC0415 - as above

        history.check(step["revision"])
    return step, registry()[name]


def expect_root(slug: object, expected: object, folders: Folders) -> None:
    """Make sure, with the lock held, that the server's root is still the one that the steps were planned for.

    Two runs that saw the same need would else undo each other's work.

    Raises:
        Problem: `moved`, naming the pids.
    """
    if not is_slug(slug) or not (expected is None or (isinstance(expected, list) and len(expected) == 2)):
        raise Problem("bad-request", "root is null or [pid, start_ticks], of the server that slug names")
    known = stop.known_now(folders, with_units=True)
    root = classify(survey.processes(known), known).roots.get(str(slug))
    found = [root.pid, root.start_ticks] if root else None
    if found != expected:
        was, now = ("pid {}".format(one[0]) if one else "no process" for one in (expected, found))
        raise Problem("moved", "{} was planned for {}, and there is {} now".format(slug, was, now))


def spare_foreign(step: Step, folders: Folders) -> None:
    """Leave a unit alone that only bears a name like ours; asked before the first step, which may write our record.

    Raises:
        Problem: `not-ours`.
    """
    name = str(step.get("unit") or step.get("path", "")).rpartition("/")[2]
    slug = slug_of_unit(name)
    path = "{}/{}".format(folders.unit_folder(), name)
    data = proc.read(path) if slug else None
    if data is None:
        return
    try:
        record = survey.parse_record(read_file(folders.record(slug), folders.uid), "")
    except Problem:
        record = None
    if units.is_foreign(proc.text(data), slug, folders, record):
        told = "{}: not written for our folders, so it is left alone; remove or rename it"
        raise Problem("not-ours", told.format(path), path)


def hold_lock(folders: Folders, timeout: float) -> int:
    """Hold `<state>/lock`: steps of one host go one after the other. Closing the descriptor lets it go.

    Raises:
        Problem: `locked` after `timeout` seconds, naming the holder.
    """
    path = folders.state + "/lock"
    until = time.monotonic() + timeout
    while True:
        folder = open_folder(folders.state, folders.state, folders.uid, create=True)
        try:
            fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        except OSError as error:
            raise from_os_error(error, path) from None
        finally:
            os.close(folder)
        if _lock(fd, path):
            return fd
        holder = os.pread(fd, 40, 0).decode("ascii", "replace").strip()
        os.close(fd)
        if time.monotonic() >= until:
            raise Problem("locked", "another run is at work on this host (pid {})".format(holder or "?"), path)
        time.sleep(0.1)


def _lock(fd: int, path: str) -> bool:
    """Try once; a lock on a file that was removed meanwhile is none."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(fd).st_ino:
            return False
    except OSError:
        return False
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)
    except OSError:
        pass  # a full disk: the lock is held all the same, only its holder is not named
    return True


def write_any_file(step: Step, folders: Folders) -> Step:
    """A file of ours or a unit of ours."""
    mode = step["mode"]
    if mode & ~0o755:
        raise Problem("bad-request", "write-file: mode {:o} lets others write".format(mode))
    try:
        data = step["content"].encode("utf-8")
    except UnicodeEncodeError:
        raise Problem("bad-request", "write-file: the content is not text", step["path"]) from None
    path = step["path"]
    return {"changed": write_file(path, folders.base_of(path), folders.uid, data, mode)}


def write_env(step: Step, folders: Folders) -> Step:
    """The env file, 0600; secrets are put in here and nowhere else."""
    entries = []
    before: dict[str, str] | None = None
    for entry in step["entries"]:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise Problem("bad-request", "write-env: an entry is [name, content]")
        name, content = entry
        value = content
        if isinstance(content, dict) and content.get("keep") is True:
            before = _before(step["path"], folders) if before is None else before
            value = before.get(name)
            if value is None:
                continue
        elif isinstance(content, dict):
            value = step["secrets"].get(content.get("secret"))
        if not isinstance(value, str):
            raise Problem("bad-request", "write-env: nothing was sent for {}".format(name))
        entries.append((name, value))
    path, credential = step["path"], step.get("credential")
    inside = entries
    if credential == "only" or (credential == "added" and survey.TOKEN not in _inside(path, folders)):
        inside = [(name, value) for name, value in entries if name != survey.TOKEN]
    try:
        data = envfile.render(inside).encode("utf-8")
    except ValueError as error:
        raise Problem("bad-env", str(error), step["path"]) from None
    changed = False
    if credential in ("added", "only"):  # before the env file: a token is never in neither
        own, token = token_beside(path), dict(entries).get(survey.TOKEN, "")
        changed = write_file(own, folders.base_of(own), folders.uid, token.encode("utf-8"), 0o600)
    return {"changed": write_file(path, folders.base_of(path), folders.uid, data, 0o600) or changed}


def _inside(path: str, folders: Folders) -> dict[str, str]:
    """What the env file holds now; nothing, where it cannot be read."""
    try:
        found = read_file(path, folders.uid)
        return envfile.parse(found[0].decode("utf-8")) if found else {}
    except (Problem, UnicodeDecodeError):
        return {}


def _before(path: str, folders: Folders) -> dict[str, str]:
    """What the env file and the token beside it hold now; nothing, where they cannot be read."""
    before = _inside(path, folders)
    try:
        kept = read_file(token_beside(path), folders.uid)
        if kept is not None and kept[0].strip():
            before.setdefault(survey.TOKEN, kept[0].decode("ascii").strip())
    except (Problem, UnicodeDecodeError):
        pass
    return before


def remove_any_file(step: Step, folders: Folders) -> Step:
    """A file of ours or a unit of ours; one that is not there is no error."""
    return {"changed": remove_file(step["path"], folders.base_of(step["path"]), folders.uid)}


def write_record(step: Step, folders: Folders) -> Step:
    """The ownership record. What a running process is known by is kept: without it, it would be a stranger.

    What was measured is kept, too.
    The folder of logs is made along with it, for units that write there: systemd makes the file, not the folder.
    """
    os.close(open_folder(folders.state + "/log", folders.state, folders.uid, create=True))
    path = folders.record(step["slug"])
    record = dict(step["record"])
    try:
        found = read_file(path, folders.uid)
        old = survey.parse_record(found, path) or {}
    except Problem:
        found, old = None, {}
    if old.get("runtime") == record.get("runtime") == "process" and stop.recorded_runs(step["slug"], old):
        for key in ("pid", "start_ticks", "boot_id"):
            record.setdefault(key, old[key])
    return _put_record(path, dict(survey.outliving(found, path), **record), folders)


def note_measured(step: Step, folders: Folders) -> Step:
    """Keep in a server's record what its vLLM measured, if the process that did so is still its root.

    Raises:
        Problem: `moved` where it is not; `not-found`, `bad-record` where there is no record of ours.
    """
    expect_root(step["slug"], [step["pid"], step["start_ticks"]], folders)
    path = folders.record(step["slug"])
    record = survey.parse_record(read_file(path, folders.uid), path)
    if record is None:
        raise Problem("not-found", path + ": no record to keep it in", path)
    return _put_record(path, dict(record, measured=step["measured"]), folders)


def _put_record(path: str, record: dict[str, Any], folders: Folders) -> Step:
    data = (jsontext.dumps(record) + "\n").encode("ascii")
    return {"changed": write_file(path, folders.state, folders.uid, data, 0o600)}


def registry() -> dict[str, Run]:
    """Every step by its name on the wire."""
    from . import history, removal, spawn, systemd  # noqa: PLC0415 - loaded only where steps run

    return {
        "write-file": write_any_file,
        "write-env": write_env,
        "remove-file": remove_any_file,
        "write-record": write_record,
        "remove-server": removal.remove_server,
        "systemctl": systemd.systemctl,
        "stop-unit": systemd.stop_unit,
        "enable-linger": systemd.enable_linger,
        "spawn": spawn.spawn,
        "stop-process": stop.stop_process,
        "end-orphans": stop.end_orphans,
        "note-measured": note_measured,
        "keep-revision": history.keep_revision,
    }
