"""What threads share while many hosts are reached at once: nothing that one of them changes under another."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmreconcile.effects import ship
from vmreconcile.effects.ssh import Run
from vmreconcile.effects.ssh_link import Link

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class NoRoute:
    """A route that is never used."""

    where = "nowhere"
    stream = None

    def failure(self) -> str:
        """Nothing failed."""
        return ""

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("eager_threads")
def test_connections_made_at_once_share_a_configuration_that_stays_as_it_is(tmp_path: Path) -> None:
    """Fabric's configuration is one for all hosts; a connection that changed it would pull it from under the others."""
    run = Run(home=tmp_path, timeout=5.0, accept_new=False, environ={})
    before = dict(run.fabric_config)

    def make(number: int) -> str:
        link = Link(run, run.lookup(f"127.0.0.{1 + number % 250}", "someone", 22), NoRoute())
        try:
            return str(link._fabric.user)
        finally:
            link.close()

    with ThreadPoolExecutor(16) as pool:
        users = list(pool.map(make, range(300)))

    assert users == ["someone"] * 300
    assert dict(run.fabric_config) == before
    assert run.fabric_config._modifications == {}


@pytest.mark.usefixtures("eager_threads")
def test_the_archive_is_built_once_however_many_ask_at_once() -> None:
    """Twenty threads that each pack the agent would spend half a second on the same bytes."""
    ship._agent_archive.cache_clear()

    with ThreadPoolExecutor(16) as pool:
        archives = list(pool.map(lambda _: ship.agent_archive(), range(16)))

    assert len({id(archive) for archive in archives}) == 1
