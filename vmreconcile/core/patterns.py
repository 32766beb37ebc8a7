"""Host patterns, with Ansible's meaning and order. Pure: a retry file is read by the function that the caller gives.

`select` names the hosts; `unmatched` tells which words of a pattern name nothing. Differences from Ansible: localhost
is a host only where the inventory says so, and a subscript out of range is an error that says so.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vmreconcile.errors import VmreconcileError
from vmreconcile.model.addresses import split_port
from vmreconcile.model.inventory import Inventory

Retry = Callable[[str], Sequence[str]]
"""Gives the lines of a file that a pattern names as `@FILE`."""

_WORD = re.compile(r"(?:[^\s:\[\]]|\[[^\]]*\])+")
_SUBSCRIPT = re.compile(r"(.+)\[(?:(-?[0-9]+)|([0-9]+)[:-]([0-9]*))\]")


class PatternError(VmreconcileError):
    """A pattern that means nothing: a broken regular expression, a subscript past the end, a file not allowed."""

    exit_code: ClassVar[int] = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """A word of a pattern that names no host and no group; `suggestion` is the nearest name, or ""."""

    word: str
    suggestion: str = ""

    def __str__(self) -> str:
        """Render for a person, with the nearest name."""
        hint = f"; did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{self.word!r} matches no host and no group{hint}"


def select(pattern: str, inventory: Inventory, *, retry: Retry | None = None) -> tuple[str, ...]:
    """Name the hosts of a pattern in Ansible's order, each once; words that match nothing are passed over.

    Words are separated by ',' or else ':'. They count in the order: plain ones (without any: all hosts), then `&both`,
    then `!without`. A word is a host or group, a glob, `~regex`, any of these but the regex with `[n]` or `[n:m]` (both
    ends included), or `@FILE`, each line of which is such a word.

    A pattern without a word, a file that names no host, a sign alone and a bracket without its partner are refused,
    where Ansible takes some of them for every host: an unset variable or an empty file must not widen what is acted on.

    Raises:
        PatternError: where a word cannot be understood.
    """
    chosen: list[str] = []
    for word in _in_order(_words(pattern, retry)):
        if word in inventory.hosts:
            chosen.append(word)
            continue
        matched = _matches(word[1:] if word[0] in "&!" else word, inventory)
        if word[0] in "&!":
            meant, wanted = set(matched), word[0] == "&"
            chosen = [host for host in chosen if (host in meant) is wanted]
        else:
            chosen.extend(matched)
    return tuple(dict.fromkeys(chosen))


def unmatched(
    pattern: str, inventory: Inventory, *, retry: Retry | None = None, suggest: bool = True
) -> tuple[Unmatched, ...]:
    """Tell which words match neither a host nor a group, in the order written, each with the nearest name.

    Looking for that name compares with every other; `suggest=False` leaves it out.

    Raises:
        PatternError: where a word cannot be understood.
    """
    names = [*inventory.groups, *inventory.hosts]
    found: dict[str, Unmatched] = {}
    for written in _words(pattern, retry):
        word = written[1:] if written[0] in "&!" else written
        name, _ = _split_subscript(word)
        if not word or word in inventory.hosts or any(_groups_and_hosts(name, inventory)):
            continue
        near = difflib.get_close_matches(name, names, n=1) if suggest else []
        found[word] = Unmatched(word=word, suggestion=near[0] + word.removeprefix(name) if near else "")
    return tuple(found.values())


def _words(pattern: str, retry: Retry | None) -> list[str]:
    """Split a pattern, and put the lines of a file in the place of its `@FILE`."""
    if re.search(r"[\[\]]", re.sub(r"\[[^\]]*\]", "", pattern)) and split_port(pattern) is None:
        raise PatternError(f"a bracket in {pattern!r} has no partner", remedy="Write it as in gpu[0:3].")
    words: list[str] = []
    from_file = False
    for word in _split(pattern):
        if word in {"!", "&", "@", "~"}:
            raise PatternError(f"{word!r} in {pattern!r} names nothing", remedy="Write a host or a group after it.")
        if not word.startswith("@"):
            words.append(word)
        elif retry is None:
            raise PatternError(f"{word!r}: a file of hosts is not allowed here", remedy="Write the hosts or a group.")
        else:
            from_file = True
            words.extend(line for line in (line.strip() for line in retry(word[1:])) if line)
    if from_file and all(word[0] in "&!" for word in words):
        raise PatternError(f"the file in {pattern!r} names no host", remedy="See what is in it; write all for every.")
    if not words:
        raise PatternError(f"the pattern {pattern!r} names no host", remedy="Write all for every host.")
    return words


def _split(pattern: str) -> Iterator[str]:
    """Split at ','; without one, at ':' and spaces, unless the whole is one name, address or `NAME:PORT`."""
    if "," in pattern:
        parts: Iterable[str] = pattern.split(",")
    elif split_port(pattern) is not None:
        parts = (pattern,)
    else:
        parts = _WORD.findall(pattern)
    return (part.strip() for part in parts if part.strip())


def _in_order(words: Sequence[str]) -> list[str]:
    """Put plain words first, then those with '&', then those with '!'."""
    plain = [word for word in words if word[0] not in "&!"] or ["all"]
    return [*plain, *(word for word in words if word[0] == "&"), *(word for word in words if word[0] == "!")]


def _matches(word: str, inventory: Inventory) -> Sequence[str]:
    """Name the hosts of one word without its sign; a host of several matching groups comes several times."""
    name, subscript = _split_subscript(word)
    hosts = _groups_and_hosts(name, inventory)[1] if name else []
    if not subscript or not hosts:
        return hosts
    first, last = subscript
    try:
        if not last:
            return [hosts[first]]
    except IndexError:
        raise PatternError(
            f"{word!r} asks for host {first} of {len(hosts)} (they count from 0)", remedy=f"{name!r} alone names them."
        ) from None
    return hosts[first:] if last == -1 else hosts[first : last + 1]


def _split_subscript(word: str) -> tuple[str, tuple[int, int | None] | None]:
    """Split `NAME[n]` into NAME and (n, None), `NAME[n:m]` into NAME and (n, m), where an absent m is -1."""
    found = None if word.startswith("~") else _SUBSCRIPT.fullmatch(word)
    if not found:
        return word, None
    if found[2]:
        return found[1], (int(found[2]), None)
    return found[1], (int(found[3]), int(found[4] or -1))


def _groups_and_hosts(name: str, inventory: Inventory) -> tuple[bool, list[str]]:
    """Match groups, and hosts where no group matched or the word may mean several names (a dot counts as that)."""
    if name[:1] == "~" or any(special in name for special in "?*["):
        expression = _expression(name)
        groups = [group for group in inventory.groups if expression.match(group)]
        hosts = [host for group in groups for host in inventory.hosts_of(group)]
        hosts.extend(host for host in inventory.hosts if expression.match(host))
        return bool(groups), hosts
    if name in inventory.groups:
        return True, [*inventory.hosts_of(name), *([name] if "." in name and name in inventory.hosts else [])]
    return False, [name] if name in inventory.hosts else []


def _expression(name: str) -> re.Pattern[str]:
    """Compile a regex (it matches from the start of a name) or a glob (it matches whole names)."""
    try:
        return re.compile(name[1:] if name.startswith("~") else fnmatch.translate(name))
    except re.error as error:
        raise PatternError(f"{name!r} is no regular expression: {error}", remedy="Mend it, or use a glob.") from None
