"""What tests of the wire share: an sshd, and ways to reach it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.lab.sshd import Sshd, running
from tests.lab.standin import SOURCE
from vmreconcile.effects.ship import Archive
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.model.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One sshd for all tests that leave it as it is; it has host keys of three types."""
    with running(tmp_path_factory.mktemp("sshd"), host_keys=("ed25519", "ecdsa", "rsa")) as server:
        yield server


@pytest.fixture
def sshd(shared_sshd: Sshd) -> Sshd:
    """The shared sshd; the person's known_hosts and configuration are as new."""
    shared_sshd.know(f"{shared_sshd.name} {shared_sshd.public()}")
    shared_sshd.configure("")
    return shared_sshd


@pytest.fixture
def connection(sshd: Sshd) -> Connection:
    """A way to the sshd that works."""
    return Connection(host="gpu1", address="127.0.0.1", port=sshd.port, private_key_file=str(sshd.key))


@pytest.fixture
def options(sshd: Sshd) -> TransportOptions:
    """The person at the controller: no agent, and the home that knows the sshd."""
    return TransportOptions(home=sshd.home, environ={"PATH": "/usr/bin:/bin"})


@pytest.fixture(scope="session")
def standin() -> Archive:
    """The stand-in for the agent."""
    content = bytes(range(256)) * 4000
    return Archive(content=content, sha256=hashlib.sha256(content).hexdigest(), bootstrap=SOURCE)
