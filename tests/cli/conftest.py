"""What the command line's tests share: a desk with fake hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.desk import Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """An inventory of two hosts, one model."""
    return make_desk(tmp_path, capsys, monkeypatch)
