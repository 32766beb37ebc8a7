"""auth, and what plan and apply make of the Hub's answer: the real huggingface_hub, a Hub of the laboratory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus

import pytest

from tests.lab.desk import Desk
from tests.lab.hub import Answer, Gate, Hub, Repository, Request
from tests.lab.worlds import TOKEN
from vmreconcile.effects.parallel import for_each
from vmreconcile.flows import access
from vmreconcile.model.access import Question, Verdict

OTHER = TOKEN.replace("0000", "9999")


@pytest.fixture
def hub(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that knows the desk's token, with the desk's model, open."""
    del desk  # the Hub's variables come after the desk has emptied them
    with Hub() as running:
        running.tokens[TOKEN] = "ada"
        running.repositories["org/qwen"] = Repository()
        for name, value in running.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield running


def test_a_server_that_may_read_its_model_starts(desk: Desk, hub: Hub) -> None:
    """The Hub is asked once for both; a plan with nothing to start asks nothing."""
    assert desk("apply", "-y").code == 0
    assert [request.path.split("?")[0] for request in hub.requests] == ["/api/models/org/qwen"]
    hub.requests.clear()
    assert desk("plan", "--detailed-exitcode").code == 0
    assert desk("status").code == 0
    assert hub.requests == []


@pytest.mark.parametrize(
    ("repository", "token", "expected"),
    [
        (Repository(gate=Gate.GATED), TOKEN, ("gated", "ask for access on http://127.0.0.1:")),
        (Repository(gate=Gate.GATED), "", ("token_missing", "vmreconcile auth login")),
        (Repository(), OTHER, ("token_invalid", "vmreconcile auth login")),
        (None, TOKEN, ("model_not_found", "correct model:")),
    ],
)
def test_a_start_that_could_not_succeed_is_blocked(
    desk: Desk,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    repository: Repository | None,
    token: str,
    expected: tuple[str, str],
) -> None:
    """Nothing is sent to any host; the reason and the way out are said; exit 1."""
    reason, remedy = expected
    hub.repositories = {"org/qwen": repository} if repository else {}
    monkeypatch.setenv("HF_TOKEN", token)
    said = desk("apply", "-y", "--json")
    assert said.code == 1
    errors = [row["error"] for row in said.json["results"]]
    assert [error["class"] for error in errors] == [reason, reason]
    assert remedy in errors[0]["remedy"]
    assert desk.pids() == {}
    plan = desk("plan", "--json").json
    assert [(row["action"], row["reason"]) for row in plan["changes"]] == [("blocked", reason)] * 2
    assert all(secret not in said.out + said.err for secret in (TOKEN, OTHER))


def test_what_runs_is_not_stopped_for_a_model_that_cannot_be_read(desk: Desk, hub: Hub) -> None:
    """A change of the model, and a retune, of running servers, once access was taken back; in a plan file too."""
    desk("apply", "-y")
    pids = desk.pids()
    desk.change("max_model_len: 4096", "max_model_len: 2048")
    assert desk("plan", "-o", "p.json").code == 0
    hub.repositories["org/qwen"] = Repository(gate=Gate.GATED)
    (desk.folder / ".cache/vmreconcile/access.json").unlink()
    for words in (("apply", "-y"), ("apply", "p.json"), ("restart", "qwen")):
        assert desk(*words).code == 1
    assert desk.pids() == pids
    desk.change("model: org/qwen", "model: org/other")
    assert desk("apply", "-y").code == 1
    assert desk.pids() == pids
    hub.grant("org/qwen", TOKEN)
    desk.change("model: org/other", "model: org/qwen")
    assert desk("apply", "-y").code == 0
    assert not set(desk.pids().values()) & set(pids.values())


def test_rules_about_an_architecture_ask_the_hub(desk: Desk, hub: Hub) -> None:
    """With the server's own token, once an hour, before the first start; afterwards the host's file says the same."""
    rules = """rules:
- name: few
  match: {architecture: "qwen2for*"}
  set: {max_num_seqs: {value: 8}}
  reason: because
"""
    desk.write("tuning.yaml", rules)
    files = {"config.json": b'{"architectures": ["Qwen2ForCausalLM"]}'}
    hub.repositories["org/qwen"] = Repository(files=files, gate=Gate.GATED)
    hub.grant("org/qwen", TOKEN)
    assert desk("apply", "-y").code == 0
    assert all("--max-num-seqs" in host.root("qwen").argv for host in desk.hosts.values())
    hub.requests.clear()
    assert desk("plan", "--detailed-exitcode").code == 0
    assert hub.requests == []
    (desk.folder / ".cache/vmreconcile/access.json").unlink()
    hub.close()
    for host in desk.hosts.values():
        host.architectures["org/qwen"] = ["Qwen2ForCausalLM"]
    assert desk("plan", "--detailed-exitcode").code == 0
    assert "(rule few)" in desk("show", "qwen@gpu1").out


def test_a_revision_that_is_not_there(desk: Desk, hub: Hub) -> None:
    """Is found before the start."""
    del hub
    desk.write("models.d/qwen.yaml", desk.read() + "revision: v9\n")
    changes = desk("plan", "--json").json["changes"]
    assert {row["reason"] for row in changes} == {"revision_not_found"}


def test_a_hub_that_cannot_be_reached_only_warns(desk: Desk, hub: Hub) -> None:
    """Once, and the servers start."""
    hub.close()
    said = desk("apply", "-y")
    assert said.code == 0
    assert said.err.count("cannot be asked") == 1
    assert len(desk.pids()) == 2
    desk.change("max_model_len: 4096", "max_model_len: 2048")
    plan = desk("plan", "--json").json
    assert {row["action"] for row in plan["changes"]} == {"retune"}
    assert [row["code"] for row in plan["diagnostics"]] == ["access-not-checked", "another-hub"]


def test_servers_that_would_ask_another_hub_are_told(desk: Desk, hub: Hub) -> None:
    """HF_ENDPOINT of this machine reaches no host: a plan and a check say so, until servers have their own."""
    words = "HF_ENDPOINT is set here and not for 2 servers (qwen@gpu1, qwen@gpu2): they ask https://huggingface.co"
    plan = desk("plan", "--json").json
    assert [(row["code"], row["summary"]) for row in plan["diagnostics"]] == [("another-hub", words)]
    assert f"note: {words}; write it under env:" in desk("auth", "check").err
    desk.write("models.d/qwen.yaml", desk.read() + f"env: {{HF_ENDPOINT: '{hub.url}'}}\n")
    assert desk("plan", "--json").json["diagnostics"] == []
    assert "HF_ENDPOINT" not in desk("auth", "check").err


def test_a_password_in_the_hubs_address_is_not_shown(desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By no command that names the endpoint, as text or as JSON."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("://", "://ada:S3CR3T@"))
    hub.close()
    for words in (("auth", "check"), ("auth", "check", "--json"), ("doctor",), ("doctor", "--json"), ("plan",)):
        said = desk(*words)
        assert ("S3CR3T" in said.out + said.err, "***@127.0.0.1" in said.out + said.err) == (False, True), said
    desk.write("models.d/qwen.yaml", desk.read() + "env: {HF_ENDPOINT: 'http://ada:S3CR3T@10.9.9.9'}\n")
    for words in (("auth", "check", "--on-hosts"), ("auth", "check", "--on-hosts", "--json")):
        said = desk(*words)
        assert "S3CR3T" not in said.out + said.err, said


def test_a_model_that_is_not_shown_without_a_token(desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be private; what is said fits that nobody asked with a token."""
    hub.repositories.clear()
    monkeypatch.delenv("HF_TOKEN")
    said = desk("auth", "check").out
    assert "or a private one that nobody sees without a token" in said
    assert "or vmreconcile auth login" in said


def test_who_is_not_asked_about(desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a server that is offline or goes to another Hub, a host with a token that is not here."""
    desk("apply", "-y")
    hub.requests.clear()
    hub.repositories.clear()
    (desk.folder / ".cache/vmreconcile/access.json").unlink()
    monkeypatch.delenv("HF_TOKEN")
    desk.change("max_model_len: 4096", "max_model_len: 2048")
    assert desk("apply", "-y").code == 0
    desk.write("models.d/qwen.yaml", desk.read() + "env: {HF_HUB_OFFLINE: 1}\n")
    assert desk("apply", "-y").code == 0
    desk.change("model: org/qwen", "model: /srv/qwen")
    desk.change("env: {HF_HUB_OFFLINE: 1}", "env: {}")
    assert desk("apply", "-y").code == 0
    assert hub.requests == []
    with Hub() as other:
        other.repositories["org/new"] = Repository()
        desk.change("model: /srv/qwen", "model: org/new")
        desk.change("env: {}", f"hf_token: null\nenv: {{HF_ENDPOINT: '{other.url}'}}")
        assert desk("apply", "-y").code == 0
        assert other.requests
    assert hub.requests == []


def test_check_asks_for_every_model(desk: Desk, hub: Hub) -> None:
    """Each with its verdict, its remedy and its servers; 1 where one is refused."""
    desk.write("models.d/b.yaml", desk.read().replace("qwen", "gate").replace("8001", "8011"))
    hub.repositories["org/gate"] = Repository(gate=Gate.GATED)
    said = desk("auth", "check")
    assert said.code == 1
    assert "gated  org/gate is gated, and the token of source 'default' was not granted access" in said.out
    assert f"ask for access on {hub.url}/org/gate" in said.out
    assert "servers  gate@gpu1, gate@gpu2" in said.out
    rows = desk("auth", "check", "--json", "--limit", "gpu2").json["checks"]
    assert {(row["model"], row["access"], *row["servers"]) for row in rows} == {
        ("org/gate", "gated", "gate@gpu2"),
        ("org/qwen", "ok", "qwen@gpu2"),
    }
    hub.grant("org/gate", TOKEN)
    assert desk("auth", "check").code == 0
    assert TOKEN not in said.out + said.err


def test_a_server_that_chose_to_be_offline_is_told_and_fails_nothing(desk: Desk, hub: Hub) -> None:
    """Here as on the hosts: nobody asks, exit 0; the other server of the same model is asked about."""
    desk.write("models.d/qwen.yaml", desk.read() + "overrides:\n  gpu1:\n    env: {HF_HUB_OFFLINE: '1'}\n")
    said = desk("auth", "check", "--json")
    assert said.code == 0
    assert {(row["access"], *row["servers"]): row["remedy"] for row in said.json["checks"]} == {
        ("offline", "qwen@gpu1"): None,
        ("ok", "qwen@gpu2"): None,
    }
    assert "offline  org/qwen: not asked, for HF_HUB_OFFLINE is set in the servers' own" in desk("auth", "check").out
    rows = desk("auth", "check", "--on-hosts", "--json")
    assert (rows.code, {(row["access"], row["server"]) for row in rows.json["checks"]}) == (
        0,
        {("offline", "qwen@gpu1"), ("ok", "qwen@gpu2")},
    )
    hub.requests.clear()
    assert desk("auth", "check", "-l", "gpu1", "--no-cache").code == 0
    assert hub.requests == []


def test_a_model_of_no_host_is_asked_about_too(desk: Desk, hub: Hub) -> None:
    """With what is said for all hosts, by its revision; not with a limit, which names hosts, nor where it is to go."""
    desk.write("inventory/hosts.yml", desk.read("inventory/hosts.yml") + "spare:\n")
    text = "name: later\nmodel: org/later\nhosts: spare\nport: 8050\nrevision: v9\n"
    desk.write("models.d/later.yaml", text)
    said = desk("auth", "check")
    assert said.code == 1
    assert "no_such_model  " in said.out
    assert "servers  none: its hosts: names no host" in said.out
    hub.repositories["org/later"] = Repository(gate=Gate.PRIVATE, granted=frozenset({OTHER}))
    hub.tokens[OTHER] = "bob"
    desk.write("secret", OTHER)
    desk.write("group_vars/all.yml", "vllm_token_sources: {b: {file: ~/secret}}\nvllm_hf_token: b\n")
    rows = {row["model"]: row for row in desk("auth", "check", "--json").json["checks"]}
    later = rows["org/later"]
    assert (later["access"], later["source"], later["servers"]) == ("no_such_revision", "b", [])
    assert set(rows) == {"org/later", "org/qwen"}
    assert desk("auth", "check", "-l", "gpu1").code == 0
    desk.write("models.d/later.yaml", text + "state: absent\n")
    assert desk("auth", "check").code == 0


@pytest.mark.parametrize("words", [("auth", "check"), ("plan",)])
def test_forks_bound_the_questions_too(
    desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Those of `auth check` and of a plan."""
    asked: list[int] = []

    def noted(items: Iterable[Question], function: Callable[[Question], Verdict], forks: int) -> object:
        asked.append(forks)
        return for_each(items, function, forks)

    monkeypatch.setattr(access, "for_each", noted)
    assert desk(*words, "-f", "3").code == 0
    assert set(asked) == {3}
    assert hub.requests


def test_check_that_could_not_ask_is_no_success(desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unreachable, and offline."""
    hub.close()
    said = desk("auth", "check", "--json")
    assert (said.code, {row["access"] for row in said.json["checks"]}) == (1, {"hub_unreachable"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = desk("auth", "check", "--json")
    assert (said.code, {row["access"] for row in said.json["checks"]}) == (1, {"offline"})


def test_status_tells_where_from_and_whose(desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default from the environment, a file that wins over it, an invalid one, a source that fails."""
    said = desk("auth", "status")
    assert said.code == 0
    assert "found in  HF_TOKEN" in said.out
    assert "whose     ada (token test, role read)" in said.out
    assert desk("auth", "status", "--json").json["sources"][0]["expires"] is None
    hub.expires = "2027-01-01T00:00:00.000Z"
    assert "role read, expires 2027-01-01T00:00:00.000Z)" in desk("auth", "status").out
    assert desk("auth", "status", "--json").json["sources"][0]["expires"] == hub.expires
    assert "qwen@gpu1, qwen@gpu2" in said.out
    desk.write(".cache/huggingface/token", OTHER)
    said = desk("auth", "status", "--json")
    (row,) = said.json["sources"]
    assert (said.code, row["valid"], row["user"]) == (1, False, None)
    assert row["found_in"].endswith(".cache/huggingface/token")
    assert "HF_TOKEN ignored: the cache file wins" in row["warnings"][0]
    hub.failure = HTTPStatus.SERVICE_UNAVAILABLE
    (row,) = desk("auth", "status", "--json").json["sources"]
    assert (row["valid"], bool(row["problem"])) == (None, True)
    (desk.folder / ".cache/huggingface/token").unlink()
    monkeypatch.delenv("HF_TOKEN")
    said = desk("auth", "status")
    assert said.code == 1
    assert "problem   there is no token" in said.out
    assert all(secret not in said.out + said.err for secret in (TOKEN, OTHER))


def run(desk: Desk, hub: Hub, data: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`auth login` in a process of its own, for the Hub's client reads its environment once."""
    env = {"HOME": str(desk.folder / "home"), "PATH": os.environ["PATH"], **hub.environ()}
    argv = [sys.executable, "-m", "vmreconcile", "auth", "login", *words]
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(argv, input=data, env=env, capture_output=True, text=True, check=False, cwd=desk.folder)


@pytest.mark.slow
def test_login_stores_what_the_hub_knows(desk: Desk, hub: Hub) -> None:
    """In the client's own file, 0600, under its name too; the same token is then found by the source `default`."""
    done = run(desk, hub, f"{TOKEN}\n")
    assert done.returncode == 0, done
    assert "logged in as ada (role read)" in done.stdout
    path = desk.folder / "home/.cache/huggingface/token"
    assert (path.read_text(), path.stat().st_mode & 0o777) == (TOKEN, 0o600)
    assert "[test]" in path.with_name("stored_tokens").read_text()
    assert TOKEN not in done.stdout + done.stderr
    again = run(desk, hub, f"{TOKEN}\n", "--json")
    assert json.loads(again.stdout) == {"format_version": 1, "user": "ada", "role": "read", "file": str(path)}


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (f"{OTHER}\n", 1, "does not accept this token"),
        ("\n", 64, "no token came"),
        ("two words\n", 64, "that is no token"),
    ],
)
@pytest.mark.slow
def test_login_refuses_what_is_no_token(desk: Desk, hub: Hub, data: str, code: int, said: str) -> None:
    """Nothing is stored, and it is not shown."""
    done = run(desk, hub, data, "-vv")
    assert (done.returncode, said in done.stderr) == (code, True), done
    assert not (desk.folder / "home/.cache/huggingface/token").exists()
    assert OTHER not in done.stdout + done.stderr


@pytest.mark.slow
def test_login_with_nobody_to_ask(desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Hub: nothing is stored. --no-input at a terminal: usage."""
    hub.close()
    done = run(desk, hub, f"{TOKEN}\n")
    assert done.returncode == 1
    assert "cannot be asked" in done.stderr
    assert "nothing was stored" in done.stderr

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert desk("auth", "login", "--no-input").code == 64


@pytest.mark.slow
def test_login_makes_files_of_an_earlier_login_the_owners_alone(desk: Desk, hub: Hub) -> None:
    """Older clients left them readable for everybody."""
    folder = desk.folder / "home/.cache/huggingface"
    folder.mkdir(parents=True)
    for name in ("token", "stored_tokens"):
        (folder / name).write_text("")
        (folder / name).chmod(0o644)
    assert run(desk, hub, f"{TOKEN}\n").returncode == 0
    assert {(folder / name).stat().st_mode & 0o777 for name in ("token", "stored_tokens")} == {0o600}


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [{}, {"HF_DEBUG": "1"}, {"HF_HUB_VERBOSITY": "debug"}])
def test_no_library_writes_what_the_hub_repeats(desk: Desk, hub: Hub, noisy: dict[str, str]) -> None:
    """Headers and addresses go into the debug logs of HTTP libraries."""
    answer = hub.answer

    def echo(request: Request) -> Answer:
        good = answer(request)
        if request.token and "?t=" not in request.path:
            return replace(good, status=HTTPStatus.FOUND, headers={"Location": f"{request.path}?t={request.token}"})
        return replace(good, headers={**good.headers, "X-Echo": request.token or "", "X-Request-Id": "r"})

    hub.answer = echo  # type: ignore[method-assign] # a Hub that repeats what it hears
    env = {"HOME": str(desk.folder), "PATH": os.environ["PATH"], "HF_TOKEN": TOKEN, **hub.environ(), **noisy}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    for words in (("auth", "status", "-vv"), ("auth", "check", "-v"), ("auth", "status")):
        done = subprocess.run(
            [sys.executable, "-m", "vmreconcile", *words],
            env=env, capture_output=True, text=True, check=False, cwd=desk.folder,
        )  # fmt: skip
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
