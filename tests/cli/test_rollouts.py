"""Rollouts on the command line: waves in the plan, limits, the cap on changes, what is left after a partial run."""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path

import pytest

from tests.lab.desk import Desk
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from vmreconcile.cli import agreement
from vmreconcile.cli.retry import leave_retry_file
from vmreconcile.model.observed import Unreachable
from vmreconcile.model.outcome import Outcome

DEAD = Behaviour(exit_code=1, log=("Segmentation fault",))


def fleet_of(desk: Desk, count: int, rollout: str = "{}") -> None:
    """So many hosts, one model on each, all running; then another length is asked for."""
    names = [f"gpu{at}" for at in range(1, count + 1)]
    desk.hosts.update({name: FakeHost(name) for name in names if name not in desk.hosts})
    desk.write("inventory/hosts.yml", "gpu:\n  hosts:\n" + "".join(f"    {name}:\n" for name in names))
    desk.change("health:", f"rollout: {rollout}\nhealth:")
    assert desk("apply", "-y").code == 0
    desk.change("4096", "8192")


def test_the_plan_shows_its_waves(desk: Desk) -> None:
    """Canary first, then two at a time; the same in JSON."""
    fleet_of(desk, 5, "{canary: 1, max_unavailable: 2, pause: 0.01}")
    said = desk("plan")
    assert "waves\n  qwen  gpu1 (canary), then gpu2 gpu3, then gpu4 gpu5: at most 2 of 5 down, 0.01 s" in said.out
    (waves,) = desk("plan", "--json").json["waves"]
    assert waves["waves"] == [["qwen@gpu1"], ["qwen@gpu2", "qwen@gpu3"], ["qwen@gpu4", "qwen@gpu5"]]
    assert (waves["canaries"], waves["max_unavailable"], waves["servers"]) == (1, 2, 5)
    assert desk("apply", "-y", "--max-changes", "5").code == 0
    assert desk("plan", "--json").json["waves"] == []


def test_a_models_only_server_is_said_to_be_downtime(desk: Desk) -> None:
    """Whoever reads the plan knows that nobody serves it meanwhile."""
    desk.change("hosts: gpu", "hosts: gpu1")
    desk("apply", "-y")
    desk.change("4096", "8192")
    assert "qwen  gpu1: its only server, nobody serves it meanwhile" in desk("plan").out
    assert desk("plan", "--json").json["waves"][0]["downtime"] is True


def test_a_failed_canary_touches_nobody_else(desk: Desk) -> None:
    """One server lost its settings; four serve on. The report says so by host, and how to go on with what is left."""
    fleet_of(desk, 5, "{canary: 1, max_unavailable: 2}")
    before = desk.pids()
    desk.hosts["gpu1"].kernel.behaviours["qwen"] = DEAD
    said = desk("apply", "-y", "--max-changes", "5")
    assert said.code == 1
    after = desk.pids()
    assert {name: after[name] for name in after if name != "qwen@gpu1"} == {
        name: pid for name, pid in before.items() if name != "qwen@gpu1"
    }
    assert "gpu1  failed 1" in said.out
    assert "gpu2  skipped 1" in said.out
    (retry,) = (Path.home() / ".local/state/vmreconcile").glob("apply-*.retry")
    assert f"vmreconcile apply --limit @{retry}" in said.err
    assert "qwen@gpu2, qwen@gpu3, qwen@gpu4, qwen@gpu5: not begun: the rollout of qwen was stopped" in said.out
    assert retry.read_text().splitlines() == ["gpu1", "gpu2", "gpu3", "gpu4", "gpu5"]
    del desk.hosts["gpu1"].kernel.behaviours["qwen"]
    assert desk("apply", "-y", "--max-changes", "5", "--limit", f"@{retry}").code == 0
    assert not retry.exists()
    assert desk("plan", "--detailed-exitcode").code == 0


def test_the_retry_file_holds_what_is_left_alone(desk: Desk) -> None:
    """Hosts on which all went well are not in it."""
    fleet_of(desk, 3, "{max_failures: 1}")
    desk.hosts["gpu2"].kernel.behaviours["qwen"] = DEAD
    said = desk("apply", "-y", "--retry-file", "again")
    assert said.code == 1
    assert Path("again").read_text() == "gpu2\ngpu3\n"
    assert "2 hosts left" in said.err
    assert "1 other host: all well" in said.out


def test_a_retry_file_names_just_the_hosts_that_are_left(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A name that a line of it would mean otherwise is told instead; a device or a pipe stays what it is."""
    names = ("a", "b\nc", "!d", "#e", " f", "g\u2028h", "~i", "@j", "&k")
    outcome = Outcome(results=(), unreachable=tuple(Unreachable(host=name, reason="away") for name in names))
    leave_retry_file(argparse.Namespace(retry_file=tmp_path / "left"), outcome)
    assert (tmp_path / "left").read_text(encoding="utf-8") == "a\n"
    said = capsys.readouterr().err
    assert said.count("is left too") == 8
    assert "b\\nc" in said
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    leave_retry_file(argparse.Namespace(retry_file=tmp_path / "pipe"), outcome)
    assert os.read(reader, 100) == b"a\n"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_server_that_is_down_holds_the_others_back(desk: Desk) -> None:
    """gpu3 cannot be reached: with one of three down already, nobody is taken down, and the plan says why."""
    fleet_of(desk, 3)
    before = desk.pids()
    desk.hosts["gpu3"].unreachable = "no route to host"
    plan = desk("plan", "--json").json
    assert {change["reason"] for change in plan["changes"]} == {"max_unavailable"}
    said = desk("apply", "-y")
    assert "qwen@gpu3" in said.out
    assert "rollout.max_unavailable allows 1" in said.out
    assert said.code == 1
    assert desk.pids() == before
    desk.change("rollout: {}", "rollout: {max_unavailable: 2}")
    assert desk("apply", "-y").code == 3
    assert desk.pids()["qwen@gpu1"] != before["qwen@gpu1"]


def test_limits_of_the_run_and_of_hosts(desk: Desk) -> None:
    """--max-unavailable and vllm_max_unavailable hold over all models; a wrong one is wrong usage, or invalid."""
    fleet_of(desk, 4, "{max_unavailable: 3}")
    assert [len(wave) for wave in desk("plan", "--json").json["waves"][0]["waves"]] == [3, 1]
    limited = desk("plan", "--json", "--max-unavailable", "50%").json
    assert [len(wave) for wave in limited["waves"][0]["waves"]] == [2, 2]
    desk.write("inventory/group_vars/all.yml", "vllm_max_unavailable: 1\n")
    assert [len(wave) for wave in desk("plan", "--json").json["waves"][0]["waves"]] == [1, 1, 1, 1]
    desk.write("inventory/group_vars/all.yml", "vllm_max_unavailable: 0\n")
    assert desk("validate").code == 5
    for wrong in ("0", "-1", "101%", "x", "5 %"):
        assert desk("plan", "--max-unavailable", wrong).code == 64


def test_more_than_a_third_is_not_taken_down_without_a_word(desk: Desk) -> None:
    """Starts do not count. Nobody can be asked: exit 1, with the flag; with it, all is done."""
    fleet_of(desk, 4, "{max_unavailable: 2}")
    before = desk.pids()
    said = desk("apply", "-y")
    assert said.code == 1
    assert "4 disruptive changes, more than 3 (a third of the servers, at least 3): nothing was changed" in said.err
    assert "--max-changes 4" in said.err
    assert desk.pids() == before
    assert desk("apply", "-y", "--max-changes", "4").code == 0


def test_a_third_is_a_third_of_all_servers_for_a_plan_file_too(desk: Desk) -> None:
    """The file holds just the four of twelve that change."""
    fleet_of(desk, 12)
    desk.change("8192", "4096")
    desk.write("models.d/qwen.yaml", desk.read() + 'overrides: {"gpu[1:4]": {args: {max_model_len: 8192}}}\n')
    assert desk("plan", "-o", "plan.json").code == 0
    said = desk("apply", "-y", "plan.json")
    assert said.code == 0, said.err


def test_a_person_is_asked_about_more_than_a_third(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the number in the question; a no changes nothing."""
    fleet_of(desk, 4)
    before = desk.pids()
    asked: list[str] = []
    monkeypatch.setattr(agreement.Agreement, "_must_ask", lambda _: True)
    monkeypatch.setattr(agreement, "ask", lambda question: bool(asked.append(question)))
    assert desk("apply").code == 1
    assert asked == [
        "4 servers are restarted, stopped or removed, more than a third of all (or 3). Carry this out? [y/N] "
    ]
    assert desk.pids() == before


def test_a_restart_by_name_is_not_capped_and_goes_in_waves(desk: Desk) -> None:
    """Who names a model means all of its servers; still one at a time."""
    fleet_of(desk, 4)
    desk.change("8192", "4096")
    for host in desk.hosts.values():
        host.kernel.behaviours["qwen"] = Behaviour(ready_after=3)
    before = desk.pids()
    said = desk("restart", "qwen")
    assert said.code == 0
    assert not set(desk.pids().values()) & set(before.values())
    assert "then gpu2, then gpu3, then gpu4: at most 1 of 4 down" in said.out


def test_two_models_roll_side_by_side(desk: Desk) -> None:
    """Each has its own budget."""
    desk.write("models.d/other.yaml", desk.read().replace("qwen", "other").replace("8001", "8101"))
    fleet_of(desk, 3)
    desk.change("4096", "8192", "models.d/other.yaml")
    waves = desk("plan", "--json").json["waves"]
    assert [row["model"] for row in waves] == ["other", "qwen"]
    assert all(len(row["waves"]) == 3 for row in waves)
    assert desk("apply", "-y", "--max-changes", "6").code == 0


def test_a_plan_file_says_the_order_of_ports(desk: Desk) -> None:
    """A plan that hands a port on is carried out from its file as well."""
    desk.write("models.d/other.yaml", desk.read().replace("qwen", "other").replace("8001", "8002"))
    assert desk("apply", "-y").code == 0
    desk.change("port: 8002", "port: 8003", "models.d/other.yaml")
    desk.change("port: 8001", "port: 8002")
    assert desk("plan", "-o", "plan.json").code == 0
    assert desk("apply", "plan.json", "-y", "--max-changes", "4").code == 0
    assert desk("plan", "--detailed-exitcode").code == 0


def test_what_crashed_comes_back_whatever_becomes_of_others(desk: Desk) -> None:
    """A canary is for changes: servers that ended by themselves all start at once, also where one of them fails."""
    fleet_of(desk, 4, "{canary: 1}")
    desk.change("8192", "4096")
    for name in ("gpu1", "gpu2", "gpu3"):
        desk.hosts[name].kernel.behaviours["qwen"] = Behaviour(exit_code=1)
        desk.hosts[name].systemd.ended(
            desk.hosts[name].systemd.unit("vmreconcile-qwen.service"), desk.hosts[name].root("qwen"), 2
        )
    del desk.hosts["gpu2"].kernel.behaviours["qwen"], desk.hosts["gpu3"].kernel.behaviours["qwen"]
    said = desk("apply", "-y", "--json")
    assert {row["server"]: row["status"] for row in said.json["results"]} == {
        "qwen@gpu1": "failed",
        "qwen@gpu2": "changed",
        "qwen@gpu3": "changed",
        "qwen@gpu4": "ok",
    }


def test_the_plan_names_the_apply_that_does_it(desk: Desk) -> None:
    """With the same limits, or from the file."""
    assert (
        "Next: vmreconcile apply --limit gpu1 --max-failures 2" in desk("plan", "-l", "gpu1", "--max-failures", "2").out
    )
    said = desk("plan", "-o", "p.json")
    assert "Next: vmreconcile apply p.json" in said.out
    assert "Next: vmreconcile apply --prune" in desk("plan", "--prune").out
