"""A Hugging Face Hub for tests: the few endpoints that huggingface_hub and vLLM ask, with the Hub's own refusals.

Owns its repositories, tokens and a record of what was asked. Checked against the real client in test_hub.py.
Set `environ()` for whoever is to use it. Started inside `with lab.network():` on the bridge, hosts reach it too.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import http.server
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_PERMISSION = (
    "Please enable access to public gated repositories in your fine-grained token settings to view this repository."
)
"""What the real Hub says to such a token, with 403 and no code."""
COMMIT = "c0ffee" * 6 + "c0ff"


class Gate(enum.StrEnum):
    """Who may read a repository."""

    OPEN = "open"
    GATED = "gated"
    """Anyone may read about it; its files are for tokens that were granted it, others are told that it is gated."""
    PRIVATE = "private"
    """Tokens that were granted it; for others it does not exist."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """One model repository: its files, its gate, and the tokens that pass it."""

    files: Mapping[str, bytes] = field(default_factory=lambda: {"config.json": b"{}"})
    gate: Gate = Gate.OPEN
    granted: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request that came in; `token` is None where there was no Authorization header."""

    method: str
    path: str
    token: str | None
    range: str = ""
    """Its Range header: which part of a file is wanted."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: the status, the headers and the body."""

    status: HTTPStatus
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Hub:
    """A running Hub. `tokens` maps each known token to its user's name; both maps may be changed at any time."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on `address` and `port` (0: any) from now on, with no repository and no token."""
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, str] = {}
        self.expired: set[str] = set()
        """Known tokens that are past their end."""
        self.fine_grained: set[str] = set()
        """Known tokens whose own permissions leave gated repositories out, whatever was granted to their account."""
        self.requests: list[Request] = []
        self.drops_after: int | None = None
        """Cut the connection after so many bytes of a file."""
        self.tells_sizes = True
        """Some mirrors do not."""
        self.stalls_after: int | None = None
        """Send so many bytes of a file and then nothing; cut the connection once `goes_on` is set."""
        self.goes_on = threading.Event()
        self.expires = ""
        """When tokens expire, as the Hub says it to those who ask whose they are; "": it does not say."""
        self.failure: HTTPStatus | None = None
        """Answer everything with this status instead: the Hub is ill (503) or has had enough of us (429)."""
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = http.server.ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def environ(self) -> dict[str, str]:
        """Return the environment that makes huggingface_hub and vLLM use this Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def grant(self, name: str, token: str) -> None:
        """Let `token` through the gate of the repository `name`, as its owner does on the real Hub."""
        old = self.repositories[name]
        self.repositories[name] = dataclasses.replace(old, granted=old.granted | {token})

    def close(self) -> None:
        """Stop listening."""
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def answer(self, request: Request) -> Answer:
        """Decide the answer to one request."""
        self.requests.append(request)
        if self.failure is not None:
            return _refusal(self.failure, "", self.failure.phrase)
        if request.token is not None and request.token not in self.tokens:
            return _refusal(HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")
        if request.token in self.expired:
            return _refusal(HTTPStatus.UNAUTHORIZED, "", 'User Access Token "test" is expired')
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        match path:
            case "/api/whoami-v2":
                return self._whoami(request.token)
            case "/api/whoami":
                return self._whoami_of_old(request.token)
        return self._model(path, request.token)

    def _model(self, path: str, token: str | None) -> Answer:
        """Answer what is asked about one repository."""
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/" if api else "/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if refusal := self._hidden(name, token):
            return refusal
        repository = self.repositories[name]
        match rest:
            case ["resolve", _, *file] if not api:
                return self._gated(name, token) or _file(repository, "/".join(file))
            case ["auth-check"] if api:
                return self._gated(name, token) or _json({})
            case ["tree", *_] if api:
                return _json([_row(path, data) for path, data in sorted(repository.files.items())])
            case ["revision", revision] if api and revision not in {"main", COMMIT}:
                return _refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
            case [] | ["revision", _] if api:
                return _json(_information(name, repository, sizes=self.tells_sizes))
        return _refusal(HTTPStatus.NOT_FOUND, "", "Not Found")

    def _whoami(self, token: str | None) -> Answer:
        if token is None:
            return _refusal(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
        access = {"displayName": "test", "role": "read"}
        auth = {"type": "access_token", "accessToken": access} | ({"expiresAt": self.expires} if self.expires else {})
        return _json({"type": "user", "name": self.tokens[token], "orgs": [], "auth": auth})

    def _whoami_of_old(self, token: str | None) -> Answer:
        """As the first versions of huggingface_hub read it: `user` and `orgs`."""
        seen = self._whoami(token)
        return seen if token is None else _json({"user": self.tokens[token], "orgs": []})

    def _hidden(self, name: str, token: str | None) -> Answer | None:
        """Refuse, in the Hub's words, a repository that does not exist for `token`."""
        repository = self.repositories.get(name)
        if repository is not None and (repository.gate is not Gate.PRIVATE or token in repository.granted):
            return None
        # Without a token the Hub does not say whether a repository exists.
        status = HTTPStatus.UNAUTHORIZED if token is None else HTTPStatus.NOT_FOUND
        return _refusal(status, "RepoNotFound", "Repository not found")

    def _gated(self, name: str, token: str | None) -> Answer | None:
        """Refuse, in the Hub's words, the files of a repository whose gate is shut for `token`."""
        repository = self.repositories[name]
        if repository.gate is Gate.GATED and token in self.fine_grained:
            return _refusal(HTTPStatus.FORBIDDEN, "", NO_PERMISSION)
        if repository.gate is not Gate.GATED or token in repository.granted:
            return None
        status = HTTPStatus.UNAUTHORIZED if token is None else HTTPStatus.FORBIDDEN
        advice = "Please log in." if token is None else "Visit the model's page to ask for access."
        return _refusal(status, "GatedRepo", f"Access to model {name} is restricted. {advice}")


class _Handler(http.server.BaseHTTPRequestHandler):
    """Carries requests to the Hub that owns it."""

    protocol_version = "HTTP/1.1"
    owner: ClassVar[Hub]

    def _handle(self) -> None:
        header = self.headers.get("Authorization")
        token = header.removeprefix("Bearer ") if header else None
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        wanted = self.headers.get("Range") or ""
        request = Request(method=self.command, path=self.path, token=token, range=wanted)
        answer = _part(self.owner.answer(request), wanted)
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.owner.drops_after
        if limit is not None and "/resolve/" in self.path and len(answer.body) > limit:
            self.wfile.write(answer.body[:limit])
            self.close_connection = True
            return
        stall = self.owner.stalls_after
        if stall is not None and "/resolve/" in self.path and len(answer.body) > stall:
            self.wfile.write(answer.body[:stall])
            self.owner.goes_on.wait()
            self.close_connection = True
            return
        self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = _handle  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing: `Hub.requests` is the record."""


def _part(answer: Answer, wanted: str) -> Answer:
    """The rest of a file, where the client has its beginning."""
    begin = wanted.removeprefix("bytes=").partition("-")[0]
    if answer.status is not HTTPStatus.OK or "ETag" not in answer.headers or not begin.isdigit():
        return answer
    at, size = int(begin), len(answer.body)
    headers = {**answer.headers, "Content-Range": f"bytes {at}-{size - 1}/{size}"}
    return Answer(status=HTTPStatus.PARTIAL_CONTENT, body=answer.body[at:], headers=headers)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _row(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": _etag(data)}


def _information(name: str, repository: Repository, *, sizes: bool) -> dict[str, object]:
    return {
        "id": name,
        "modelId": name,
        "sha": COMMIT,
        "private": repository.gate is Gate.PRIVATE,
        "gated": "manual" if repository.gate is Gate.GATED else False,
        "tags": [],
        "siblings": [
            {"rfilename": path} | ({"size": len(data), "blobId": _etag(data)} if sizes else {})
            for path, data in sorted(repository.files.items())
        ],
        "config": {"architectures": _architectures(repository)},
        "createdAt": "2026-01-01T00:00:00.000Z",
    }


def _architectures(repository: Repository) -> object:
    """What the Hub takes from config.json into a model's metadata."""
    return json.loads(repository.files.get("config.json", b"{}")).get("architectures", [])


def _file(repository: Repository, path: str) -> Answer:
    data = repository.files.get(path)
    if data is None:
        return _refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
    return Answer(status=HTTPStatus.OK, body=data, headers={"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})


def _json(value: object) -> Answer:
    return Answer(status=HTTPStatus.OK, body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def _refusal(status: HTTPStatus, code: str, message: str) -> Answer:
    headers = {"X-Error-Message": message, "X-Request-Id": "test"}
    if code:
        headers["X-Error-Code"] = code
    if code == "EntryNotFound":
        headers["X-Repo-Commit"] = COMMIT
    return Answer(status=status, body=json.dumps({"error": message}).encode(), headers=headers)
