"""known_hosts files, with ssh-keygen as the oracle of who is known in them."""

from __future__ import annotations

import base64
import subprocess
import threading
from pathlib import Path

import pytest

from vmreconcile.effects.known_hosts import KnownHosts, fingerprint

ONE = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
TWO = "AAAAC3NzaC1lZDI1NTE5AAAAIP8BAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"

FILE = f"""\
# a comment
gpu1,10.0.0.1 ssh-ed25519 {ONE} someone@somewhere
[gpu2]:2222 ssh-ed25519 {ONE}
*.example.org,!bad.example.org ssh-ed25519 {TWO}
@revoked gpu3 ssh-ed25519 {ONE}
@cert-authority *.ca.example ssh-ed25519 {TWO}
broken line
gpu4 ssh-ed25519 not-base64!
GPU5 ssh-ed25519 {TWO}
"""


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("gpu1", [2]),
        ("10.0.0.1", [2]),
        ("gpu2", []),
        ("[gpu2]:2222", [3]),
        ("a.example.org", [4]),
        ("bad.example.org", []),
        ("gpu3", [5]),
        ("x.ca.example", [6]),
        ("gpu4", []),
        ("gpu5", [9]),
    ],
)
def test_lookup(tmp_path: Path, name: str, places: list[int]) -> None:
    """Names, ports, patterns, negation and markers; each key with the line it stands in."""
    path = tmp_path / "known_hosts"
    path.write_text(FILE)
    keys = KnownHosts().keys(name, (str(path), str(tmp_path / "absent")))
    assert [key.place for key in keys] == [f"{path}:{place}" for place in places]


def test_hashed_by_ssh_keygen(tmp_path: Path) -> None:
    """Entries hashed by ssh-keygen are found; ours are found by ssh-keygen."""
    path = tmp_path / "known_hosts"
    path.write_text(f"gpu1 ssh-ed25519 {ONE}\n[gpu2]:2222 ssh-ed25519 {ONE}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    assert "gpu1" not in path.read_text()
    hosts = KnownHosts()
    assert len(hosts.keys("gpu1", (str(path),))) == len(hosts.keys("[gpu2]:2222", (str(path),))) == 1
    assert hosts.keys("gpu2", (str(path),)) == []
    hosts.record("[gpu9]:99", "ssh-ed25519", base64.b64decode(TWO), str(path), hashed=True)
    assert "gpu9" not in path.read_text()
    subprocess.run(["ssh-keygen", "-F", "[gpu9]:99", "-f", str(path)], check=True, capture_output=True)


def test_record_creates_what_is_missing(tmp_path: Path) -> None:
    """A first key makes folder and file, closed to others; a last line without its end is completed first."""
    path = tmp_path / ".ssh/known_hosts"
    hosts = KnownHosts()
    blob = base64.b64decode(ONE)
    assert [key.blob for key in hosts.record("gpu1", "ssh-ed25519", blob, str(path))] == [blob]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    path.write_text(path.read_text().rstrip("\n"))
    hosts.record("gpu2", "ssh-ed25519", blob, str(path))
    assert path.read_text() == f"gpu1 ssh-ed25519 {ONE}\ngpu2 ssh-ed25519 {ONE}\n"
    assert hosts.keys("gpu2", (str(path),))[0].place == f"{path}:2"


def test_record_never_adds_to_a_known_name(tmp_path: Path) -> None:
    """Whoever comes second learns which key the first recorded."""
    path = tmp_path / "known_hosts"
    hosts = KnownHosts()
    hosts.record("gpu1", "ssh-ed25519", base64.b64decode(ONE), str(path))
    known = hosts.record("gpu1", "ssh-ed25519", base64.b64decode(TWO), str(path))
    assert [key.blob for key in known] == [base64.b64decode(ONE)]
    assert path.read_text().count("\n") == 1


def test_record_from_many_threads(tmp_path: Path) -> None:
    """Parallel recording, by stores that do not know of one another, loses and garbles nothing."""
    path = tmp_path / "known_hosts"
    blob = base64.b64decode(ONE)
    threads = [
        threading.Thread(target=KnownHosts().record, args=(f"gpu{number % 40}", "ssh-ed25519", blob, str(path)))
        for number in range(80)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_text().splitlines()) == sorted(f"gpu{number} ssh-ed25519 {ONE}" for number in range(40))


def test_fingerprint_is_opensshs(tmp_path: Path) -> None:
    """The fingerprint reads as ssh-keygen prints it."""
    (tmp_path / "k.pub").write_text(f"ssh-ed25519 {ONE}\n")
    done = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "k.pub")], check=True, capture_output=True)
    assert fingerprint(base64.b64decode(ONE)) == done.stdout.decode().split()[1]
