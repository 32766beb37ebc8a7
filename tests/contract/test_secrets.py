"""One rule for what looks like a secret: the controller hides whatever the agent masks on a host."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreconcile.agent.masks import is_secret_name, mask_text
from vmreconcile.core.fingerprints import shown
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.showing import SECRET_NAME, masked
from vmreconcile.vllm.signatures import explain

LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
SECRETS = (
    f"hf_{LETTERS}",
    f"sk-{LETTERS}",
    f"sk-proj_{LETTERS}",
    f"x=hf_{LETTERS}",
    "https://me:pass@host/x",
    "s3://:p@h",
    f"\x1b[31mhf_{LETTERS}\x1b[0m",
    f"\\nhf_{LETTERS}",
    f"%3Dhf_{LETTERS}",
    f"token_hf_{LETTERS}",
    f"u002dhf_{LETTERS}",
    f"-hf_{LETTERS}",
    f"api_org_{LETTERS}",
    f"x_api_org_{LETTERS}",
    f"\x1b[0;1msk-{LETTERS}",
    f"\\tsk-{LETTERS}",
    f"%3Dsk-{LETTERS}",
    f"https://me:pass/{LETTERS}@host/x",
    f"https://me:pass?{LETTERS}#@host",
    f"https://me:{LETTERS}/@host",
)
PLAIN = (
    "disk-usage-statistics-of-today",
    "half_a_word_and_another",
    "http://host:8000/models/org@main",
    "http://[::1]:8000/models/org@main",
    "https://host/models/org@main",
    "mail me@host",
)
PARTS = (
    "hf_",
    "sk-",
    "api_org_",
    "://",
    ":",
    "/",
    "@",
    "?",
    "%3D",
    "\\n",
    "\x1b[1m",
    " ",
    '"',
    "_",
    "-",
    "a",
    "7",
    LETTERS,
)


@pytest.mark.parametrize("text", SECRETS)
def test_what_the_agent_masks_the_controller_hides(text: str) -> None:
    """In an environment and in a message alike."""
    assert mask_text(text) != text
    assert masked(text) != text
    assert shown("PLAIN", text) == HIDDEN
    assert LETTERS not in masked(text)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    """Words and addresses without a password are shown by both."""
    assert (mask_text(text), masked(text)) == (text, text)


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
def test_no_text_is_masked_by_the_agent_alone(text: str) -> None:
    """Whatever stands around a token or password: the controller hides what the agent masks, and both let go of it."""
    assert masked(text) != text or mask_text(text) == text
    assert f"hf_{LETTERS}" not in mask_text(text)
    assert f"hf_{LETTERS}" not in masked(text)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "api_key", "MY_SECRET", "Password", "PASSWD", "CREDENTIALS", "AUTHORITY", "HOME"]
)
def test_names_are_judged_alike(name: str) -> None:
    """A variable's name is secret for both or for none."""
    assert is_secret_name(name) == bool(SECRET_NAME.search(name))


@pytest.mark.parametrize("piece", ["://a:b", "@://a:b", "://:::::::", "hf_", "://a/"])
def test_no_hosts_text_keeps_the_controller_busy(piece: str) -> None:
    """A megabyte of addresses that almost have passwords, as a host may call a program or a unit: it took an hour."""
    begun = time.process_time()
    text = "x" + piece * (400_000 // len(piece))
    assert masked(f"{text} ://me:{LETTERS}@") == f"{masked(text)} ://***@"
    assert time.process_time() - begun < 5


def test_evidence_from_a_log_is_masked() -> None:
    """A log line that quotes a secret is shown without it."""
    line = f"vllm: error: unrecognized arguments: --key sk-{LETTERS} --token hf_{LETTERS}"
    found = explain([line], 2)
    assert found is not None
    assert LETTERS not in found.evidence + found.summary + found.remedy
