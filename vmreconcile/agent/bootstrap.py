"""The few lines that travel in argv: find the shipped archive, verify its hash, run it from the bytes verified.

Run as `python3 -I -S -c TEXT SHA256 [VLLM_STATE_DIR]`; "" or nothing there means the user's default. Owns the cache,
the folder `agent` in the state folder. Must not import from siblings, and must parse on Python 3.6, to say there that
it is too old (86).
"""

import sys

if sys.version_info < (3, 8):
    sys.exit(86)

import os
from marshal import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
    from types import CodeType, ModuleType
else:
    try:
        from _sha256 import sha256  # hashlib would load OpenSSL, 3 ms
    except ImportError:
        try:
            from _sha2 import sha256
        except ImportError:
            from hashlib import sha256

PACKAGE = "vmreconcile_agent"
MAGIC = b"VMRECONCILE/1"
LIMIT = 1 << 26


def state_folder(base: str) -> str:
    """Where the state is: below `base` (vllm_state_dir), else where this user has it by default."""
    try:
        from pwd import getpwuid  # noqa: PLC0415 - its use is here

        home = getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = os.environ.get("HOME", "/")
    if base:
        return (home + base[1:] if base.startswith("~/") else base) + "/state"
    return "/var/lib/vmreconcile" if os.getuid() == 0 else home + "/.local/state/vmreconcile"


def guarded(path: str) -> bool:
    """Whether nobody but root and us could put something else in the place of `path`: no folder or link of others."""
    here, left, links = "/", path.split("/"), 0
    while left:
        part = left.pop(0)
        if part in ("", ".", ".."):
            here = os.path.dirname(here) if part == ".." else here
            continue
        there = os.path.join(here, part)
        try:
            seen = os.lstat(there)
        except OSError:
            return True  # to be made, or not for us to see
        linked = seen.st_mode >> 12 == 10
        open_to_all = seen.st_mode & 0o022 and not seen.st_mode & 0o1000
        if seen.st_uid not in (0, os.getuid()) or (open_to_all and not linked) or links > 40:
            return False
        if linked:
            target = os.readlink(there)
            here, left, links = "/" if target[:1] == "/" else here, target.split("/") + left, links + 1
        else:
            here = there
    return True


def trusted(path: str) -> bytes:
    """Read a regular file that is ours and that nobody else can write; b"" for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        seen = os.fstat(fd)
        good = seen.st_mode >> 12 == 8 and seen.st_uid == os.getuid() and not seen.st_mode & 0o022
        return file.read(LIMIT) if good else b""


def store(folder: str, name: str, data: bytes) -> None:
    """Keep `data` as `folder/name`, 0600, whole or not at all; a folder that refuses is no obstacle."""
    path = "%s/%s" % (folder, name)
    part = path + ".new"
    try:
        for place in (os.path.dirname(folder), folder):
            if not guarded(place):
                return
            os.makedirs(place, 0o700, exist_ok=True)
            seen = os.lstat(place)
            if not guarded(place) or seen.st_mode >> 12 != 4 or seen.st_uid != os.getuid() or seen.st_mode & 0o022:
                return
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, path)
        except OSError:
            os.unlink(part)
    except OSError:
        return


class Importer:
    """Import the package out of `archive`; compiled code comes from `cache` and is kept there for the next run."""

    def __init__(self, archive: bytes, folder: str, digest: str) -> None:
        """Take the verified bytes; `folder` is where the code cache lies."""
        self.archive, self.folder, self.fresh = archive, folder, False
        self.sources: "dict[str, bytes]" = {}
        self.name = "%s-%x.code" % (digest, sys.hexversion)
        try:
            self.codes = dict(loads(trusted(folder + "/" + self.name)))  # noqa: S302 - nobody else can write it
        except (EOFError, ValueError, TypeError):
            self.codes = {}

    def code(self, name: str) -> "CodeType | None":
        """Return the code of a module, or None where the archive has no such module."""
        if name not in self.codes:
            file = name.replace(".", "/") + ("/__init__.py" if name == PACKAGE else ".py")
            source = self.source(file)
            if source is None:
                return None
            self.codes[name] = dumps(compile(source, file, "exec", dont_inherit=True, optimize=2))
            self.fresh = True
        found: "CodeType" = loads(self.codes[name])  # noqa: S302 - compiled above, or read from a file that is ours
        return found

    def source(self, file: str) -> "bytes | None":
        """Return a member of the archive, unpacked when the first is asked for: a warm start asks for none."""
        if not self.sources:
            from io import BytesIO  # noqa: PLC0415 - cold start only
            from zipfile import ZipFile  # noqa: PLC0415 - costs 15 ms, cold start only

            with ZipFile(BytesIO(self.archive)) as members:
                self.sources = {name: members.read(name) for name in members.namelist()}
        return self.sources.get(file)

    def find_spec(self, name: str, *_: object) -> object:
        """Answer the import system (PEP 451) for our package and for pynvml."""
        if name.split(".", maxsplit=1)[0] not in (PACKAGE, "pynvml") or self.code(name) is None:
            return None
        spec = type(sys.__spec__)(name, self, is_package=name == PACKAGE)  # type: ignore[arg-type]  # it is a loader
        spec.origin = name
        return spec

    def create_module(self, _: object) -> None:
        """Let Python make the module object."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's code."""
        code = self.code(module.__name__)
        if code is not None:
            exec(code, module.__dict__)  # noqa: S102 - this is what a loader does

    def keep(self) -> None:
        """Write what had to be compiled, for the next run."""
        if self.fresh and os.path.isdir(self.folder):
            store(self.folder, self.name, dumps(self.codes))


class Input:
    """Standard input with what was read too much of it; nothing after the agent's start is lost."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self.held = b""

    def more(self) -> None:
        """Read once."""
        data = os.read(0, 1 << 16)
        if not data:
            sys.exit("vmreconcile: standard input ended before the agent was there")
        self.held += data

    def line(self) -> bytes:
        """Take the next line."""
        while b"\n" not in self.held:
            self.more()
        first, _, self.held = self.held.partition(b"\n")
        return first.rstrip(b"\r")

    def exactly(self, count: int) -> bytes:
        """Take so many bytes."""
        while len(self.held) < count:
            self.more()
        data, self.held = self.held[:count], self.held[count:]
        return data


def receive(digest: str, folder: str, source: Input) -> bytes:
    """Ask the controller for the archive, verify and store it; requests already under way come before it."""
    os.write(1, MAGIC + b" need\n")
    early, said = b"", source.line()
    while said[:1] == b"{":
        early, said = early + said + b"\n", source.line()
    word, _, count = said.partition(b" ")
    if word != b"ARCHIVE" or not count.isdigit() or int(count) > LIMIT:
        sys.exit("vmreconcile: expected ARCHIVE and its length")
    archive = source.exactly(int(count))
    source.held = early + source.held
    if sha256(archive).hexdigest() != digest:
        sys.exit("vmreconcile: the archive received has another hash than announced")
    store(folder, digest + ".pyz", archive)
    return archive


def main() -> None:
    """Skip to the magic line, get the agent, run it."""
    digest = sys.argv[1]
    folder = state_folder("".join(sys.argv[2:3])) + "/agent"
    if not guarded(folder):
        folder = os.devnull  # nothing is there, and nothing can be kept there
    source = Input()
    while source.line() != MAGIC:
        pass
    archive = trusted("%s/%s.pyz" % (folder, digest))
    if sha256(archive).hexdigest() != digest:
        archive = receive(digest, folder, source)
    importer = Importer(archive, folder, digest)
    sys.meta_path.insert(0, importer)  # type: ignore[arg-type]  # its annotations have to parse on Python 3.6
    agent = __import__(PACKAGE + ".__main__", fromlist=["main"])
    try:
        agent.main(0, 1, source.held, digest)
    finally:
        importer.keep()
    os._exit(0)  # all is written; taking the interpreter apart costs 3 ms


main()
