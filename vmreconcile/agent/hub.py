"""The request `hub-check`: may this host's servers read their models? Asked from here, with the token they would use.

The token goes to the endpoint alone: a redirect to another host, or away from TLS, goes without it. No answer holds it.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request

from . import jsontext, masks, survey
from .folders import Folders, is_slug
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Callable

    from .frames import Channel

LONGEST = 8 << 20
SHOWN = 200
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def hub_check(
    request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]
) -> dict[str, Any]:
    """Answer each check with `access` and `detail`, and whose token was used.

    Raises:
        Problem: `bad-request`.
    """
    del channel, progress
    checks, secrets, timeout = request.get("checks"), request.get("secrets") or {}, request.get("timeout", 10.0)
    good = isinstance(checks, list) and isinstance(secrets, dict)
    if not good or not isinstance(timeout, (int, float)) or not 0 < timeout <= 60:
        raise Problem("bad-request", "hub-check needs checks, secrets and timeout")
    seen = survey.Survey(folders)
    return {"answers": [_answer(check, secrets, seen, timeout) for check in checks or ()]}


def _answer(check: Any, secrets: dict[str, Any], seen: survey.Survey, timeout: float) -> dict[str, Any]:  # noqa: ANN401 - unchecked so far
    """One check.

    Raises:
        Problem: `bad-request`.
    """
    names = ("slug", "model", "revision", "endpoint")
    if not isinstance(check, dict) or not all(isinstance(check.get(name), str) for name in names):
        raise Problem("bad-request", "a check has slug, model, revision and endpoint")
    slug, endpoint = check["slug"], check["endpoint"]
    if not is_slug(slug) or not endpoint.startswith(("http://", "https://")):
        raise Problem("bad-request", "a check's slug or endpoint is none")
    token, whose = _token(check.get("token"), secrets, seen.environment(slug)[0])
    opener = _opener(check.get("proxies") or {})
    access, detail = _ask(opener, check, token, timeout)
    return {"slug": slug, "access": access, "detail": _plain(detail, token), "token": whose}


def _token(wanted: Any, secrets: dict[str, Any], kept: dict[str, str]) -> tuple[str, str]:  # noqa: ANN401 - as above
    """The token to ask with, and where it is from: the controller, the env file, or nowhere.

    Raises:
        Problem: `bad-request` where a secret that is named was not sent.
    """
    if not isinstance(wanted, str):
        return "", "none"
    if wanted in secrets:
        return str(secrets[wanted]), "controller"
    return (kept[survey.TOKEN], "env-file") if kept.get(survey.TOKEN) else ("", "none")


def _ask(opener: urllib.request.OpenerDirector, check: dict[str, Any], token: str, timeout: float) -> tuple[str, str]:
    """Ask for the model's metadata, and where it is gated for its gate."""
    base = "{}/api/models/{}".format(check["endpoint"].rstrip("/"), urllib.parse.quote(check["model"], safe="/"))
    about = base
    if check["revision"]:
        about += "/revision/" + urllib.parse.quote(check["revision"], safe="")
    try:
        found = jsontext.loads(_get(opener, about, token, timeout).decode("utf-8", "replace"))
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            return "hub_unreachable", "the answer is about no model"
        if found.get("gated") not in (False, None):
            _get(opener, base + "/auth-check", token, timeout)
    except urllib.error.HTTPError as error:
        return _refusal(error, token)
    except http.client.InvalidURL as error:
        return "hub_unreachable", str(error)
    except (ValueError, RecursionError):
        return "hub_unreachable", "the answer is not JSON, or the endpoint is no address"
    except http.client.HTTPException as error:
        return "hub_unreachable", "the answer is not HTTP ({})".format(type(error).__name__)
    except OSError as error:
        return "hub_unreachable", str(getattr(error, "reason", None) or error)
    return "ok", ""


def _get(opener: urllib.request.OpenerDirector, url: str, token: str, timeout: float) -> bytes:
    headers = {"User-Agent": "vmreconcile-agent"}
    if token:
        headers["Authorization"] = "Bearer " + token
    until = time.monotonic() + timeout
    data = b""
    with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:  # noqa: S310 - checked
        while len(data) < LONGEST:
            part: bytes = answer.read1(1 << 16)
            if not part:
                break
            data += part
            if time.monotonic() > until:  # each byte would begin the time anew
                raise TimeoutError("no whole answer within {:g} s".format(timeout))
    return data


def _refusal(error: urllib.error.HTTPError, token: str) -> tuple[str, str]:
    """The Hub's own codes (X-Error-Code) before the status; a 401 without one is about the token."""
    code = error.headers.get("X-Error-Code", "") or ""
    said = error.headers.get("X-Error-Message", "") or "HTTP {}".format(error.code)
    if not code and not error.headers.get("X-Error-Message"):
        return "hub_unreachable", said + " without the Hub's reason"
    if code == "GatedRepo" or error.code == 403:
        return "gated" if token else "no_token", said
    if code == "RevisionNotFound":
        return "no_such_revision", said
    if error.code == 401 and token and code != "RepoNotFound":
        return "token_invalid", said
    if code == "RepoNotFound" or error.code in (401, 404):
        return "no_such_model", said
    return "hub_unreachable", said


def _plain(detail: str, token: str) -> str:
    """One short line without the token."""
    detail = detail.replace(token, masks.STARS) if token else detail
    return " ".join(masks.mask_text(detail).split())[:SHOWN]


def _opener(proxies: dict[str, Any]) -> urllib.request.OpenerDirector:
    """Ask through the server's own proxies, not through those of the login."""
    used = {name[: -len("_proxy")]: str(proxies[name]) for name in PROXIES if proxies.get(name)}
    if "all" in used:
        used = {"http": used["all"], "https": used["all"], **used}
    return urllib.request.build_opener(urllib.request.ProxyHandler(used), _Redirects())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows, but shows the token to nobody else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The next request, without the token where it goes elsewhere."""
        follow = super().redirect_request(req, fp, code, msg, headers, newurl)
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if follow is not None and (before.scheme, before.netloc) != (after.scheme, after.netloc):
            follow.remove_header("Authorization")
        return follow
