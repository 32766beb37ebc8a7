"""The few lines that travel in argv: find the shipped archive, verify its hash, run it from the bytes verified.

Run as `python3 -I -S -c TEXT SHA256 [STATE_DIR]`; `STATE_DIR` "" or absent means the user's default. Owns the cache
`STATE_DIR/agent`; must not import from siblings, and must parse on Python 3.6, to say there that it is too old (86).
"""

import sys

if sys.version_info < (3, 8):  # noqa: UP036 - the very test that a host's old interpreter has to reach
    sys.exit(86)

import os  # noqa: E402 - an old interpreter ends above
from marshal import dumps, loads  # noqa: E402 - as above

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


def default_state():
    """Where this user's state folder is when none was named."""
    if os.getuid() == 0:
        return "/var/lib/vmreconcile"
    try:
        from pwd import getpwuid  # noqa: PLC0415 - not needed for root

        home = getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = os.environ.get("HOME", "/")
    return home + "/.local/state/vmreconcile"


def trusted(path):
    """Read a regular file that is ours and that nobody else can write; b"" for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        seen = os.fstat(fd)
        good = seen.st_mode >> 12 == 8 and seen.st_uid == os.getuid() and not seen.st_mode & 0o022
        return file.read(LIMIT) if good else b""


def store(folder, name, data):
    """Keep `data` as `folder/name`, 0600, whole or not at all; a folder that refuses is no obstacle."""
    path = "%s/%s" % (folder, name)  # noqa: UP031 - Python 3.6 reads this, and a path may hold braces
    part = path + ".new"
    try:
        for place in (os.path.dirname(folder), folder):
            os.makedirs(place, 0o700, exist_ok=True)
            seen = os.lstat(place)
            if seen.st_mode >> 12 != 4 or seen.st_uid != os.getuid() or seen.st_mode & 0o022:
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

    def __init__(self, archive, folder, digest):
        """Take the verified bytes; `folder` is where the code cache lies."""
        self.archive, self.folder, self.zip, self.fresh = archive, folder, None, False
        self.name = "%s-%x.code" % (digest, sys.hexversion)  # noqa: UP031 - shorter than two formats
        try:
            self.codes = dict(loads(trusted(folder + "/" + self.name)))
        except (EOFError, ValueError, TypeError):
            self.codes = {}

    def code(self, name):
        """Return the code of a module, or None where the archive has no such module."""
        if name not in self.codes:
            if self.zip is None:
                from io import BytesIO  # noqa: PLC0415 - cold start only
                from zipfile import ZipFile  # noqa: PLC0415 - costs 15 ms, cold start only

                self.zip = ZipFile(BytesIO(self.archive))
            file = name.replace(".", "/") + ("/__init__.py" if name == PACKAGE else ".py")
            if file not in self.zip.namelist():
                return None
            self.codes[name] = dumps(compile(self.zip.read(file), file, "exec", dont_inherit=True))
            self.fresh = True
        return loads(self.codes[name])

    def find_spec(self, name, path=None, target=None):
        """Answer the import system (PEP 451) for our package and for pynvml."""
        if name.split(".")[0] not in (PACKAGE, "pynvml") or self.code(name) is None:
            return None
        spec = type(sys.__spec__)(name, self, is_package=name == PACKAGE)
        spec.origin = name
        return spec

    def create_module(self, spec):
        """Let Python make the module object."""
        return

    def exec_module(self, module):
        """Run the module's code."""
        exec(self.code(module.__name__), module.__dict__)  # noqa: S102 - this is what a loader does

    def keep(self):
        """Write what had to be compiled, for the next run."""
        if self.fresh and os.path.isdir(self.folder):
            store(self.folder, self.name, dumps(self.codes))


def lines(fd):
    """Yield functions over one buffer: the next line, and the next n bytes."""
    held = [b""]

    def more():
        data = os.read(fd, 1 << 16)
        if not data:
            sys.exit("vmreconcile: standard input ended before the agent was there")
        held[0] += data

    def line():
        while b"\n" not in held[0]:
            more()
        first, _, held[0] = held[0].partition(b"\n")
        return first.rstrip(b"\r")

    def exactly(count):
        while len(held[0]) < count:
            more()
        data, held[0] = held[0][:count], held[0][count:]
        return data

    return line, exactly, held


def receive(digest, folder, line, exactly, held):
    """Ask the controller for the archive, verify and store it; requests already under way come before it."""
    os.write(1, MAGIC + b" need\n")
    early, said = b"", line()
    while said[:1] == b"{":
        early, said = early + said + b"\n", line()
    word, _, count = said.partition(b" ")
    if word != b"ARCHIVE" or not count.isdigit() or int(count) > LIMIT:
        sys.exit("vmreconcile: expected ARCHIVE and its length")
    archive = exactly(int(count))
    held[0] = early + held[0]
    if sha256(archive).hexdigest() != digest:
        sys.exit("vmreconcile: the archive received has another hash than announced")
    store(folder, digest + ".pyz", archive)
    return archive


def main():
    """Skip to the magic line, get the agent, run it."""
    digest = sys.argv[1]
    folder = ((sys.argv[2:3] or [""])[0] or default_state()) + "/agent"
    line, exactly, held = lines(0)
    while line() != MAGIC:
        pass
    archive = trusted("%s/%s.pyz" % (folder, digest))  # noqa: UP031 - as in store
    if sha256(archive).hexdigest() != digest:
        archive = receive(digest, folder, line, exactly, held)
    importer = Importer(archive, folder, digest)
    sys.meta_path.insert(0, importer)
    agent = __import__(PACKAGE + ".__main__", fromlist=["main"])
    try:
        agent.main(0, 1, held[0], digest)
    finally:
        importer.keep()


main()
