"""A secret can be used and not shown."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from dataclasses import dataclass

import pytest

from vmreconcile.model.secret import Secret

TEXT = "hf_SENTINELsentinelSENTINELsentinel00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A value that holds a secret."""

    secret: Secret


def test_revealed_on_demand_only() -> None:
    """`reveal` gives the text; printing, formatting and a traceback with it do not."""
    secret = Secret(TEXT)
    assert secret.reveal() == TEXT
    shown = f"{secret} {secret!r} {secret!s:>20} {[secret]} {Holder(secret=secret)} {'%s' % secret}"  # noqa: UP031
    shown += "".join(traceback.format_exception(ValueError(secret)))
    assert TEXT not in shown
    assert "(hidden)" in shown


@pytest.mark.parametrize("write", [json.dumps, pickle.dumps, copy.deepcopy])
def test_not_written_anywhere(write: object) -> None:
    """Neither json nor pickle takes it, and what they say does not show it."""
    with pytest.raises(TypeError) as caught:
        write({"x": Secret(TEXT)})  # type: ignore[operator]
    assert TEXT not in str(caught.value)


def test_compared_by_text() -> None:
    """Equal texts are equal secrets; a secret never equals the text itself; no text is false."""
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret("é\udcff")
    assert Secret(TEXT) != TEXT
    assert len({Secret(TEXT), Secret(TEXT)}) == 1
    assert not Secret("")
    assert Secret("x")
