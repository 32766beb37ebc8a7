"""Starting a server of runtime `process`: its own session, a plain environment, its record written before it is vLLM.

Two forks, so that it belongs to init and not to us; the second child reports over a pipe that its exec closes.
"""

from __future__ import annotations

import os
import resource
import time

from . import envfile, jsontext, proc, stop, survey
from .classify import classify
from .files import FOLDER, open_folder, read_file, remove_file, write_file
from .folders import Folders
from .problems import Problem, from_os_error
from .versions import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any
else:
    import _signal  # the signal module loads enum, 6 ms

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as systemd gives to its services
MARKER = "VMRECONCILE_SERVER"


def environment(slug: str, env_path: str, folders: Folders) -> dict[str, str]:
    """What the server gets: systemd's plain base, then the env file, then our marker. Nothing of the SSH session.

    Raises:
        Problem: where the env file cannot be used.
    """
    base = {"PATH": PATH, "HOME": folders.home, "USER": folders.user, "LOGNAME": folders.user, "LANG": "C.UTF-8"}
    found = read_file(env_path, folders.uid)
    if found is None:
        raise Problem("not-found", env_path + ": no env file", env_path)
    data, seen = found
    if seen.st_mode & 0o022:
        raise Problem("unsafe-path", env_path + ": others may write it", env_path)
    try:
        base.update(envfile.parse(data.decode("utf-8")))
    except UnicodeDecodeError:
        raise Problem("bad-env-file", env_path + ": not UTF-8", env_path) from None
    base[MARKER] = slug
    return base


def spawn(step: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """Start a server; the answer holds its pid and start time.

    Raises:
        Problem: `already-running`, `orphans-left`, `not-found`, or what kept it from starting.
    """
    slug, argv = step["slug"], step["argv"]
    if not argv or not all(isinstance(word, str) and "\0" not in word for word in argv):
        raise Problem("bad-request", "spawn: argv is a list of texts")
    program = find(argv[0], folders.home)
    if not program:
        raise Problem("not-found", "{}: no such executable file".format(argv[0]), argv[0])
    _make_room(slug, folders)
    env = environment(slug, step["env_path"], folders)
    record_path = folders.record(slug)
    before = read_file(record_path, folders.uid)
    record = dict(survey.outliving(before, record_path), **step["record"])
    step = dict(step, argv=[program, *argv[1:]], record=record)
    for path in (step["env_path"], step["log_path"]):
        folders.base_of(path)
    log = _open_log(step["log_path"], folders)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        _first_child(step, folders, env, (log, sink))
    os.close(log)
    os.close(sink)
    os.waitpid(child, 0)
    said = b""
    while True:
        data = os.read(source, 1 << 16)
        if not data:
            break
        said += data
    os.close(source)
    words = jsontext.loads("[" + ",".join(said.decode("ascii").splitlines()) + "]")
    if len(words) == 1:
        return {"changed": True, "pid": words[0]["pid"], "start_ticks": words[0]["start_ticks"]}
    if before is not None:
        write_file(record_path, folders.state, folders.uid, before[0], 0o600)
    else:
        remove_file(record_path, folders.state, folders.uid)
    error = words[-1] if words else {"kind": "spawn-failed", "message": "the child ended without a word", "path": ""}
    raise Problem(error["kind"], error["message"], error["path"])


def _make_room(slug: str, folders: Folders) -> None:
    """Make sure that nothing of this server runs."""
    known = stop.known_now(folders, with_units=False)
    verdict = classify(survey.processes(known), known)
    if slug in verdict.roots:
        raise Problem("already-running", "{} runs as pid {}".format(slug, verdict.roots[slug].pid))
    if verdict.orphans.get(slug):
        pids = ", ".join(str(process.pid) for process in verdict.orphans[slug])
        raise Problem("orphans-left", "workers of {} are left from before: pid {}".format(slug, pids))


def _open_log(path: str, folders: Folders) -> int:
    """Open the log for appending, 0600, following no link."""
    folder, _, name = path.rpartition("/")
    fd = open_folder(folder, folders.base_of(path), folders.uid, create=True)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(name, flags, 0o600, dir_fd=fd)
    except OSError as error:
        raise from_os_error(error, path) from None
    finally:
        os.close(fd)


def _first_child(step: dict[str, Any], folders: Folders, env: dict[str, str], fds: tuple[int, int]) -> None:
    """Fork once more and go: the server's parent is then init."""
    try:
        if os.fork() == 0:
            _second_child(step, folders, env, fds)
    finally:
        os._exit(0)


def _second_child(step: dict[str, Any], folders: Folders, env: dict[str, str], fds: tuple[int, int]) -> None:
    """Become the server: first a session of our own, then the record, then the exec."""
    log, sink = fds
    try:
        os.setsid()
        _calm_down()
        _plug(log, sink)
        _change_folder(step.get("cwd") or folders.home)
        me = _write_record(step, folders)
        os.write(sink, (jsontext.dumps(me) + "\n").encode("ascii"))
        line = "vmreconcile: starting {} (pid {}) at {:.0f}\n".format(step["slug"], me["pid"], time.time())
        _begin_log(line, step["log_path"])
        argv = [word.encode("utf-8") for word in step["argv"]]
        pairs = {name.encode("utf-8"): value.encode("utf-8") for name, value in env.items()}
        try:
            os.execve(argv[0], argv, pairs)  # noqa: S606 - no shell is what is wanted
        except OSError as error:
            raise from_os_error(error, step["argv"][0]) from None
    except Problem as problem:
        _say(sink, problem)
    except BaseException as error:  # noqa: BLE001 - a child must end here whatever happens; its type is told
        _say(sink, Problem("spawn-failed", "{} before the exec".format(type(error).__name__)))
    finally:
        os._exit(127)


def _begin_log(line: str, path: str) -> None:
    """Write the line that marks a start; a server whose log has no room could tell nobody why it ends."""
    try:
        os.write(1, line.encode("utf-8"))
    except OSError as error:
        raise from_os_error(error, path) from None


def _say(sink: int, problem: Problem) -> None:
    """Tell the parent why there is no server; one line that tells, one that follows, so that it is never alone."""
    told = {"kind": problem.kind, "message": str(problem), "path": problem.path}
    os.write(sink, ("{}\n" + jsontext.dumps(told) + "\n").encode("ascii"))


def _calm_down() -> None:
    """Undo what we and Python changed for ourselves: ignored signals, umask; and no core dumps, they hold tokens.

    A limit of 1, because with 0 a collector is still run, and systemd's writes the environment into the journal.
    """
    for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))
    os.umask(0o022)


def _plug(log: int, sink: int) -> None:
    """Input from nowhere, output to the log, everything else closed; the pipe closes at the exec."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.set_blocking(log, True)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != sink:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own descriptor


def _change_folder(path: str) -> None:
    """Go where the server shall run."""
    try:
        fd = os.open(path, FOLDER & ~os.O_NOFOLLOW)
        os.fchdir(fd)
        os.close(fd)
    except OSError as error:
        raise from_os_error(error, path) from None


def _write_record(step: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """Write who we are about to become: from now on the process counts as ours."""
    seen = proc.stat(os.getpid())
    if seen is None:
        raise Problem("spawn-failed", "/proc is not there")
    me = {"pid": seen.pid, "start_ticks": seen.start_ticks}
    record = dict(step["record"], boot_id=proc.boot_id(), runtime="process", **me)
    data = (jsontext.dumps(record) + "\n").encode("ascii")
    write_file(folders.record(step["slug"]), folders.state, folders.uid, data, 0o600)
    return me
