"""Host patterns: order, words that match nothing, what is refused; Ansible's answers are in the differential tests."""

from __future__ import annotations

import pytest

from vmreconcile.core.patterns import PatternError, Unmatched, select, unmatched
from vmreconcile.model.inventory import Group, Host, Inventory


@pytest.fixture
def inventory() -> Inventory:
    """Two groups of GPUs, one of CPUs, and a host of its own."""
    groups = {
        "all": Group(name="all", children=("ungrouped", "gpu", "cpu")),
        "ungrouped": Group(name="ungrouped", hosts=("lone",)),
        "gpu": Group(name="gpu", children=("h100",), hosts=("gpu2", "gpu1")),
        "h100": Group(name="h100", hosts=("gpu3", "gpu1")),
        "cpu": Group(name="cpu", hosts=("c1", "gpu1")),
    }
    names = ("lone", "gpu1", "gpu2", "gpu3", "c1")
    return Inventory(groups=groups, hosts={name: Host(name=name) for name in names})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("all", "lone gpu2 gpu1 c1 gpu3"),
        ("gpu", "gpu2 gpu1 gpu3"),
        ("cpu:gpu", "c1 gpu1 gpu2 gpu3"),
        ("cpu,gpu", "c1 gpu1 gpu2 gpu3"),
        (" cpu , !gpu ", "c1"),
        ("!gpu:cpu", "c1"),
        ("gpu:&cpu", "gpu1"),
        ("!gpu", "lone c1"),
        ("&cpu", "gpu1 c1"),
        ("gpu[0]", "gpu2"),
        ("gpu[-1]", "gpu3"),
        ("gpu[1:2]", "gpu1 gpu3"),
        ("gpu[1:]", "gpu1 gpu3"),
        ("h*", "gpu3 gpu1"),
        ("gpu?", "gpu1 gpu2 gpu3"),
        ("~gpu[23]", "gpu2 gpu3"),
        ("nobody", ""),
        ("nobody[3]", ""),
        ("localhost", ""),
        ("gpu3:gpu", "gpu3 gpu2 gpu1"),
    ],
)
def test_a_pattern_names_hosts_in_order(inventory: Inventory, pattern: str, expected: str) -> None:
    """The words of a pattern in turn, each host once."""
    assert " ".join(select(pattern, inventory)) == expected


def test_a_file_stands_for_its_lines(inventory: Inventory) -> None:
    """`@FILE` is read by the caller's function; empty lines do not count."""
    files = {"failed.retry": ("gpu3", "", "  c1 ", "!gpu1")}
    assert select("@failed.retry,gpu1", inventory, retry=files.__getitem__) == ("gpu3", "c1")
    assert unmatched("@more", inventory, retry={"more": ["gpuu"]}.__getitem__) == (
        Unmatched(word="gpuu", suggestion="gpu"),
    )


@pytest.mark.parametrize("lines", [(), ("", "  "), ("!gpu1",), ("&gpu",)])
@pytest.mark.parametrize("pattern", ["@left", "@left,!gpu3", "@left,&gpu"])
def test_a_file_that_names_no_host_is_not_every_host(
    inventory: Inventory, pattern: str, lines: tuple[str, ...]
) -> None:
    """An emptied retry file must not widen what is acted on; with a host beside it, it narrows or adds."""
    with pytest.raises(PatternError, match="names no host"):
        select(pattern, inventory, retry={"left": lines}.__getitem__)
    assert select(f"gpu2,{pattern}", inventory, retry={"left": lines}.__getitem__) == ("gpu2",)
    assert select("!lone@x:cpu", inventory) == ("c1", "gpu1")


@pytest.mark.parametrize(
    ("pattern", "word"),
    [("gpu[3]", "gpu[3]"), ("gpu[-4]", "gpu[-4]"), ("~(", "~("), ("gpu:@x", "@x")]
    + [(text, repr(text)) for text in ("", " ", ",", ":", "gpu[", "gpu]", "[", "~[", "gpu,cpu[", "gpu[1")]
    + [(f"gpu:{sign}", repr(sign)) for sign in "!&~"],
)
def test_what_means_nothing_is_refused(inventory: Inventory, pattern: str, word: str) -> None:
    """A subscript past the end, a broken expression, a file where none is allowed, and what an unset variable leaves.

    With the word and a remedy.
    """
    with pytest.raises(PatternError) as caught:
        select(pattern, inventory)
    assert word in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code == 5


def test_words_that_match_nothing_are_told_with_the_nearest_name(inventory: Inventory) -> None:
    """Signs and subscripts do not hide the name."""
    found = unmatched("gpuu:!h10:&cpu:zzz:gp[0:1]:gpu1:x*:~y", inventory)
    assert [(word.word, word.suggestion) for word in found] == [
        ("gpuu", "gpu"),
        ("h10", "h100"),
        ("zzz", ""),
        ("gp[0:1]", "gpu[0:1]"),
        ("x*", ""),
        ("~y", ""),
    ]
    assert str(found[0]) == "'gpuu' matches no host and no group; did you mean gpu?"


def test_an_empty_group_is_matched() -> None:
    """A group without hosts is no mistyped name."""
    inventory = Inventory(groups={"all": Group(name="all"), "empty": Group(name="empty")})
    assert unmatched("empty:all", inventory) == ()
    assert select("empty", inventory) == ()
