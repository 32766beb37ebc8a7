"""One rule for what looks like a secret: the controller hides whatever the agent masks on a host."""

from __future__ import annotations

import pytest

from vmreconcile.agent.masks import is_secret_name, mask_text
from vmreconcile.core.fingerprints import SECRET_NAME, shown
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.showing import masked
from vmreconcile.vllm.signatures import explain

LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
SECRETS = (
    f"hf_{LETTERS}",
    f"sk-{LETTERS}",
    f"sk-proj_{LETTERS}",
    f"x=hf_{LETTERS}",
    "https://me:pass@host/x",
    "s3://:p@h",
)


@pytest.mark.parametrize("text", SECRETS)
def test_what_the_agent_masks_the_controller_hides(text: str) -> None:
    """In an environment and in a message alike."""
    assert mask_text(text) != text
    assert masked(text) != text
    assert shown("PLAIN", text) == HIDDEN
    assert LETTERS not in masked(text)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "api_key", "MY_SECRET", "Password", "PASSWD", "CREDENTIALS", "AUTHORITY", "HOME"]
)
def test_names_are_judged_alike(name: str) -> None:
    """A variable's name is secret for both or for none."""
    assert is_secret_name(name) == bool(SECRET_NAME.search(name))


def test_evidence_from_a_log_is_masked() -> None:
    """A log line that quotes a secret is shown without it."""
    line = f"vllm: error: unrecognized arguments: --key sk-{LETTERS} --token hf_{LETTERS}"
    found = explain([line], 2)
    assert found is not None
    assert LETTERS not in found.evidence + found.summary + found.remedy
