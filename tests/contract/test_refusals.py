"""The Hub's refusals are read alike by the controller, by the agent and by the program that fetches on a host."""

from __future__ import annotations

import email.message
import errno
import importlib
import io
import urllib.error
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status

from tests.lab.hub import NO_PERMISSION
from vmreconcile.agent.fetch_program import PROGRAM
from vmreconcile.agent.hub import _refusal
from vmreconcile.effects.hub import refusal
from vmreconcile.model.access import Access
from vmreconcile.model.secret import Secret

HTTP = importlib.import_module(type(get_session()).__module__.partition(".")[0])
"""The client's own HTTP library, httpx under one name or another."""

TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up
URL = "https://huggingface.co/api/models/acme/model"
KINDS = {
    Access.NO_TOKEN: "gated",
    Access.GATED: "gated",
    Access.TOKEN_INVALID: "bad_token",
    Access.NO_SUCH_MODEL: "no_such_repo",
    Access.NO_SUCH_REVISION: "revision_not_found",
    Access.HUB_UNREACHABLE: "hub_unreachable",
}
"""The program's word for each."""

REFUSALS = [
    (401, "GatedRepo", "Access to model acme/model is restricted.", "", Access.NO_TOKEN),
    (403, "GatedRepo", "Access to model acme/model is restricted.", TOKEN, Access.GATED),
    (403, "", NO_PERMISSION, TOKEN, Access.GATED),
    (403, "", "Forbidden", "", Access.NO_TOKEN),
    (401, "", "", TOKEN, Access.HUB_UNREACHABLE),
    (403, "", "", TOKEN, Access.HUB_UNREACHABLE),
    (404, "", "", TOKEN, Access.HUB_UNREACHABLE),
    (401, "", "Invalid credentials in Authorization header", TOKEN, Access.TOKEN_INVALID),
    (401, "", 'User Access Token "laptop" is expired', TOKEN, Access.TOKEN_INVALID),
    (401, "", "Invalid username or password.", "", Access.NO_SUCH_MODEL),
    (401, "RepoNotFound", "Repository not found", "", Access.NO_SUCH_MODEL),
    (404, "RepoNotFound", "Repository not found", TOKEN, Access.NO_SUCH_MODEL),
    (404, "", "Not Found", TOKEN, Access.NO_SUCH_MODEL),
    (404, "RevisionNotFound", "Invalid rev id: v9", TOKEN, Access.NO_SUCH_REVISION),
    (429, "", "Too Many Requests", TOKEN, Access.HUB_UNREACHABLE),
    (503, "", "Service Unavailable", TOKEN, Access.HUB_UNREACHABLE),
]


def raised(status: int, code: str, message: str) -> HfHubHTTPError:
    """What the real client raises for an answer of the real Hub's address."""
    headers = ({"X-Error-Message": message} if message else {}) | ({"X-Error-Code": code} if code else {})
    response = HTTP.Response(status, headers=headers, request=HTTP.Request("GET", URL))
    with pytest.raises(HfHubHTTPError) as caught:
        hf_raise_for_status(response)
    return caught.value


@pytest.mark.parametrize(("status", "code", "message", "token", "access"), REFUSALS)
def test_controller(status: int, code: str, message: str, token: str, access: Access) -> None:
    """Whatever class the client makes of it."""
    assert refusal(raised(status, code, message), Secret(token) if token else None) is access


@pytest.mark.parametrize(("status", "code", "message", "token", "access"), REFUSALS)
def test_agent(status: int, code: str, message: str, token: str, access: Access) -> None:
    """By the standard library."""
    headers = email.message.Message()
    if message:
        headers["X-Error-Message"] = message
    if code:
        headers["X-Error-Code"] = code
    with urllib.error.HTTPError(URL, status, message, headers, io.BytesIO()) as error:
        assert _refusal(error, token)[0] == access.value


@pytest.mark.parametrize(("status", "code", "message", "token", "access"), REFUSALS)
def test_program(status: int, code: str, message: str, token: str, access: Access) -> None:
    """In vLLM's own interpreter."""
    begin = PROGRAM.index("def kind_of")
    names: dict[str, Any] = {"spec": {"token": token or False}, "errno": errno}
    exec(PROGRAM[begin : PROGRAM.index("\ndef run")], names)
    assert names["kind_of"](raised(status, code, message)) == KINDS[access]
