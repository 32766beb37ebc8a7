"""`history` and `rollback` at a person's desk, over hosts in memory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from tests.lab.desk import Desk
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import TOKEN
from vmreconcile.model.plan import Action, Plan, Reason

pytestmark = pytest.mark.slow  # starts many processes, or waits


def length(desk: Desk, host: str = "gpu1") -> str:
    """The context of what runs."""
    root = desk.hosts[host].root("qwen")
    assert root is not None
    return root.argv[root.argv.index("--max-model-len") + 1]


@pytest.fixture
def changed(desk: Desk) -> Desk:
    """A model on two hosts that was started with 4096 tokens, and retuned to 8192."""
    assert desk("apply", "-y").code == 0
    desk.change("max_model_len: 4096", "max_model_len: 8192")
    assert desk("apply", "-y").code == 0
    assert length(desk) == "8192"
    return desk


def test_history_lists_what_ran(changed: Desk) -> None:
    """Newest first, with who and what changed; the one that runs is marked."""
    said = changed("history", "qwen@gpu1")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "qwen@gpu1"
    assert lines[2].split()[0] == "2"
    assert lines[2].endswith("running")
    assert lines[3].strip() == "args.max_model_len  4096 → 8192"
    assert lines[4].split()[0] == "1"
    assert "@" in lines[4]
    assert "0.32.0" in lines[4]


def test_history_as_json(changed: Desk) -> None:
    """One document, both hosts; nothing in it is secret."""
    said = changed("history", "qwen", "--json")
    assert said.code == 0
    assert said.json["format_version"] == 1
    assert [each["server"] for each in said.json["servers"]] == ["qwen@gpu1", "qwen@gpu2"]
    newest, oldest = said.json["servers"][0]["revisions"]
    keys = {"number", "when", "who", "commit", "vllm_version", "good", "kind", "note", "running", "fields"}
    assert set(newest) == keys
    assert (newest["number"], newest["good"], newest["running"]) == (2, True, True)
    assert newest["fields"] == [{"path": "args.max_model_len", "before": 4096, "after": 8192}]
    assert (oldest["number"], oldest["running"], oldest["fields"]) == (1, False, [])
    assert said.json["unreachable"] == []
    assert TOKEN not in said.out + said.err


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        (("who",), True),
        (("commit",), True),
        (("kind",), True),
        (("note",), True),
        (("launch", "vllm_version"), True),
        (("launch", "runtime"), True),
        (("launch", "argv", 0), False),
        (("launch", "argv", 2), False),
        (("launch", "env", 0, 0), False),
        (("launch", "env", 0, 1), False),
    ],
)
def test_what_a_host_made_of_its_history_shows_no_token(
    changed: Desk, monkeypatch: pytest.MonkeyPatch, path: tuple[str | int, ...], *, stays: bool
) -> None:
    """In words for a person it is masked; a launch that holds one is none of ours, and is not gone back to."""
    answer = FakeHost.answer

    def hostile(host: FakeHost, payload: Mapping[str, object], *rest: Any) -> dict[str, Any]:  # noqa: ANN401 - passed on
        answered = answer(host, payload, *rest)
        for row in answered.get("servers", ()) if payload.get("do") == "revisions" else ():
            place: Any = row["revisions"][0]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = TOKEN
        return answered

    monkeypatch.setattr(FakeHost, "answer", hostile)
    for words in (("history", "qwen@gpu1"), ("history", "qwen@gpu1", "--json"), ("rollback", "qwen@gpu1", "--json")):
        said = changed(*words)
        assert TOKEN not in said.out + said.err
    rows = changed("history", "qwen@gpu1", "--json").json["servers"][0]["revisions"]
    assert (rows[-1]["number"] == 1) == stays
    root = changed.hosts["gpu1"].root("qwen")
    assert root is not None
    assert TOKEN not in "".join(root.argv)


def test_history_of_a_host_that_is_away(changed: Desk) -> None:
    """The others are told, exit 3."""
    changed.hosts["gpu2"].unreachable = "no route"
    said = changed("history", "qwen", "--json")
    assert said.code == 3
    assert [each["server"] for each in said.json["servers"]] == ["qwen@gpu1"]
    assert said.json["unreachable"] == [{"host": "gpu2", "reason": "no route"}]


def test_history_of_what_was_never_started(desk: Desk) -> None:
    """Says so."""
    said = desk("history", "qwen@gpu1")
    assert (said.code, said.out.splitlines()[1].strip()) == (
        0,
        "nothing is kept yet: the first start that becomes ready is",
    )
    assert desk("history", "nobody").code == 64


def test_the_commit_is_that_of_the_model_files(desk: Desk) -> None:
    """In short, with a plus where the files differ from it; none without git."""
    desk("apply", "-y", "-l", "gpu1")
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(desk.folder))
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "x")):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    desk("apply", "-y", "-l", "gpu2")
    desk.change("max_model_len: 4096", "max_model_len: 8192")
    desk("apply", "-y")
    first, second = (desk("history", f"qwen@{host}", "--json").json["servers"][0]["revisions"] for host in desk.hosts)
    assert [row["commit"] for row in first] == [f"{head[:12]}+", ""]
    assert [row["commit"] for row in second] == [f"{head[:12]}+", head[:12]]


def test_rollback_goes_back_and_writes_no_file(changed: Desk) -> None:
    """Every server of the model; what would make it last is said, and the next plan has the change again."""
    text = changed.read()
    said = changed("rollback", "qwen")
    assert said.code == 0, said
    assert "args.max_model_len  8192 → 4096" in said.out
    assert [length(changed, host) for host in ("gpu1", "gpu2")] == ["4096", "4096"]
    assert changed.read() == text
    assert "models.d/qwen.yaml:6" in said.err
    assert "args.max_model_len: 8192 → 4096" in said.err
    assert said.err.count("8192 → 4096") == 1
    plan = changed("plan", "--json").json
    assert {change["reason"] for change in plan["changes"]} == {"args_changed"}
    numbers = [row["number"] for row in changed("history", "qwen@gpu1", "--json").json["servers"][0]["revisions"]]
    assert numbers == [3, 2, 1]
    assert "rollback" in changed("history", "qwen@gpu1").out
    changed.change("max_model_len: 8192", "max_model_len: 4096")
    assert changed("plan", "--detailed-exitcode").code == 0


def test_rollback_to_a_number(changed: Desk) -> None:
    """One host alone; where it is that already, nothing is done."""
    said = changed("rollback", "qwen@gpu1", "--to", "1", "--json")
    assert said.code == 0
    (row,) = said.json["results"]
    assert (row["server"], row["action"], row["status"]) == ("qwen@gpu1", "retune", "changed")
    assert (length(changed), length(changed, "gpu2")) == ("4096", "8192")
    pids = changed.pids()
    assert changed("rollback", "qwen@gpu1", "--to", "1").code == 0
    assert changed.pids() == pids


def test_the_plan_of_a_rollback_says_its_reason(changed: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And 'no' at the question changes nothing."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("vmreconcile.cli.agreement.ask", lambda _: False)
    shown: list[Plan] = []
    monkeypatch.setattr("vmreconcile.cli.agreement.plan_text", lambda plan, _: shown.append(plan) or "")
    pids = changed.pids()
    said = changed("rollback", "qwen@gpu1")
    assert said.code == 1
    (change,) = shown[0].changes
    assert (change.action, change.reason, change.disruptive) == (Action.RETUNE, Reason.ROLLED_BACK, True)
    assert [(field.path, field.before, field.after) for field in change.fields] == [("args.max_model_len", 8192, 4096)]
    assert changed.pids() == pids


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("qwen@gpu1", "--to", "9"), 64, "has no revision 9"),
        (("qwen@gpu1", "--to", "0"), 64, "--to"),
        (("nobody",), 64, "no server is called 'nobody'"),
    ],
)
def test_what_cannot_be_gone_back_to(changed: Desk, words: tuple[str, ...], code: int, told: str) -> None:
    """Refused by name, and nothing is touched."""
    pids = changed.pids()
    said = changed("rollback", *words)
    assert (said.code, changed.pids()) == (code, pids)
    assert told in said.err


def test_a_failed_revision_is_no_way_back(desk: Desk) -> None:
    """It is listed with what it failed of; there is nothing else to go back to."""
    desk("apply", "-y")
    desk.change("max_model_len: 4096", "max_model_len: 8192")
    host = desk.hosts["gpu1"]
    start = host.kernel._behaviour
    dies = Behaviour(exit_code=1, log=("ValueError: No available memory for the cache blocks.",))
    host.kernel._behaviour = lambda slug, argv, version: (  # type: ignore[method-assign]
        dies if "8192" in argv else start(slug, argv, version)
    )
    applied = desk("apply", "-y", "-l", "gpu1")
    assert applied.code == 1
    assert "args.max_model_len 4096 → 8192 (models.d/qwen.yaml:6" in applied.out
    assert "is back on revision 1, ready" in applied.out
    assert "rolled_back: 1" in applied.out
    document = desk("apply", "-y", "-l", "gpu1", "--json").json
    (row,) = document["results"]
    assert (row["status"], row["error"]["class"]) == ("rolled_back", "no_kv_memory")
    assert "failed: no_kv_memory" in desk("history", "qwen@gpu1").out
    assert "tried 20" in desk("plan", "-l", "gpu1").out
    said = desk("rollback", "qwen@gpu1", "--to", "2")
    assert (said.code, "never was ready (no_kv_memory)" in said.err) == (64, True)
    said = desk("rollback", "qwen@gpu1")
    assert (said.code, "no good revision of qwen@gpu1 is kept but what runs" in said.err) == (1, True)


def test_a_rollback_that_cannot_start_comes_back(changed: Desk) -> None:
    """What ran is the last good one, and runs again."""
    host = changed.hosts["gpu1"]
    start = host.kernel._behaviour
    host.kernel._behaviour = lambda slug, argv, version: (  # type: ignore[method-assign]
        Behaviour(exit_code=1) if "4096" in argv else start(slug, argv, version)
    )
    said = changed("rollback", "qwen@gpu1")
    assert said.code == 1
    assert "is back on revision 2, ready" in said.out
    assert length(changed) == "8192"


def test_a_host_that_is_away_counts_as_down_in_a_rollback(changed: Desk) -> None:
    """The last one that serves is not taken down by a model's name alone; named with its host, it is."""
    changed.hosts["gpu2"].unreachable = "no route"
    said = changed("rollback", "qwen")
    assert (said.code, length(changed)) == (1, "8192")
    assert "gpu2: unreachable" in said.err
    assert "1 of 2 servers of qwen are down already (qwen@gpu2)" in said.out
    assert (changed("rollback", "qwen@gpu1").code, length(changed)) == (0, "4096")


def test_no_token_is_in_what_is_kept_or_said(changed: Desk) -> None:
    """Not in a file but the env file, not in any answer or output."""
    said = [changed(*words) for words in (("history", "qwen", "--json"), ("rollback", "qwen"), ("history", "qwen"))]
    assert not any(TOKEN in each.out + each.err for each in said)
    for host in changed.hosts.values():
        assert {path for path, file in host.kernel.files.items() if TOKEN in file.content} == {
            f"{host.config}/env/qwen.env"
        }
        assert TOKEN not in json.dumps([host.requests, host.answers])
