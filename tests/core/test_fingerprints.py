"""Comparing environment values without moving them."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreconcile.agent import masks
from vmreconcile.core.fingerprints import fingerprint, shown
from vmreconcile.model.secret import HIDDEN

SALT = "00112233445566778899aabbccddeeff"
texts = st.text(st.characters(exclude_characters="\0"), max_size=40)


def test_fingerprint_is_a_salted_hmac() -> None:
    """Sixteen hex digits of HMAC-SHA256 over NAME=value, as docs/wire.md says."""
    expected = hmac.new(bytes.fromhex(SALT), b"HF_TOKEN=hf_x", hashlib.sha256).hexdigest()[:16]
    assert fingerprint(SALT, "HF_TOKEN", "hf_x") == expected


def test_another_salt_gives_another_fingerprint() -> None:
    """What one run saw tells the next one nothing."""
    assert fingerprint("00" * 16, "A", "1") != fingerprint("01" * 16, "A", "1")


@given(name=texts, value=texts)
def test_agent_makes_the_same_fingerprints(name: str, value: str) -> None:
    """Both ends of the wire agree on every name and value, broken text included."""
    assert masks.fingerprint(bytes.fromhex(SALT), name, value) == fingerprint(SALT, name, value)


PARTS = ("hf_", "sk-", "://", "user:word@", "a" * 16, "B9", "-", "_", " ", "é", "/", "?", '"', "x:", "@", "\n")


@given(value=st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
def test_both_ends_hide_the_same_values(value: str) -> None:
    """What the agent keeps back, the controller hides, and the other way round."""
    for name in ("VLLM_LOGGING_LEVEL", "MY_API_KEY"):
        assert (masks.value_or_none(name, value) is None) == (shown(name, value) == HIDDEN or value == HIDDEN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "x"),
        ("VLLM_API_KEY", ""),
        ("db_password", "x"),
        ("AWS_SECRET", "x"),
        ("X_CREDENTIALS", "x"),
        ("BASIC_AUTH", "x"),
        ("A", "hf_" + "a" * 30),
        ("A", "see sk-" + "a" * 30),
        ("A", "https://user:word@host/x"),
    ],
)
def test_secrets_are_hidden(name: str, value: str) -> None:
    """By the variable's name, or by what the value looks like."""
    assert shown(name, value) == HIDDEN


@pytest.mark.parametrize("value", ["INFO", "", "hf_transfer", "https://host/x", "sk-learn", "a@b"])
def test_plain_values_are_shown(value: str) -> None:
    """What is no secret stays readable."""
    assert shown("VLLM_LOGGING_LEVEL", value) == value


def test_nothing_shows_as_nothing() -> None:
    """A variable that is not there is not 'hidden'."""
    assert shown("HF_TOKEN", None) is None
