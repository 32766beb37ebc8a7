"""The agent asks the Hub itself: every verdict, whose token it shows, and to whom it never does."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.agent.driver import Agent, Refused
from tests.lab.hub import Answer, Gate, Hub, Repository

TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up
OTHER = TOKEN.replace("0000", "9999")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub with one model of each kind."""
    with Hub() as running:
        running.tokens[TOKEN] = "ada"
        running.repositories = {
            "org/open": Repository(),
            "org/gated": Repository(gate=Gate.GATED),
            "org/granted": Repository(gate=Gate.GATED, granted=frozenset({TOKEN})),
            "org/private": Repository(gate=Gate.PRIVATE),
        }
        yield running


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent with folders of its own."""
    running = Agent(tmp_path)
    yield running
    running.close()


def check(model: str, endpoint: str, **more: object) -> dict[str, Any]:
    """One question about the server m."""
    return {"slug": "m", "model": model, "revision": "", "endpoint": endpoint, "token": "default", **more}


def asked(agent: Agent, *checks: dict[str, Any], **secrets: str) -> list[dict[str, Any]]:
    """What the agent answers."""
    answers: list[dict[str, Any]] = agent.ask(do="hub-check", checks=list(checks), secrets=secrets)[0]["answers"]
    return answers


@pytest.mark.parametrize(
    ("model", "revision", "token", "access"),
    [
        ("org/open", "", TOKEN, "ok"),
        ("org/open", "", "", "ok"),
        ("org/open", "main", TOKEN, "ok"),
        ("org/open", "v9", TOKEN, "no_such_revision"),
        ("org/granted", "", TOKEN, "ok"),
        ("org/gated", "", TOKEN, "gated"),
        ("org/gated", "", "", "no_token"),
        ("org/open", "", OTHER, "token_invalid"),
        ("org/private", "", TOKEN, "no_such_model"),
        ("org/nothing", "", TOKEN, "no_such_model"),
        ("org/nothing", "", "", "no_such_model"),
    ],
)
def test_verdicts(agent: Agent, hub: Hub, model: str, revision: str, token: str, access: str) -> None:
    """As the controller's own client calls them."""
    secrets = {"default": token} if token else {}
    (answer,) = asked(agent, check(model, hub.url, revision=revision), **secrets)
    assert (answer["access"], answer["token"]) == (access, "controller" if token else "none")
    assert TOKEN not in str(answer)


def test_a_hub_that_is_ill_or_gone_is_unreachable(agent: Agent, hub: Hub) -> None:
    """With what it or the network said."""
    hub.failure = HTTPStatus.SERVICE_UNAVAILABLE
    (answer,) = asked(agent, check("org/open", hub.url), default=TOKEN)
    assert (answer["access"], answer["detail"]) == ("hub_unreachable", "Service Unavailable")
    (answer,) = asked(agent, check("org/open", "http://127.0.0.1:9"), default=TOKEN)
    assert answer["access"] == "hub_unreachable"
    assert "refused" in answer["detail"].lower()


def test_the_env_files_token_is_used_where_none_was_sent(agent: Agent, hub: Hub) -> None:
    """And none at all where the server is to have none."""
    steps = [{"step": "write-env", "path": f"{agent.folders['config']}/env/m.env", "entries": [["HF_TOKEN", TOKEN]]}]  # type: ignore[index] # it has folders
    agent.ask(do="steps", slug="m", steps=steps, secrets={})
    answers = asked(agent, check("org/granted", hub.url), check("org/granted", hub.url, token=None))
    assert [(answer["access"], answer["token"]) for answer in answers] == [("ok", "env-file"), ("no_token", "none")]


def test_a_redirect_elsewhere_goes_without_the_token(agent: Agent, hub: Hub) -> None:
    """Another host must not learn it; one on the same host keeps it."""

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        target: ClassVar[str] = ""
        seen: ClassVar[list[str | None]] = []

        def do_GET(self) -> None:
            self.seen.append(self.headers.get("Authorization"))
            self.send_response(307)
            self.send_header("Location", f"{self.target}/api/models/org/granted")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    Elsewhere.target = hub.url
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        (answer,) = asked(agent, check("org/moved", f"http://127.0.0.1:{server.server_port}"), default=TOKEN)
        server.shutdown()
    assert Elsewhere.seen[0] == f"Bearer {TOKEN}"
    assert hub.requests[0].token is None
    assert TOKEN not in str(answer)


def test_the_servers_proxy_is_used_and_the_logins_is_not(agent: Agent, hub: Hub) -> None:
    """A proxy speaks for the endpoint: here the Hub itself, asked for another name."""
    (answer,) = asked(agent, check("org/open", "http://hub.invalid", proxies={"http_proxy": hub.url}), default=TOKEN)
    assert hub.requests[0].path == "http://hub.invalid/api/models/org/open"
    assert answer["access"] == "ok"


@pytest.mark.parametrize(
    "wrong",
    [
        {"checks": "x"},
        {"checks": [1]},
        {"checks": [check("org/open", "file:///etc/passwd")]},
        {"checks": [check("org/open", "http://x", slug="../x")]},
        {"checks": [], "timeout": 0},
    ],
)
def test_a_malformed_request_is_refused(agent: Agent, wrong: dict[str, Any]) -> None:
    """By name, before anything is asked."""
    with pytest.raises(Refused) as caught:
        agent.ask(do="hub-check", **wrong)
    assert caught.value.kind == "bad-request"


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /a b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
    ],
)
def test_what_is_no_hub_is_unreachable(agent: Agent, answer: bytes) -> None:
    """Whatever it says, the other checks of this host go on."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as client:
                        client.recv(65536)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        check = {"slug": "m", "model": "a/b", "revision": "", "endpoint": url}
        (found,) = agent.ask("hub-check", checks=[check])[0]["answers"]
        assert (found["access"], bool(found["detail"])) == ("hub_unreachable", True)
        (seen,) = agent.ask("checkup", endpoints=[url])[0]["checkup"]["hubs"]
        assert seen["endpoint"] == url


def test_answers_about_no_model_and_addresses_that_are_none(agent: Agent, hub: Hub) -> None:
    """Only the Hub's own words count: what a proxy says in its place refuses nobody."""
    answer = hub.answer
    for body, status, headers in (
        (b"[1, 2]", HTTPStatus.OK, {}),
        (b"{}", HTTPStatus.OK, {}),
        (b"", HTTPStatus.FORBIDDEN, {}),
        (b"", HTTPStatus.NOT_FOUND, {}),
        (b"", HTTPStatus.UNAUTHORIZED, {}),
    ):
        hub.answer = lambda _: Answer(status=status, body=body, headers=headers)  # type: ignore[method-assign] # noqa: B023 - used at once
        check = {"slug": "m", "model": "a/b", "revision": "", "endpoint": hub.url}
        assert agent.ask("hub-check", checks=[check])[0]["answers"][0]["access"] == "hub_unreachable", (body, status)
    hub.answer = answer  # type: ignore[method-assign]
    for endpoint in ("http://hub:abc", "http://[::1", "http://a b/", "http://"):
        check = {"slug": "m", "model": "a/b", "revision": "", "endpoint": endpoint}
        assert agent.ask("hub-check", checks=[check])[0]["answers"][0]["access"] == "hub_unreachable", endpoint
        assert agent.ask("checkup", endpoints=[endpoint])[0]["checkup"]["hubs"][0]["problem"], endpoint


@pytest.mark.slow
def test_a_hub_that_drips_is_given_up(agent: Agent) -> None:
    """Each byte would begin the time anew."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    client.sendall(b" ")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        check = {"slug": "m", "model": "a/b", "revision": "", "endpoint": url}
        began = time.monotonic()
        (found,) = agent.ask("hub-check", checks=[check], timeout=1.0)[0]["answers"]
        assert (found["access"], found["detail"]) == ("hub_unreachable", "no whole answer within 1 s")
        assert time.monotonic() - began < 8
