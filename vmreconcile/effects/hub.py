"""The Hugging Face Hub, asked through huggingface_hub itself: may a token read a model, whose is it, log it in.

Imports huggingface_hub only when something is asked. No message that leaves this module holds a token.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmreconcile.effects.deadline import within
from vmreconcile.errors import VmreconcileError
from vmreconcile.model.access import Access, Identity, Question, Verdict
from vmreconcile.model.secret import Secret
from vmreconcile.model.showing import masked

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfFileMetadata

TIMEOUT_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What may become a file's name in the cache."""

OVERALL_S = 20.0
"""For a whole question, however slowly its answer comes."""


def ask(question: Question, token: Secret | None) -> Verdict:
    """Ask whether the token may read the model; never raises for what the Hub or the network does."""
    try:
        architectures = within(OVERALL_S, lambda: _ask(question, hub_client(question.endpoint, token)))
    except Exception as error:  # noqa: BLE001 - whatever the network, TLS or an odd answer makes of it
        return refused(error, token)
    return Verdict(access=Access.OK, architectures=architectures)


def refused(error: Exception, token: Secret | None) -> Verdict:
    """An error of huggingface_hub as a verdict, which holds no token."""
    return Verdict(access=refusal(error, token), detail=_said(error, token))


def refusal(error: Exception, token: Secret | None) -> Access:
    """What an error of huggingface_hub means.

    Read off the Hub's own answer, for the client makes a missing repository of an expired token's 401, and says nothing
    of a 403 without a code (a fine-grained token without the permission for gated repositories; huggingface_hub 2.4,
    utils/_http.py). The agent and the program that fetches read it the same way: tests/contract/test_refusals.py.
    """
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 - 60 ms, and most runs ask nothing

    if isinstance(error, HFValidationError):
        return Access.NO_SUCH_MODEL
    headers = getattr(_response(error), "headers", {})
    status, code = _status(error), str(headers.get("X-Error-Code", ""))
    if not code and not headers.get("X-Error-Message"):
        return Access.HUB_UNREACHABLE  # a proxy's own words, say: the Hub gives a reason with each refusal
    if code == "GatedRepo" or status == 403:
        return Access.GATED if token else Access.NO_TOKEN
    if code == "RevisionNotFound":
        return Access.NO_SUCH_REVISION
    if status == 401 and token and code != "RepoNotFound":
        return Access.TOKEN_INVALID
    if code == "RepoNotFound" or status in {401, 404}:
        return Access.NO_SUCH_MODEL
    return Access.HUB_UNREACHABLE


def _ask(question: Question, api: HfApi) -> tuple[str, ...]:
    """Two questions: the model's metadata tells whether it is there and what, and whether its files have a gate."""
    seen = api.model_info(question.model, revision=question.revision or None, timeout=TIMEOUT_S)
    if seen.gated is not False and seen.gated is not None:
        api.auth_check(question.model)
    names = seen.config.get("architectures") if isinstance(seen.config, dict) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def whoami(token: Secret, endpoint: str) -> Identity:
    """Ask whose a token is; never raises for what the Hub or the network does."""
    try:
        seen: object = within(OVERALL_S, lambda: hub_client(endpoint, token).whoami())
        if not isinstance(seen, dict):
            return Identity(problem="the answer is not the Hub's")
    except Exception as error:  # noqa: BLE001 - as above
        return Identity(problem=_said(error, token), invalid=_status(error) in {401, 403})
    auth = _part(_part(seen, "auth"), "accessToken")
    expires = auth.get("expiresAt") or _part(seen, "auth").get("expiresAt") or ""
    return Identity(
        user=str(seen.get("name", "")),
        token_name=str(auth.get("displayName", "")),
        role=str(auth.get("role", "")),
        expires=str(expires),
    )


def reachable(endpoint: str) -> str:
    """Why an endpoint does not answer, "" where it does, with whatever status."""

    def head() -> None:
        from huggingface_hub import get_session  # noqa: PLC0415 - as above

        get_session().head(endpoint, timeout=TIMEOUT_S)

    try:
        within(OVERALL_S, head)
    except Exception as error:  # noqa: BLE001 - as above
        return _said(error, None)
    return ""


def log_in(token: Secret) -> None:
    """Store the token as `hf auth login` does: in the Hub's cache file, and under its name.

    Raises:
        VmreconcileError: the Hub does not accept it, cannot be asked, or the file cannot be written.
    """

    def store() -> None:
        from huggingface_hub import login  # noqa: PLC0415 - as above

        login(token=token.reveal(), add_to_git_credential=False)

    mask = os.umask(0o077)  # huggingface_hub before 1.25 leaves the files to the umask
    try:
        within(OVERALL_S, store)
        _for_owner_alone()
    except Exception as error:  # noqa: BLE001 - as above
        if _status(error) in {401, 403}:
            raise VmreconcileError(
                "the Hub does not accept this token", remedy="make one on the page settings/tokens of your account"
            ) from None
        raise VmreconcileError(
            f"the token could not be stored: {_said(error, token)}", remedy=_storing_remedy(error)
        ) from None
    finally:
        os.umask(mask)


def _for_owner_alone() -> None:
    """Files of an earlier login may be there already, readable for others."""
    from huggingface_hub import constants  # noqa: PLC0415 - as above

    for path in (constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH):
        with suppress(FileNotFoundError):
            Path(path).chmod(0o600)


def _storing_remedy(error: Exception) -> str:
    if isinstance(error, OSError) and _response(error) is None:
        return f"make {error.filename or 'the folder of the Hub'} writable, or name another in HF_HOME"
    return "look at the network, or at HF_ENDPOINT"


def hub_client(endpoint: str, token: Secret | None) -> HfApi:
    """The Hub's client, which sends no token but the one given."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    from huggingface_hub import HfApi  # noqa: PLC0415 - as above

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its import reads HF_DEBUG; it tells what we tell
    return HfApi(endpoint=endpoint, token=token.reveal() if token else False, library_name="vmreconcile")


@functools.cache
def guard_cache() -> None:
    """Let no answer lead out of the Hub's cache: its client makes paths of the ETag and the commit in it.

    (huggingface_hub 2.4, file_download.py: blob_path.) Whoever answers could else write any new file of this user. The
    program that fetches on hosts has the same guard.
    """
    from huggingface_hub import file_download  # noqa: PLC0415 - as above

    ask_about = file_download.get_hf_file_metadata

    def asked_about(*args: Any, **more: Any) -> HfFileMetadata:  # noqa: ANN401 - whatever the client passes
        seen = ask_about(*args, **more)
        for name, value in (("commit", seen.commit_hash), ("etag", seen.etag)):
            if value is not None and not _NAME.fullmatch(value):
                raise ValueError(f"the answer of the Hub has an odd {name}")
        return seen

    file_download.get_hf_file_metadata = asked_about


def _response(error: Exception) -> object:
    """The HTTP answer that an error was made of; None for none."""
    cause: object = error
    while cause is not None:
        response: object = getattr(cause, "response", None)
        if response is not None:
            return response
        cause = getattr(cause, "__cause__", None)
    return None


def _status(error: Exception) -> int:
    """The HTTP status that an error was made of; 0 for none."""
    status = getattr(_response(error), "status_code", 0)
    return status if isinstance(status, int) else 0


def _said(error: Exception, token: Secret | None) -> str:
    """The first telling line of an error, without the token."""
    status = _status(error)
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), type(error).__name__)
    if token:
        line = line.replace(token.reveal(), "***")
    line = "".join(letter if letter.isprintable() else "?" for letter in masked(line))[:200]
    return f"{status} {line}" if status and not line.startswith(str(status)) else line


def _part(data: Mapping[str, object], name: str) -> Mapping[str, object]:
    inner = data.get(name)
    return inner if isinstance(inner, dict) else {}


Asking = Callable[[Question, Secret | None], Verdict]
