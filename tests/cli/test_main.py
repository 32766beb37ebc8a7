"""The command line from argv to exit code, on fake hosts: what it prints, what it changes, how it ends."""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.lab.desk import MODEL, Desk
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import TOKEN
from vmreconcile.cli import plans
from vmreconcile.cli.main import COMMANDS
from vmreconcile.effects import save


def test_the_main_job(desk: Desk) -> None:
    """Validate, plan, apply, nothing to do, one change, exactly that retune, nothing to do."""
    assert desk("validate").out == "valid: 1 model, 2 hosts\n"
    assert desk("plan", "--detailed-exitcode").code == 2
    applied = desk("apply", "-y")
    assert (applied.code, applied.out.splitlines()[-1]) == (0, "changed: 2, ok: 0, failed: 0, unreachable: 0")
    pids = desk.pids()
    assert set(pids) == {"qwen@gpu1", "qwen@gpu2"}
    again = desk("apply", "-y", "--json")
    assert (again.code, again.json["changed"], again.json["ok"]) == (0, 0, 2)
    assert desk.pids() == pids
    assert desk("plan", "--detailed-exitcode").code == 0
    desk.change("max_model_len: 4096", "max_model_len: 8192")
    plan = desk("plan", "--json").json
    assert [(change["server"], change["action"], change["fields"]) for change in plan["changes"]] == [
        (f"qwen@{host}", "retune", [{"path": "args.max_model_len", "before": 4096, "after": 8192}])
        for host in ("gpu1", "gpu2")
    ]
    assert desk("apply", "-y", "--limit", "gpu1").code == 0
    assert desk.pids()["qwen@gpu2"] == pids["qwen@gpu2"]
    assert desk.pids()["qwen@gpu1"] != pids["qwen@gpu1"]
    assert desk("apply", "-y", "--json").json["changed"] == 1
    assert desk("plan", "--detailed-exitcode").code == 0


def test_limit_looks_at_those_hosts_alone(desk: Desk) -> None:
    """No other one is reached."""
    desk("plan", "-l", "gpu2")
    assert set(desk.opened) == {"gpu2"}


def test_validate_reports_every_problem_and_ends_with_5(desk: Desk) -> None:
    """With file, line and column; on standard output, or as JSON."""
    desk.change("max_model_len", "max_modle_len")
    desk.change("port: 8001", "port: 99999")
    said = desk("validate")
    assert said.code == 5
    assert "models.d/qwen.yaml:4:7" in said.out
    assert "models.d/qwen.yaml:6:3" in said.out
    assert "max_model_len" in said.out.partition("did you mean")[2]
    assert said.out.endswith("2 errors\n")
    problems = desk("validate", "--json").json["diagnostics"]
    assert {(problem["line"], problem["severity"]) for problem in problems} == {(4, "error"), (6, "error")}


@pytest.mark.parametrize("command", ["plan", "apply", "status"])
def test_invalid_files_end_every_command_with_5(desk: Desk, command: str) -> None:
    """Before any host is reached; as one document with --json."""
    desk.change("port: 8001", "port: eight")
    said = desk(command)
    assert (said.code, said.out) == (5, "")
    assert "models.d/qwen.yaml:4:7" in said.err
    assert desk(command, "--json").json["diagnostics"]
    assert desk.opened == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("make-coffee",),
        ("plan", "--no-such-option"),
        ("plan", "--forks", "0"),
        ("plan", "--forks", "x"),
        ("plan", "--timeout", "-1"),
        ("plan", "--timeout", "nan"),
        ("apply", "--max-changes", "-1"),
        ("logs",),
        ("logs", "qwen@gpu1", "-n", "-5"),
        ("inventory",),
        ("inventory", "--list", "--hosts", "all"),
        ("restart",),
        ("plan", "--lim", "gpu1"),
        ("show", "qwen"),
        ("show", "qwen@nowhere"),
        ("logs", "QWEN@gpu1"),
        ("inventory", "--host", "nowhere"),
        ("restart", "qwn"),
        ("stop", "nothing@gpu1"),
        ("plan", "--limit", "nowhere"),
        ("apply", "missing.json"),
        ("status", "--watch", "--json"),
    ],
)
def test_wrong_usage_ends_with_64(desk: Desk, words: tuple[str, ...]) -> None:
    """One or two lines on standard error, nothing on standard output, nothing done."""
    said = desk(*words)
    assert (said.code, said.out) == (64, "")
    assert said.err
    assert "Traceback" not in said.err
    assert not desk.pids()


def test_help_is_complete(desk: Desk) -> None:
    """For every command, with exit code 0; --version too."""
    for words in ((), *((command,) for command in COMMANDS)):
        said = desk(*words, "--help")
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith("usage: vmreconcile")
    assert all(command in desk("--help").out for command in COMMANDS)
    assert desk("--version").out.startswith("vmreconcile 0.")


def test_unreachable_hosts_end_with_3_and_the_others_are_done(desk: Desk) -> None:
    """plan, status and apply; a failure is worse than an unreachable host."""
    desk.hosts["gpu2"].unreachable = "connection refused (10.0.0.2:22)"
    for command in ("plan", "status"):
        said = desk(command)
        assert said.code == 3
        assert "connection refused (10.0.0.2:22)" in said.out
    assert desk("plan", "--detailed-exitcode").code == 3
    said = desk("apply", "-y", "--json")
    assert (said.code, said.json["changed"], said.json["unreachable"]) == (3, 1, 1)
    assert set(desk.pids()) == {"qwen@gpu1"}
    desk.hosts["gpu1"].kernel.behaviours["qwen"] = Behaviour(completes=False)
    desk.change("4096", "2048")
    desk.change("startup_timeout: 2s", "startup_timeout: 1s")
    assert desk("apply", "-y").code == 1


def test_a_failure_ends_with_1_and_tells_why(desk: Desk) -> None:
    """What, evidence, way out; the other host is done."""
    log = ("ERROR 01-31 12:00:00 [core.py:1] ValueError: No available memory for the cache blocks.",)
    desk.hosts["gpu1"].kernel.behaviours["qwen"] = Behaviour(exit_code=1, log=log)
    said = desk("apply", "-y")
    assert said.code == 1
    assert "qwen@gpu1: did not start: " in said.out
    assert "evidence  ValueError: No available memory for the cache blocks." in said.out
    assert "mend" in said.out
    assert said.out.endswith("changed: 1, ok: 0, failed: 1, unreachable: 0\n")
    assert "qwen@gpu1: failed" in said.err


def test_a_blocked_server_ends_with_1(desk: Desk) -> None:
    """Something that was asked for was not done."""
    desk.hosts["gpu1"].stranger(8001)
    said = desk("apply", "-y")
    assert said.code == 1
    assert "port 8001 is held by pid" in said.out
    assert desk("plan", "--detailed-exitcode").code == 2


def test_a_plan_file_is_carried_out_once(desk: Desk) -> None:
    """Exactly that plan; the second time the hosts have moved."""
    planned = desk("plan", "-o", "plan.json")
    assert planned.code == 0
    assert "written: plan.json" in planned.err
    assert planned.out.endswith("Next: vmreconcile apply plan.json\n")
    assert Path("plan.json").stat().st_mode & 0o777 == 0o600
    assert TOKEN not in desk.read("plan.json")
    assert desk("apply", "plan.json", "-y").code == 0
    pids = desk.pids()
    said = desk("apply", "plan.json", "-y")
    assert said.code == 1
    assert "changed since the plan was made" in said.out
    assert desk.pids() == pids


def test_a_plan_file_of_other_hosts_is_refused(desk: Desk) -> None:
    """One of another inventory, and one that is none."""
    desk("plan", "-o", "plan.json")
    desk.change("gpu2:", "gpu2: {ansible_host: 10.9.9.9}", "inventory/hosts.yml")
    said = desk("apply", "plan.json", "-y")
    assert (said.code, desk.pids()) == (64, {})
    assert "another inventory" in said.err
    desk.change("gpu2: {ansible_host: 10.9.9.9}", "gpu2:", "inventory/hosts.yml")
    said = desk("apply", "-l", "gpu1", "plan.json", "-y")
    assert (said.code, "another --limit" in said.err) == (64, True)
    for path, text in (("other.json", "{}"), ("some.yaml", "name: chat\n")):
        desk.write(path, text)
        said = desk("apply", path, "-y")
        assert (said.code, "is not a plan" in said.err) == (64, True)


def test_servers_of_hosts_that_are_away_are_counted(desk: Desk) -> None:
    """There are servers, and nobody knows how they are."""
    for host in desk.hosts.values():
        host.unreachable = "no route to host"
    assert desk("plan").out.endswith("nothing seen; 2 hosts unreachable, 2 servers wanted there and unknown.\n")


def test_a_plan_that_apply_refuses_does_not_lead_there(desk: Desk) -> None:
    """--prune over a folder without models would remove everything."""
    assert desk("apply", "-y").code == 0
    (desk.folder / "models.d/qwen.yaml").unlink()
    said = desk("plan", "--prune")
    assert ("2 to remove" in said.out, "Next" in said.out, "apply --prune refuses" in said.err) == (True, False, True)
    assert desk("apply", "--prune", "-y").code == 1


@pytest.mark.parametrize("target", ["tuning.yaml", "nowhere.yaml"])
def test_a_link_to_no_rules_is_an_error(desk: Desk, target: str) -> None:
    """One that leads round in a circle, and one that leads nowhere: somebody meant to have rules."""
    (desk.folder / "tuning.yaml").symlink_to(target)
    said = desk("validate")
    assert (said.code, "tuning.yaml cannot be read" in said.out) == (5, True), said


def test_a_state_that_cannot_be_written_can_be_left_unwritten(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is read-only does not keep anybody from stopping a server; of `remove` there is no such option."""
    assert desk("apply", "-y").code == 0

    def refuses(path: Path) -> BinaryIO:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(save, "replacing", refuses)
    said = desk("stop", "qwen")
    assert (said.code, "--no-save" in said.err) == (1, True), said
    assert "--no-save" not in desk("remove", "qwen", "-y").err
    assert len(desk.pids()) == 2
    assert desk("stop", "qwen", "--no-save").code == 0


def test_a_token_in_a_model_is_told_where_it_belongs(desk: Desk) -> None:
    """Not where it stands already."""
    desk.write("models.d/qwen.yaml", MODEL + f"hf_token: {TOKEN}\n")
    said = desk("validate").out
    assert "vmreconcile auth login, then name its source" in said
    assert "through hf_token" not in said
    assert TOKEN not in said


def test_an_empty_token_source_is_called_so(desk: Desk) -> None:
    """With what a source has."""
    desk.write("inventory/group_vars/all.yml", "vllm_token_sources: {a: {}}\n")
    desk.write("models.d/qwen.yaml", MODEL)
    said = desk("validate").out
    assert "vllm_token_sources.a is empty." in said
    assert "cannot be a mapping" not in said


def test_max_changes_limits_what_is_taken_down(desk: Desk) -> None:
    """Nothing at all is changed where there is more."""
    assert desk("apply", "-y", "--max-changes", "0").code == 0
    pids = desk.pids()
    desk.change("4096", "2048")
    said = desk("apply", "-y", "--max-changes", "1")
    assert (said.code, desk.pids()) == (1, pids)
    assert "2 disruptive changes" in said.err
    assert desk("apply", "-y", "--max-changes", "2").code == 0


def test_prune_removes_what_no_file_wants(desk: Desk) -> None:
    """Without it they stay; with nothing wanted at all it is refused."""
    desk.write("models.d/old.yaml", MODEL.replace("qwen", "old").replace("8001", "8011"))
    desk("apply", "-y")
    (desk.folder / "models.d/old.yaml").unlink()
    assert "unclaimed" in desk("plan").out
    desk("apply", "-y")
    assert "old@gpu1" in desk.pids()
    assert desk("plan", "--prune", "--json").json["summary"]["remove"] == 2
    assert desk("plan", "--prune").out.rstrip().endswith("Next: vmreconcile apply --prune")
    assert desk("apply", "-y", "--prune").code == 0
    assert set(desk.pids()) == {"qwen@gpu1", "qwen@gpu2"}
    (desk.folder / "models.d/qwen.yaml").unlink()
    assert desk("apply", "-y", "--prune").code != 0
    assert set(desk.pids()) == {"qwen@gpu1", "qwen@gpu2"}


@pytest.mark.parametrize("text", ["", "# all commented out\n", "name: qwen\n  model: [", None])
def test_files_that_cannot_be_read_remove_nothing(desk: Desk, text: str | None) -> None:
    """An emptied file, one that is no YAML, a folder that is gone: exit 5 with the place, also with --prune."""
    desk("apply", "-y")
    if text is None:
        (desk.folder / "models.d/qwen.yaml").unlink()
        (desk.folder / "models.d").rmdir()
    else:
        desk.write("models.d/qwen.yaml", text)
    said = desk("apply", "-y", "--prune")
    assert said.code == 5
    assert "models.d" in said.err
    assert set(desk.pids()) == {"qwen@gpu1", "qwen@gpu2"}


def test_a_host_that_leaves_the_inventory_is_left_alone(desk: Desk) -> None:
    """Nothing of it is looked at or removed, also with --prune; `state: absent` there takes the server away."""
    desk("apply", "-y")
    desk.change("    gpu2:\n", "", "inventory/hosts.yml")
    desk.opened.clear()
    assert desk("apply", "-y", "--prune").code == 0
    assert set(desk.opened) == {"gpu1"}
    assert set(desk.pids()) == {"qwen@gpu1", "qwen@gpu2"}
    desk.change("    gpu1:\n", "    gpu1:\n    gpu2:\n", "inventory/hosts.yml")
    desk.change("port: 8001\n", "port: 8001\noverrides: {gpu2: {state: absent}}\n")
    assert desk("apply", "-y").code == 0
    assert set(desk.pids()) == {"qwen@gpu1"}


def test_stop_and_start_write_the_state(desk: Desk) -> None:
    """For all hosts in the file, for one under overrides; comments survive; --no-save writes nothing."""
    desk("apply", "-y")
    assert desk("stop", "qwen@gpu1").code == 0
    assert set(desk.pids()) == {"qwen@gpu2"}
    assert "# the name" in desk.read()
    assert "overrides" in desk.read()
    assert desk("apply", "-y", "--json").json["changed"] == 0
    assert desk("stop", "qwen@gpu1", "--json").json["changed"] == 0
    assert desk("start", "qwen").code == 0
    assert set(desk.pids()) == {"qwen@gpu1", "qwen@gpu2"}
    before = desk.read()
    assert desk("stop", "qwen", "--no-save").code == 0
    assert (desk.read(), desk.pids()) == (before, {})
    assert desk("apply", "-y", "--json").json["changed"] == 2


def test_start_leaves_a_running_server_that_differs(desk: Desk) -> None:
    """That is apply's."""
    desk("apply", "-y")
    pids = desk.pids()
    desk.change("4096", "2048")
    said = desk("start", "qwen", "--json")
    assert (said.code, said.json["changed"], desk.pids()) == (0, 0, pids)


def test_restart_restarts_just_that(desk: Desk) -> None:
    """Once, with a new process."""
    desk("apply", "-y")
    pids = desk.pids()
    assert desk("restart", "qwen@gpu2").code == 0
    assert desk.pids()["qwen@gpu1"] == pids["qwen@gpu1"]
    assert desk.pids()["qwen@gpu2"] != pids["qwen@gpu2"]


def test_status_and_plan_tell_of_a_wedged_server(desk: Desk) -> None:
    """Its phase, what differs, what was seen, and what to do; a stop does not wait for that look."""
    desk("apply", "-y")
    root = desk.hosts["gpu1"].root("qwen")
    assert root is not None
    root.behaviour = Behaviour(stalled_s=26.3)
    text = desk("status").out
    assert re.search(r"qwen@gpu1 +unhealthy .* progress$", text, re.MULTILINE)
    assert "qwen@gpu1: it is healthy and does no work (wedged)" in text
    assert "  seen  /health is 200, but no request moved for 26 s" in text
    rows = {row["server"]: row for row in desk("status", "--json").json["servers"]}
    assert rows["qwen@gpu1"]["drift"] == [{"path": "progress", "before": "none for 26 s", "after": "some"}]
    assert rows["qwen@gpu2"]["drift"] == []
    (change,) = desk("plan", "--json").json["changes"]
    assert (change["server"], change["action"], change["reason"]) == ("qwen@gpu1", "restart", "wedged")
    assert "no request moved for 26 s" in desk("plan").out
    assert desk("doctor", "qwen@gpu1").out.count("wedged") == 1
    desk.hosts["gpu1"].requests.clear()
    desk("stop", "qwen@gpu1", "--no-save")
    assert not any(request.get("stalls") for request in desk.hosts["gpu1"].requests)


def test_status_and_show_and_logs(desk: Desk) -> None:
    """Each for a person and for a script."""
    desk.hosts["gpu1"].kernel.behaviours["qwen"] = Behaviour(log=("one", "two", "Application startup complete."))
    desk("apply", "-y")
    text = desk("status").out
    assert "qwen@gpu1" in text
    assert "127.0.0.1:8001" in text
    rows = desk("status", "--json").json["servers"]
    assert [(row["server"], row["phase"]) for row in rows] == [("qwen@gpu1", "ready"), ("qwen@gpu2", "ready")]
    shown = desk("show", "qwen@gpu1").out
    assert "models.d/qwen.yaml:6" in shown
    assert re.search(r"started_at +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]", shown)
    document = desk("show", "qwen@gpu1", "--json").json
    assert document["argv"][:3] == ["/usr/local/bin/vllm", "serve", "org/qwen"]
    assert document["observed"]["args"]["max_model_len"] == 4096
    assert document["observed"].keys() >= {"requests_running", "requests_waiting", "cache_config"}
    assert desk("logs", "qwen@gpu1", "-n", "2").out == "two\nApplication startup complete.\n"
    assert desk("logs", "qwen@gpu1", "--json").json == {
        "format_version": 1,
        "server": "qwen@gpu1",
        "lines": ["one", "two", "Application startup complete."],
    }


def test_show_tells_needs_and_cordons_with_their_places(desk: Desk) -> None:
    """As they count for this server, each with the file and line that says it."""
    desk.change("port: 8001\n", "port: 8001\nneeds: {kv_tokens: 8k}\ncordon: new weights\n")
    desk.change("    gpu1:\n", "    gpu1: {vllm_cordon: true, vllm_cordoned_gpus: [3]}\n", "inventory/hosts.yml")
    said = desk("show", "qwen@gpu1", "--json").json["desired"]
    assert said["needs"] == {"value": {"kv_tokens": 8000}, "origin": "models.d/qwen.yaml:5:1"}
    assert said["cordon"] == {"value": "new weights", "origin": "models.d/qwen.yaml:6:1"}
    assert said["host_cordon"]["value"] == "cordoned"
    assert said["cordoned_gpus"]["value"] == ["3"]
    assert said["cordoned_gpus"]["origin"].startswith("inventory/hosts.yml:3:")
    other = desk("show", "qwen@gpu2", "--json").json["desired"]
    assert (other["host_cordon"]["value"], other["cordoned_gpus"]["value"]) == (None, None)
    assert re.search(r"needs +\{\"kv_tokens\": 8000\} +models.d/qwen.yaml:5:1", desk("show", "qwen@gpu1").out)


def test_a_count_of_gpus_is_no_warning_any_more(desk: Desk) -> None:
    """One that vLLM uses passes; needs beside a written number are told to be checked only."""
    desk.change("port: 8001\n", "port: 8001\ngpus: 2\n")
    desk.change("args:\n", "args:\n  tensor_parallel_size: 2\n")
    assert (desk("validate").code, desk("validate").err) == (0, "")
    desk.change("port: 8001\n", "port: 8001\nneeds: {concurrency: 2}\n")
    said = desk("validate")
    assert said.code == 0
    assert "models.d/qwen.yaml:10:3: " in said.err + said.out
    assert "gpu_memory_utilization stays 0.5, as written" in said.err + said.out


def test_what_was_measured_is_shown(desk: Desk) -> None:
    """On a host with GPUs, after an apply; for a person and for a script."""
    desk.hosts["gpu1"].add_gpus(1)
    assert desk("apply", "-y").code == 0
    first, second = desk("status", "--json").json["servers"]
    assert first["memory"]["measured"]["kv_tokens"] > 0
    assert second["memory"] is None
    assert "KV TOKENS" in desk("status").out
    assert f"{first['memory']['measured']['kv_tokens']:,}" in desk("status").out
    shown = desk("show", "qwen@gpu1").out
    assert re.search(r"^memory\n +measured +predicted\n  weights +2\.70 GiB +-$", shown, re.MULTILINE)
    assert "at gpu_memory_utilization 0.5, a context of 4,096, of NVIDIA H100 80GB HBM3, vLLM 0.32.0" in shown
    assert desk("show", "qwen@gpu1", "--json").json["memory"] == first["memory"]
    assert desk("show", "qwen@gpu2", "--json").json["memory"] is None


def test_every_document_says_its_format(desk: Desk) -> None:
    """Whatever the command; what is printed for Ansible's sake alone has Ansible's keys."""
    desk.write("old.json", '{"models": [{"name": "then", "huggingface_id": "org/then", "port": 9009}]}')
    for words in (
        *("init new", "validate", "plan", "apply -y", "status", "inventory --hosts all", "show qwen@gpu1"),
        *("logs qwen@gpu1", "stop qwen", "start qwen", "restart qwen", "auth status", "auth status --on-hosts"),
        *("auth check", "auth check --on-hosts", "doctor", "prefetch", "list", "import old.json --hosts gpu1"),
        *("add chat org/chat --port 9001 --hosts gpu1", "remove chat -y"),
    ):
        said = desk(*words.split(), "--json")
        assert said.json["format_version"] == 1, words


def test_logs_that_are_not_there_end_with_1(desk: Desk) -> None:
    """One line says so; an unreachable host is 3."""
    said = desk("logs", "qwen@gpu1")
    assert (said.code, said.out) == (1, "")
    assert "no log" in said.err
    desk.hosts["gpu1"].unreachable = "no route"
    assert desk("logs", "qwen@gpu1").code == 3
    assert desk("show", "qwen@gpu1").code == 3


def test_inventory_is_what_was_read(desk: Desk) -> None:
    """No host is reached."""
    assert desk("inventory", "--hosts", "gpu:!gpu1").out == "gpu2\n"
    assert desk("inventory", "--list").json["gpu"] == {"hosts": ["gpu1", "gpu2"]}
    assert desk("inventory", "--host", "gpu1").json == {}
    assert desk.opened == []


def test_init_makes_a_start_that_is_valid(desk: Desk) -> None:
    """In a new folder; a second time nothing is overwritten."""
    assert desk("init", "new").code == 0
    said = desk("validate", "-i", "new/inventory", "-m", "new/models.d")
    assert (said.code, said.out) == (0, "valid: 1 model, 2 hosts\n")
    assert "kept" in desk("init", "new").out


@pytest.mark.parametrize(
    "words",
    [("plan",), ("plan", "-vv"), ("apply", "-y"), ("status",), ("show", "qwen@gpu1"), ("apply", "-y", "-vv", "--json")],
)
def test_no_token_is_printed(desk: Desk, words: tuple[str, ...]) -> None:
    """At no verbosity, on neither stream."""
    for _ in range(2):
        said = desk(*words)
        assert TOKEN not in said.out + said.err


def test_json_is_one_document_and_text_is_not_mixed_in(desk: Desk) -> None:
    """For every command that knows --json, on standard output alone."""
    for words in (
        ("plan",),
        ("apply", "-y"),
        ("status",),
        ("validate",),
        ("inventory", "--list"),
        ("show", "qwen@gpu1"),
    ):
        json.loads(desk(*words, "--json").out)


def test_without_a_token_hosts_keep_theirs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said on standard error; nothing is restarted for it."""
    desk("apply", "-y")
    pids = desk.pids()
    monkeypatch.delenv("HF_TOKEN")
    said = desk("apply", "-y", "--json")
    assert (said.json["changed"], desk.pids()) == (0, pids)
    assert "no Hugging Face token" in said.err


def test_a_rotated_token_restarts_with_that_reason(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that get one."""
    desk.write("models.d/open.yaml", MODEL.replace("qwen", "open").replace("8001", "8011") + "hf_token: null\n")
    desk("apply", "-y")
    monkeypatch.setenv("HF_TOKEN", TOKEN.replace("0000", "1111"))
    changes = desk("plan", "--json").json["changes"]
    assert {(change["model"], change["action"], change["reason"]) for change in changes} == {
        ("qwen", "restart", "token_changed")
    }


def test_ctrl_c_ends_with_130(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While something is looked at."""

    def pressed(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(plans, "observe_and_plan", pressed)
    said = desk("plan")
    assert (said.code, said.out, said.err.splitlines()[-1]) == (130, "", "interrupted")


def test_a_fault_of_ours_is_one_line_without_values(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Type and place; neither a traceback nor what was in the exception."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(TOKEN)

    monkeypatch.setattr(plans, "observe_and_plan", broken)
    said = desk("plan")
    assert said.code == 1
    assert "RuntimeError at test_main.py:" in said.err
    assert TOKEN not in said.err
    assert "Traceback" not in said.err


def test_help_imports_little() -> None:
    """What is slow to load is loaded only by what needs it."""
    import subprocess  # noqa: PLC0415 - one test

    code = "import sys; from vmreconcile.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not {"fabric", "paramiko", "rich", "yaml", "jsonschema", "huggingface_hub"} & loaded


def test_tuning_rules_count_and_are_explained(desk: Desk) -> None:
    """A file beside the models is found, one by name too; what it sets shows in show and plan --explain."""
    rules = (
        "rules:\n- name: few\n  match: {model: '*qwen'}\n  set: {max_num_seqs: {value: 8}}\n  reason: long requests\n"
    )
    desk.write("tuning.yaml", rules)
    assert desk("apply", "-y").code == 0
    assert "--max-num-seqs" in desk("show", "qwen@gpu1", "--json").json["argv"]
    shown = desk("show", "qwen@gpu1").out
    assert "tuning.yaml:2:3 (rule few)" in shown
    assert "max_num_seqs is 8  (rule few: long requests)" in shown
    assert "tuning: max_num_seqs is 8 (rule few: long requests)" in desk("plan", "--explain").out, "in sync, too"
    assert "tuning" not in desk("plan").out
    desk.change("value: 8", "value: 16", "tuning.yaml")
    said = desk("plan", "--explain").out
    assert "args.max_num_seqs  8 → 16   (tuning.yaml:2:3 (rule few))   restarts it" in said
    assert "tuning: max_num_seqs is 16 (rule few: long requests)" in said
    desk.write("other/rules.yaml", rules.replace("8", "32"))
    changes = desk("plan", "--json", "--tuning", "other/rules.yaml").json["changes"]
    assert {row["fields"][0]["after"] for row in changes} == {32}
    desk.change("max_num_seqs", "max_num_seq", "tuning.yaml")
    said = desk("validate")
    assert said.code == 5
    assert "tuning.yaml:4" in said.out
    assert "did you mean" in said.out
    assert desk("validate", "--tuning", "not/there.yaml").code == 5
