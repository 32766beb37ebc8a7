"""The Hub of the laboratory, asked by the real huggingface_hub."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest

from tests.lab.hub import COMMIT, Gate, Hub, Repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\0" * 5000}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub with an open, a gated and a private repository; `hf_in` is let in everywhere, `hf_out` nowhere."""
    with Hub() as running:
        running.tokens |= {"hf_in": "ada", "hf_out": "bob"}
        granted = frozenset({"hf_in"})
        running.repositories |= {
            "acme/open": Repository(files=FILES),
            "acme/gated": Repository(files=FILES, gate=Gate.GATED, granted=granted),
            "acme/private": Repository(files=FILES, gate=Gate.PRIVATE, granted=granted),
        }
        yield running


def ask(hub: Hub, home: Path, expression: str, token: str = "") -> str:
    """Evaluate `expression` with huggingface_hub in a process of its own; give its value or its exception's name."""
    program = (
        "import json, huggingface_hub as h\n"
        "try:\n"
        f"    print(json.dumps({expression}))\n"
        "except Exception as error:\n"
        "    status = getattr(getattr(error, 'response', None), 'status_code', '')\n"
        "    print(json.dumps(f'{type(error).__name__} {status}'.strip()))\n"
    )
    env = hub.environ() | {"HOME": str(home), "PATH": "/usr/bin:/bin"} | ({"HF_TOKEN": token} if token else {})
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("repository", "token", "expected"),
    [
        ("acme/open", "", None),
        ("acme/open", "hf_out", None),
        ("acme/open", "hf_mistyped", "HfHubHTTPError 401"),
        ("acme/gated", "hf_in", None),
        ("acme/gated", "hf_out", "GatedRepoError 403"),
        ("acme/gated", "", "GatedRepoError 401"),
        ("acme/private", "hf_in", None),
        ("acme/private", "hf_out", "RepositoryNotFoundError 404"),
        ("acme/private", "", "RepositoryNotFoundError 401"),
        ("acme/nothing", "hf_in", "RepositoryNotFoundError 404"),
    ],
)
def test_auth_check(hub: Hub, tmp_path: Path, repository: str, token: str, expected: str | None) -> None:
    """The client tells an open gate, a shut one and a missing repository apart, as with the real Hub."""
    assert ask(hub, tmp_path, f"h.auth_check({repository!r})", token) == expected
    assert hub.requests[-1].token == (token or None)


def test_whoami(hub: Hub, tmp_path: Path) -> None:
    """A known token has a name; an unknown one is refused."""
    assert ask(hub, tmp_path, "h.whoami()['name']", "hf_in") == "ada"
    assert ask(hub, tmp_path, "h.whoami()['name']", "hf_mistyped") == "HfHubHTTPError 401"


def test_whoami_of_old(hub: Hub) -> None:
    """The endpoint that the Hub's client asked before `whoami-v2`, and many a script still asks."""
    address = f"{hub.url}/api/whoami"
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Authorization": "Bearer hf_in"})) as answer:
        assert json.load(answer) == {"user": "ada", "orgs": []}
    for headers in ({"Authorization": "Bearer hf_mistyped"}, {}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(address, headers=headers))
        with caught.value as refusal:
            assert refusal.code == HTTPStatus.UNAUTHORIZED


def test_a_snapshot_is_downloaded_whole(hub: Hub, tmp_path: Path) -> None:
    """What is downloaded is what the repository holds, under its commit."""
    folder = ask(hub, tmp_path, "h.snapshot_download('acme/gated')", "hf_in")
    assert folder.endswith(f"/snapshots/{COMMIT}")
    found = ask(
        hub, tmp_path, f"{{p.name: p.read_bytes().hex() for p in __import__('pathlib').Path({folder!r}).iterdir()}}"
    )
    assert found == {name: data.hex() for name, data in FILES.items()}


def test_about_a_gated_model_anyone_may_read(hub: Hub, tmp_path: Path) -> None:
    """Without a token a gated model's description is there, its files are not."""
    assert ask(hub, tmp_path, "h.model_info('acme/gated').gated") == "manual"
    assert ask(hub, tmp_path, "h.hf_hub_download('acme/gated', 'config.json')") == "GatedRepoError 401"


def test_a_missing_file_is_not_a_missing_repository(hub: Hub, tmp_path: Path) -> None:
    """The client names the file as missing."""
    error = ask(hub, tmp_path, "h.hf_hub_download('acme/open', 'none.json')")
    assert error == "RemoteEntryNotFoundError 404"


def test_granting_opens_the_gate(hub: Hub, tmp_path: Path) -> None:
    """A token that is granted access later gets in then."""
    hub.grant("acme/gated", "hf_out")
    assert ask(hub, tmp_path, "h.auth_check('acme/gated')", "hf_out") is None


def test_an_ill_hub_answers_with_its_failure(hub: Hub, tmp_path: Path) -> None:
    """Every request gets the status that was set."""
    hub.failure = HTTPStatus.SERVICE_UNAVAILABLE
    assert ask(hub, tmp_path, "h.auth_check('acme/open')") == "HfHubHTTPError 503"
