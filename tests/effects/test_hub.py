"""What the Hub says, asked by the real huggingface_hub: of a Hub of the laboratory, and of none."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.lab.hub import COMMIT, Answer, Gate, Hub, Repository
from vmreconcile.effects.access_cache import AccessCache, cache_folder
from vmreconcile.effects.hub import ask, reachable, whoami
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.flows import access as asking
from vmreconcile.model.access import Access, Question, Verdict
from vmreconcile.model.secret import Secret

IN, OUT, WRONG = "hf_insideInsideINSIDE0", "hf_outsideOutsideOUTSIDE0", "hf_mistypedMistypedMISTYPED0"
OLD, NARROW = "hf_expiredExpiredEXPIRED0", "hf_narrowNarrowNARROW0"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An open, a gated and a private model; IN is let in everywhere, OUT is known and let in nowhere.

    OLD is past its end; NARROW is IN's account's, without the permission for gated models.
    """
    with Hub() as running:
        running.tokens |= {IN: "ada", OUT: "bob", OLD: "ada", NARROW: "ada"}
        running.expired.add(OLD)
        running.fine_grained.add(NARROW)
        granted = frozenset({IN, NARROW})
        running.repositories |= {
            "acme/open": Repository(),
            "acme/gated": Repository(gate=Gate.GATED, granted=granted),
            "acme/private": Repository(gate=Gate.PRIVATE, granted=granted),
        }
        yield running


def question(hub: Hub, model: str, revision: str = "") -> Question:
    """A question to that Hub."""
    return Question(model=model, revision=revision, endpoint=hub.url, source="default")


@pytest.mark.parametrize(
    ("model", "revision", "token", "access"),
    [
        ("acme/open", "", "", Access.OK),
        ("acme/open", "", OUT, Access.OK),
        ("acme/open", COMMIT, "", Access.OK),
        ("acme/open", "v9", "", Access.NO_SUCH_REVISION),
        ("acme/open", "", WRONG, Access.TOKEN_INVALID),
        ("acme/open", "", OLD, Access.TOKEN_INVALID),
        ("acme/open", "", NARROW, Access.OK),
        ("acme/gated", "", NARROW, Access.GATED),
        ("acme/gated", "", IN, Access.OK),
        ("acme/gated", "", OUT, Access.GATED),
        ("acme/gated", "", "", Access.NO_TOKEN),
        ("acme/gated", "", WRONG, Access.TOKEN_INVALID),
        ("acme/private", "", IN, Access.OK),
        ("acme/private", "", OUT, Access.NO_SUCH_MODEL),
        ("acme/private", "", "", Access.NO_SUCH_MODEL),
        ("acme/none", "", IN, Access.NO_SUCH_MODEL),
        ("not/a/model", "", IN, Access.NO_SUCH_MODEL),
    ],
)
def test_each_verdict(hub: Hub, model: str, revision: str, token: str, access: Access) -> None:
    """As the Hub answers for that token; no detail shows it."""
    verdict = ask(question(hub, model, revision), Secret(token) if token else None)
    assert verdict.access is access, verdict
    assert not token or token not in verdict.detail


@pytest.mark.parametrize("status", [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS])
def test_a_hub_that_is_ill_is_not_a_refusal(hub: Hub, status: HTTPStatus) -> None:
    """Nothing is known then."""
    hub.failure = status
    verdict = ask(question(hub, "acme/gated"), Secret(OUT))
    assert verdict.access is Access.HUB_UNREACHABLE
    assert str(int(status)) in verdict.detail
    assert whoami(Secret(OUT), hub.url).problem


def test_nobody_there(hub: Hub) -> None:
    """A closed port, and one that accepts and hangs up."""
    hub.close()
    assert ask(question(hub, "acme/open"), None).access is Access.HUB_UNREACHABLE
    with socket.create_server(("127.0.0.1", 0)) as rude:

        def hang_up() -> None:
            rude.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        seen = ask(Question(model="acme/open", endpoint=f"http://127.0.0.1:{rude.getsockname()[1]}"), Secret(IN))
    assert seen.access is Access.HUB_UNREACHABLE
    assert IN not in seen.detail


def test_whose_a_token_is(hub: Hub) -> None:
    """User, role and name of the token; an unknown one is invalid."""
    seen = whoami(Secret(IN), hub.url)
    assert (seen.user, seen.role, seen.token_name, seen.problem) == ("ada", "read", "test", "")
    wrong = whoami(Secret(WRONG), hub.url)
    assert (wrong.user, wrong.invalid) == ("", True)
    assert WRONG not in wrong.problem


def counting(hub: Hub, home: Path, **secrets: str) -> asking.Hub:
    """The Hub as a run asks it."""
    options = TransportOptions(environ={"HF_ENDPOINT": hub.url}, home=home)
    return asking.Hub(options=options, secrets={name: Secret(text) for name, text in secrets.items()})


def test_what_was_allowed_is_not_asked_again_within_the_hour(hub: Hub, tmp_path: Path) -> None:
    """What was refused is; another token is another question; the file shows no token and is nobody else's."""
    questions = [question(hub, name) for name in ("acme/open", "acme/gated", "acme/gated")]
    first = counting(hub, tmp_path, default=OUT).verdicts(questions)
    assert {each.model: verdict.access for each, verdict in first.items()} == {
        "acme/gated": Access.GATED,
        "acme/open": Access.OK,
    }
    hub.requests.clear()
    hub.grant("acme/gated", OUT)
    second = counting(hub, tmp_path, default=OUT).verdicts(questions)
    assert {verdict.access for verdict in second.values()} == {Access.OK}
    assert {request.path.split("/")[-1] for request in hub.requests} == {"gated", "auth-check"}
    hub.requests.clear()
    counting(hub, tmp_path, default=OUT).verdicts(questions)
    assert hub.requests == []
    counting(hub, tmp_path, default=IN).verdicts(questions)
    assert {request.token for request in hub.requests} == {IN}
    hub.requests.clear()
    counting(hub, tmp_path, default=OUT).verdicts(questions, fresh=True)
    assert {request.token for request in hub.requests} == {OUT}
    path = cache_folder({}, tmp_path) / "access.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not any(token in path.read_text() for token in (IN, OUT, "acme"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"key": "zz", "kept": {}}'),
        *('{"key": "' + "00" * 32 + '", "kept": ' + kept + "}" for kept in ("1", '{"a": 1}', '{"a": [1]}')),
    ],
)
def test_a_damaged_cache_is_empty(text: str, tmp_path: Path) -> None:
    """And is written anew."""
    (tmp_path / "access.json").write_text(text)
    cache = AccessCache(tmp_path)
    one = Question(model="a/b")
    assert cache.allowed(one, None) is None
    cache.keep(one, None, Verdict(access=Access.OK, architectures=("AForCausalLM",)))
    cache.save()
    again = AccessCache(tmp_path).allowed(one, None)
    assert again is not None
    assert again.architectures == ("AForCausalLM",)
    assert AccessCache(tmp_path).allowed(one, Secret(IN)) is None


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    """Not for each of a thousand models."""
    asked: list[Question] = []

    def nobody(one: Question, _: Secret | None) -> Verdict:
        asked.append(one)
        return Verdict(access=Access.HUB_UNREACHABLE, detail="no route")

    hub = asking.Hub(options=TransportOptions(environ={}, home=tmp_path), asking=nobody)
    found = hub.verdicts([Question(model=f"a/{number}") for number in range(50)])
    assert len(asked) == 1
    assert len(found) == 50
    assert {verdict.access for verdict in found.values()} == {Access.HUB_UNREACHABLE}


@pytest.mark.parametrize("forks", [1, 3])
def test_questions_are_asked_side_by_side(tmp_path: Path, forks: int) -> None:
    """As many as `forks` at once, and never more."""
    lock, full, now, most = threading.Lock(), threading.Event(), 0, 0

    def slow(one: Question, _: Secret | None) -> Verdict:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        if now == forks:
            full.set()
        assert full.wait(10), "they come one after the other"
        time.sleep(0.01)
        with lock:
            now -= 1
        return Verdict(access=Access.OK)

    options = TransportOptions(environ={}, home=tmp_path)
    hub = asking.Hub(options=options, asking=slow, forks=forks)
    # The first question to an endpoint goes alone, so each has an endpoint of its own here.
    found = hub.verdicts([Question(model="a/m", endpoint=f"http://hub{number}") for number in range(9)])
    assert {verdict.access for verdict in found.values()} == {Access.OK}
    assert most == forks


def test_a_look_at_the_command_line_loads_no_hub() -> None:
    """huggingface_hub is loaded when something is asked, and not before."""
    program = "import sys, vmreconcile.cli.plans, vmreconcile.cli.auth_check; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_a_question_ends_in_time_whatever_the_hub_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts and says nothing, and one that drips, for every question that there is."""
    monkeypatch.setattr("vmreconcile.effects.hub.OVERALL_S", 0.5)
    token = Secret(IN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert ask(Question(model="a/b", endpoint=url), token).access is Access.HUB_UNREACHABLE
        assert "no whole answer within 0.5 s" in whoami(token, url).problem
        assert "no whole answer within 0.5 s" in reachable(url)


@pytest.mark.parametrize("body", [b"[1]", b'"x"', b"3", b"null"])
def test_an_identity_that_is_none(hub: Hub, body: bytes) -> None:
    """Whatever JSON it is."""
    hub.answer = lambda _: Answer(status=HTTPStatus.OK, body=body, headers={"Content-Type": "application/json"})  # type: ignore[method-assign] # a Hub that is none
    assert whoami(Secret(IN), hub.url).problem


@pytest.mark.parametrize("endpoint", ["http://hub:abc", "http://[::1", "http://a b/", "nonsense", "ftp://x"])
def test_an_endpoint_that_is_no_address(endpoint: str) -> None:
    """Is one that cannot be asked."""
    assert ask(Question(model="a/b", endpoint=endpoint), None).access is Access.HUB_UNREACHABLE
    assert whoami(Secret(IN), endpoint).problem
    assert reachable(endpoint)
