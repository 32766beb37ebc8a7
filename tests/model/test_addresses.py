"""The grammar of host names and ranges; what it does in inventories is in the differential tests."""

from __future__ import annotations

import pytest

from vmreconcile.model.addresses import RangeError, expand_ranges, split_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu1", ("gpu1", None)),
        ("gpu1:2222", ("gpu1", 2222)),
        ("gpu[01:16:2].example.com:22", ("gpu[01:16:2].example.com", 22)),
        ("[gpu1]:22", ("gpu1", 22)),
        ("10.0.0.1:22", ("10.0.0.1", 22)),
        ("[fe80::1]:22", ("fe80::1", 22)),
        ("fe80::1", ("fe80::1", None)),
        ("1:2:3:4:5:6:7:8", ("1:2:3:4:5:6:7:8", None)),
        ("::", ("::", None)),
        ("::ffff:10.0.0.1", ("::ffff:10.0.0.1", None)),
        ("größe", ("größe", None)),
        ("a_b", ("a_b", None)),
        ("1:2:3", None),
        ("-gpu:22", None),
        ("gpu-", None),
        ("a b", None),
        ("gpu[a:zz]", None),
        ("", None),
    ],
)
def test_split_port(text: str, expected: tuple[str, int | None] | None) -> None:
    """A port is split off a valid name or address only."""
    assert split_port(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu1", "gpu1"),
        ("g[1:3]", "g1 g2 g3"),
        ("g[08:11]", "g08 g09 g10 g11"),
        ("g[01:10:4]x", "g01x g05x g09x"),
        ("g[a:c]", "ga gb gc"),
        ("g[a:e:2]", "ga gc ge"),
        ("g[Y:Z]", "gY gZ"),
        ("[1:2][a:b]", "1a 1b 2a 2b"),
        ("g[:2]", "g0 g1 g2"),
        ("g[3:1]", ""),
    ],
)
def test_expand_ranges(text: str, expected: str) -> None:
    """Numbers keep their zeros, letters their alphabet, the last range runs fastest."""
    assert " ".join(expand_ranges(text)) == expected


@pytest.mark.parametrize("text", ["g[", "g[1", "g[1]", "g[1:]", "g[01:100]", "g[c:a]", "g[1:3:0]", "g[a:1]", "g[x:yz]"])
def test_what_is_no_range_is_refused(text: str) -> None:
    """With the range in the message."""
    with pytest.raises(RangeError, match=r"\["):
        expand_ranges(text)
