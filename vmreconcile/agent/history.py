"""What a server ran before: the step `keep-revision` and the request `revisions`, over one file a server.

Owns that file and its numbers. What a revision means is the controller's business: here it is an object of bounded
size, in which no secret of the server may stand.
"""

from __future__ import annotations

import os

from . import envfile, jsontext, proc
from .files import open_folder, read_file, write_file
from .folders import Folders, is_slug
from .masks import is_secret_name
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .frames import Channel

    Json = dict[str, Any]

KEPT = 10  # revisions of a server, beside the newest good one
LARGEST = 1 << 18  # bytes of one; a command line of a unit has a megabyte at most, and seldom one kilobyte
SHORTEST = 8  # letters of a secret that is looked for: "1" or "none" stand everywhere


def check(revision: Json) -> None:
    """Look at the form of a revision before it is kept.

    Raises:
        Problem: `bad-request`, `too-large`.
    """
    if not isinstance(revision.get("launch"), dict) or not isinstance(revision.get("good"), bool):
        raise Problem("bad-request", "keep-revision: a revision says what was launched, and whether it was good")
    if len(jsontext.dumps(revision)) > LARGEST:
        raise Problem("too-large", "keep-revision: a revision is larger than {} bytes".format(LARGEST))


def keep_revision(step: Json, folders: Folders) -> Json:
    """Keep one revision; `number` is the one that it has, now or since before.

    Raises:
        Problem: where it holds a secret of the server, or cannot be written.
    """
    slug, revision = step["slug"], step["revision"]
    _spare_secrets(slug, jsontext.dumps(revision), folders)
    path = folders.history(slug)
    try:
        before = _read(path, folders)
    except Problem as problem:
        if problem.kind != "bad-record":
            raise
        before = []  # damaged: what is lost is lost, and a good revision is better than none
    after, number = kept(before, revision)
    data = (jsontext.dumps({"format": 1, "revisions": after}) + "\n").encode("ascii")
    return {"changed": write_file(path, folders.state, folders.uid, data, 0o600), "number": number}


def kept(before: list[Json], revision: Json) -> tuple[list[Json], int]:
    """The revisions, oldest first, with one more, and its number. Pure.

    What is good and launched just as the newest good one is no new revision; nor is what failed just as the newest
    did, whose time moves on. Dropped are all but the newest, and never the newest good one.
    """
    good = [each for each in before if each["good"]]
    newest = before[-1] if before else None
    if revision["good"] and good and good[-1]["launch"] == revision["launch"]:
        return before, good[-1]["number"]
    number = newest["number"] + 1 if newest else 1
    if newest and not revision["good"] and not newest["good"] and newest["launch"] == revision["launch"]:
        number, before = newest["number"], before[:-1]
    after = [*before, dict(revision, number=number)]
    last = [each for each in after if each["good"]][-1:]
    return [*[each for each in last if each not in after[-KEPT:]], *after[-KEPT:]], number


def _spare_secrets(slug: str, text: str, folders: Folders) -> None:
    """Refuse a revision in which a secret of the server's environment stands.

    Raises:
        Problem: `bad-request`, naming the variable.
    """
    found = read_file(folders.env_file(slug), folders.uid)
    entries = envfile.parse(proc.text(found[0])) if found else {}
    token = read_file(folders.token_file(slug), folders.uid)
    if token is not None:
        entries["HF_TOKEN"] = proc.text(token[0]).strip()
    for name, value in sorted(entries.items()):
        if is_secret_name(name) and len(value) >= SHORTEST and jsontext.dumps(value)[1:-1] in text:
            raise Problem("bad-request", "keep-revision: the value of {} has no place in it".format(name))


def _read(path: str, folders: Folders) -> list[Json]:
    """The revisions of a file, oldest first; none where there is no file.

    Raises:
        Problem: `bad-record` where it is damaged.
    """
    found = read_file(path, folders.uid)
    if found is None:
        return []
    damaged = Problem("bad-record", path + ": damaged, or written by others", path)
    if found[1].st_mode & 0o022:
        raise damaged
    try:
        document = jsontext.loads(found[0].decode("utf-8"))
    except (ValueError, RecursionError):
        raise damaged from None
    rows = document.get("revisions") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(map(_is_revision, rows)):
        raise damaged
    return rows


def _is_revision(row: Any) -> bool:  # noqa: ANN401 - from a file
    """Whether a row has what this module looks at."""
    return (
        isinstance(row, dict)
        and type(row.get("number")) is int
        and isinstance(row.get("good"), bool)
        and isinstance(row.get("launch"), dict)
    )


def revisions(request: Json, folders: Folders, channel: Channel, progress: Callable[..., None]) -> Json:
    """The revisions of some servers, or of all that have any; `problem` says why those of one cannot be read.

    Raises:
        Problem: `bad-request`.
    """
    del channel, progress
    slugs = request.get("slugs")
    if slugs is None:
        slugs = _all(folders)
    if not isinstance(slugs, list) or not all(map(is_slug, slugs)):
        raise Problem("bad-request", "revisions: slugs is null or a list of servers' names")
    answer = []
    for slug in slugs:
        row: Json = {"slug": slug, "revisions": [], "problem": None}
        try:
            row["revisions"] = _read(folders.history(slug), folders)
        except Problem as problem:
            row["problem"] = str(problem)
        answer.append(row)
    return {"servers": answer}


def _all(folders: Folders) -> list[str]:
    """Every server with a history."""
    try:
        fd = open_folder(folders.state + "/history", folders.state, folders.uid, create=False)
    except Problem as problem:
        if problem.kind == "not-found":
            return []
        raise
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    return sorted(name[:-5] for name in names if name.endswith(".json") and is_slug(name[:-5]))
