"""Writing on a host: whole or not at all, nobody else's way in, plain errors; on real file systems."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.conftest import SLUG, wait_until
from tests.agent.driver import Agent, Refused

TOKEN = "hf_SENTINELsentinelSENTINELsentinel"


def env_step(root: Path, *entries: list[object]) -> dict[str, object]:
    """The step that writes the server's env file."""
    return {"step": "write-env", "path": f"{root}/config/env/{SLUG}.env", "entries": list(entries)}


def everything(root: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_env_file_is_private_and_only_it_holds_the_secret(agent: Agent, tmp_path: Path) -> None:
    """0600 in folders of 0700; the token is in that file and in no other, nor in any answer or in the agent's /proc."""
    agent.steps(env_step(tmp_path, ["A", "1"], ["HF_TOKEN", {"secret": "t"}]), secrets={"t": TOKEN})
    path = tmp_path / "config/env" / f"{SLUG}.env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)} == {0o700}
    holding = [name for name in everything(tmp_path) if TOKEN.encode() in (tmp_path / name).read_bytes()]
    assert holding == [f"config/env/{SLUG}.env"]
    seen = agent.observe()
    assert TOKEN not in str(seen)
    env = seen["servers"][0]["env_file"]["env"]
    assert env["HF_TOKEN"]["value"] is None
    assert len(env["HF_TOKEN"]["fingerprint"]) == 16
    assert env["A"]["value"] == "1"
    for name in ("cmdline", "environ"):
        assert TOKEN.encode() not in Path(f"/proc/{agent.process.pid}/{name}").read_bytes()


def test_unchanged_and_kept(agent: Agent, tmp_path: Path) -> None:
    """The same again changes nothing; `keep` takes over what is there; a wrong mode is mended."""
    step = env_step(tmp_path, ["A", "1"], ["HF_TOKEN", {"secret": "t"}])
    assert agent.steps(step, secrets={"t": TOKEN})[0]["changed"] is True
    assert agent.steps(step, secrets={"t": TOKEN})[0]["changed"] is False
    kept = env_step(tmp_path, ["A", "1"], ["GONE", {"keep": True}], ["HF_TOKEN", {"keep": True}])
    assert agent.steps(kept)[0]["changed"] is False
    path = tmp_path / "config/env" / f"{SLUG}.env"
    path.chmod(0o644)
    assert "mode 0644" in agent.server(SLUG)["env_file"]["problem"]
    assert agent.steps(kept)[0]["changed"] is True
    assert agent.server(SLUG)["env_file"]["problem"] is None


def test_a_secret_that_was_not_sent_is_named(agent: Agent, tmp_path: Path) -> None:
    """A missing secret is an error, and the old file stays."""
    agent.steps(env_step(tmp_path, ["A", "1"]))
    with pytest.raises(Refused) as refused:
        agent.steps(env_step(tmp_path, ["HF_TOKEN", {"secret": "t"}]))
    assert refused.value.kind == "bad-request"
    assert "HF_TOKEN" in str(refused.value)
    assert list(agent.server(SLUG)["env_file"]["env"]) == ["A"]


@pytest.mark.parametrize("entry", [["A B", "x"], ["", "x"], ["1A", "x"], ["A", "nul\0"], ["A", "\ud800"], ["A=B", "x"]])
def test_what_no_environment_can_hold_is_refused(agent: Agent, tmp_path: Path, entry: list[object]) -> None:
    """Bad names and values are refused by name, and nothing is written."""
    with pytest.raises(Refused) as refused:
        agent.steps(env_step(tmp_path, entry))
    assert refused.value.kind == "bad-env"
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/etc/systemd/system/ssh.service", "{root}/config/../x", "{root}/config", "{root}/other/x", "x"],
)
def test_only_our_own_paths(agent: Agent, tmp_path: Path, path: str) -> None:
    """No step writes or removes anything outside our folders and units."""
    place = path.format(root=tmp_path)
    for step in (
        {"step": "write-file", "path": place, "content": "x", "mode": 0o644},
        {"step": "remove-file", "path": place},
        {"step": "write-env", "path": place, "entries": []},
    ):
        with pytest.raises(Refused) as refused:
            agent.steps(step)
        assert refused.value.kind == "not-ours"
    assert Path("/etc/passwd").read_text().startswith("root:")


def test_files_are_written_removed_and_synced_in_place(agent: Agent, tmp_path: Path) -> None:
    """Content and mode arrive; a leftover of a killed run is no obstacle; removing twice is no error."""
    path = tmp_path / "state/extra/x.txt"
    step = {"step": "write-file", "path": str(path), "content": "é\n\0", "mode": 0o640}
    agent.steps(step)
    (path.parent / ".x.txt.new").write_text("left over")
    agent.steps({**step, "content": "new"})
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)
    assert everything(path.parent) == ["x.txt"]
    remove = {"step": "remove-file", "path": str(path)}
    assert [agent.steps(remove)[0]["changed"] for _ in range(2)] == [True, False]
    with pytest.raises(Refused):
        agent.steps({**step, "mode": 0o666})


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 384 KiB, of which the agent takes most."""
    place = tmp_path / "tiny"
    place.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=384k,mode=700", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def filled(place: Path) -> None:
    """Use up the last byte."""
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            return


@pytest.mark.system
def test_a_full_disk(tiny: Path, tmp_path: Path) -> None:
    """The error says so, the old file is whole, no part of the new one is left."""
    agent = Agent(tiny)
    agent.steps(env_step(tiny, ["A", "old"]))
    filled(tiny)
    path = f"{tiny}/config/env/{SLUG}.env"
    with pytest.raises(Refused) as refused:
        agent.steps(env_step(tiny, ["A", "new" * 4000]))
    assert (refused.value.kind, refused.value.path) == ("disk-full", path)
    assert '"old"' in Path(path).read_text()
    assert everything(tiny / "config") == [f"env/{SLUG}.env"]
    (tiny / "filler").unlink()
    agent.steps(env_step(tiny, ["A", "new" * 4000]))
    assert agent.close() == 0


@pytest.mark.system
def test_a_read_only_file_system(tiny: Path) -> None:
    """The agent runs from memory, observes, and says plainly that nothing can be written."""
    subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
    for _ in range(2):
        agent = Agent(tiny)
        folders = agent.observe()["folders"]
        assert folders["writable"] is False
        with pytest.raises(Refused) as refused:
            agent.steps(env_step(tiny, ["A", "1"]))
        assert refused.value.kind == "read-only"
        assert agent.close() == 0
        assert agent.sent_archive == 1


def test_a_link_in_place_of_the_env_folder_is_refused(agent: Agent, tmp_path: Path) -> None:
    """Whoever plants a link cannot make us write a token elsewhere."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (tmp_path / "config").mkdir(mode=0o700)
    (tmp_path / "config/env").symlink_to(trap)
    with pytest.raises(Refused) as refused:
        agent.steps(env_step(tmp_path, ["HF_TOKEN", {"secret": "t"}]), secrets={"t": TOKEN})
    assert (refused.value.kind, refused.value.path) == ("unsafe-path", f"{tmp_path}/config/env")
    assert everything(trap) == []


@pytest.mark.parametrize("ending", ["env", "token"])
def test_a_folder_in_place_of_a_file_is_that_servers_problem(agent: Agent, tmp_path: Path, ending: str) -> None:
    """Not the whole host's."""
    agent.steps(env_step(tmp_path, ["A", "1"]))
    folder = tmp_path / "config/env"
    (folder / "other.env").write_bytes((folder / f"{SLUG}.env").read_bytes())
    (folder / "other.env").chmod(0o600)
    (folder / f"{SLUG}.{ending}").unlink(missing_ok=True)
    (folder / f"{SLUG}.{ending}").mkdir()
    assert agent.server("other")["env_file"]["problem"] is None
    assert f"{SLUG}.{ending}: not a regular file" in agent.server(SLUG)["env_file"]["problem"]


def test_a_link_in_place_of_the_env_file_is_replaced_not_followed(agent: Agent, tmp_path: Path) -> None:
    """The link is seen as a problem, and the write goes to a new file of ours; so it does for the temporary name."""
    agent.steps(env_step(tmp_path, ["A", "1"]))
    path = tmp_path / "config/env" / f"{SLUG}.env"
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    path.symlink_to(victim)
    (path.parent / f".{path.name}.new").symlink_to(victim)
    assert agent.server(SLUG)["env_file"]["problem"] is not None
    agent.steps(env_step(tmp_path, ["A", "1"]))
    assert victim.read_text() == "untouched"
    assert not path.is_symlink()


@pytest.mark.parametrize("how", ["group", "others", "owner"])
def test_a_folder_that_others_control_is_refused(agent: Agent, tmp_path: Path, how: str) -> None:
    """A state folder that somebody else owns or may write proves nothing and gets nothing."""
    (tmp_path / "state/servers").mkdir(mode=0o700, parents=True)
    record = tmp_path / "state/servers" / f"{SLUG}.json"
    record.write_text("{}")
    folder = tmp_path / "state"
    if how == "owner":
        os.chown(folder, 12345, 12345)
    else:
        folder.chmod(0o770 if how == "group" else 0o707)
    seen = agent.observe()
    assert seen["servers"] == []
    assert str(folder) in seen["folders"]["problem"]
    with pytest.raises(Refused) as refused:
        agent.steps({"step": "write-record", "slug": SLUG, "record": {}})
    assert (refused.value.kind, refused.value.path) == ("unsafe-path", str(folder))


@pytest.mark.parametrize("how", ["link", "link-in-tmp", "owner", "group", "target"])
def test_a_way_that_others_control_is_refused(tmp_path: Path, how: str) -> None:
    """Whoever owns or may write a folder above ours, or a link on the way, could put another folder there."""
    there, way = tmp_path / "there", tmp_path / "way"
    below = there / "deep" / "d"
    below.mkdir(mode=0o755, parents=True)
    if how in {"link", "link-in-tmp"}:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o1777 if how == "link-in-tmp" else 0o777)
        way = tmp_path / "open/way"
    way.symlink_to(there)
    if how == "link-in-tmp":
        os.chown(way, 12345, 12345, follow_symlinks=False)
    elif how == "owner":
        os.chown(there, 12345, 12345)
    elif how == "group":
        there.chmod(0o775)
    elif how == "target":
        (there / "deep").chmod(0o777)
    agent = Agent(way / "deep/d/x/y")
    seen = agent.observe()
    assert re.search("belongs to uid 12345|others could replace", seen["folders"]["problem"])
    with pytest.raises(Refused) as refused:
        agent.steps({"step": "write-record", "slug": SLUG, "record": {}})
    assert refused.value.kind == "unsafe-path"
    assert agent.close() == 0
    assert [*below.iterdir()] == []


def test_a_way_through_links_of_ours_is_taken(tmp_path: Path) -> None:
    """Links that root or the user made, relative and absolute ones, also in a folder such as /tmp."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/up").symlink_to("../b/./c")
    (tmp_path / "open/way").symlink_to(tmp_path / "a/b")
    agent = Agent(tmp_path / "open/way/up/d")
    assert agent.observe()["folders"]["problem"] is None
    agent.steps({"step": "write-record", "slug": SLUG, "record": {}})
    assert agent.close() == 0
    found = everything(tmp_path / "a/b/c/d/state")
    assert f"servers/{SLUG}.json" in found
    assert f"agent/{agent.digest}.pyz" in found


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """As the kernel has it."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    agent = Agent(tmp_path / "a/d")
    with pytest.raises(Refused) as refused:
        agent.steps({"step": "write-record", "slug": SLUG, "record": {}})
    assert refused.value.kind == "unsafe-path"
    assert agent.close() == 0


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"pid": "x", "start_ticks": [], "boot_id": 5}', "\udc80", "{}" * 9]
)
def test_a_record_that_is_garbage_is_a_problem_not_a_crash(agent: Agent, tmp_path: Path, text: str) -> None:
    """Half-written and nonsensical records are told of; wrong types count as nothing."""
    (tmp_path / "state/servers").mkdir(mode=0o700, parents=True)
    record = tmp_path / "state/servers" / f"{SLUG}.json"
    record.write_bytes(text.encode("utf-8", "surrogateescape"))
    seen = agent.server(SLUG)
    assert seen["process"] is None
    assert bool(seen["problems"]) == (seen["record"] is None)


def test_what_a_kill_left_in_mid_write_is_removed_too(agent: Agent, tmp_path: Path) -> None:
    """The new file beside each of a server's, which may hold a token; links are not followed."""
    agent.steps(env_step(tmp_path, ["A", "1"]), {"step": "write-record", "slug": SLUG, "record": {}})
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in (f"config/env/.{SLUG}.env.new", f"config/env/.{SLUG}.token.new", f"state/servers/.{SLUG}.json.new"):
        (tmp_path / name).write_text(TOKEN)
    (tmp_path / f"state/log/.{SLUG}.log.new").symlink_to(victim)
    assert agent.steps({"step": "remove-server", "slug": SLUG})[-1]["changed"] is True
    assert [name for name in everything(tmp_path) if SLUG in name] == []
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "config").exists()


def locked(path: Path) -> bool:
    """Whether somebody holds a lock on a file."""
    return subprocess.run(["flock", "--nonblock", str(path), "true"], check=False).returncode != 0


def test_steps_wait_for_one_another(tmp_path: Path) -> None:
    """While another run holds the host's lock, steps wait; and say who holds it when they give up."""
    first, second = Agent(tmp_path), Agent(tmp_path)
    first.steps(env_step(tmp_path, ["A", "1"]))
    holder = subprocess.Popen(["flock", f"{tmp_path}/state/lock", "sleep", "30"])
    try:
        wait_until(lambda: locked(tmp_path / "state/lock"))
        with pytest.raises(Refused) as refused:
            second.steps(env_step(tmp_path, ["A", "2"]), lock_timeout=0.3)
        assert refused.value.kind == "locked"
    finally:
        subprocess.run(["pkill", "-P", str(holder.pid)], check=False)
        holder.wait(10)
    assert second.steps(env_step(tmp_path, ["A", "2"]), lock_timeout=5)
    assert [first.close(), second.close()] == [0, 0]


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "nothing"},
        {"do": "steps", "steps": 5},
        {"do": "steps", "steps": [{"step": "rm -rf"}]},
        {"do": "steps", "steps": [{"step": "write-record", "slug": "../x", "record": {}}]},
        {"do": "steps", "steps": [{"step": "stop-process", "slug": "a", "pid": True, "start_ticks": 1}]},
        {"do": "observe", "salt": "zz"},
        {"do": "observe", "salt": "00" * 8, "ports": ["x"]},
        {"do": "observe", "salt": "00" * 8, "folders": {"config": "relative", "state": "/x"}},
        {"do": "gate", "slug": "a", "port": 0},
        {"do": "log", "slug": "A"},
    ],
)
def test_a_malformed_request_is_refused_and_the_next_one_answered(agent: Agent, request_: dict[str, object]) -> None:
    """Nothing malformed runs, and the loop goes on."""
    fields = {key: value for key, value in request_.items() if key != "do"}
    with pytest.raises(Refused) as refused:
        agent.ask(str(request_["do"]), **fields)
    assert refused.value.kind == "bad-request"
    assert agent.observe()["format"] == 1


def test_lines_that_are_no_requests(agent: Agent) -> None:
    """Garbage gets an answer without an id; the agent goes on."""
    agent.observe()
    for line in (b"garbage\n", b"\xff\n", b"[" * 100000 + b"\n", b"5\n"):
        agent.write(line)
        answer = agent.next_answer()
        assert (answer["id"], answer["ok"], answer["error"]["class"]) == (None, False, "bad-request")
    assert agent.observe()["format"] == 1
