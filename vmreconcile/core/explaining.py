"""What a failure's remedy means for one server: its names, and the file and line of each setting it is about. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from vmreconcile.core.fingerprints import shown as showable
from vmreconcile.core.phases import stall_text
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Endpoint
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.showing import printable
from vmreconcile.model.values import Origin, OriginKind
from vmreconcile.vllm.catalogue import SECRET_ARGUMENTS, catalogue_for
from vmreconcile.vllm.signatures import Explanation

ORIGINS = {"hf_token": "token", "health.startup_timeout": "health", "vllm_executable": "executable"}
"""Keys of files whose name in `DesiredServer.origins` is another."""

INVENTORY = frozenset({"vllm_executable"})
"""Variables of hosts; everything else is written in a model's file."""

EVERY_ARGUMENT = "args.*"

NOBODYS = frozenset({OriginKind.TUNING, OriginKind.TOOL})
"""Origins of values that no person wrote for the server."""


def located(found: Explanation, server: ServerId, wanted: DesiredServer | None) -> Explanation:
    """The explanation with the server's and its host's names, and in the remedy the places of its settings.

    Without a `wanted` server nobody wrote settings for it.
    """
    remedy = found.remedy.replace("{server}", str(server)).replace("{host}", server.host)
    places = [] if wanted is None else [place for word in found.settings for place in _places(word, found, wanted)]
    where = "; ".join([*dict.fromkeys(places), f"{server} on host {server.host}"])
    return replace(found, remedy=f"{remedy} ({where})")


def wedged(server: ServerId, endpoint: Endpoint) -> Explanation:
    """Of a server that is healthy and does nothing: no log tells it."""
    return Explanation(
        kind="wedged",
        summary="it is healthy and does no work",
        evidence=stall_text(endpoint),
        line=0,
        remedy=f"vmreconcile apply restarts it; what led to it may stand in: vmreconcile logs {server}",
    )


def _places(word: str, found: Explanation, server: DesiredServer) -> Iterator[str]:
    """Where what a signature calls `word` was said, or where it would be."""
    head, dot, name = word.partition(".")
    if word == EVERY_ARGUMENT:
        names = _named(found.evidence, server)
        yield from (_argument(each, server) for each in names)
        if not names:
            yield f"args, {_file(server)}"
    elif dot and head == "args":
        yield _argument(name, server)
    elif dot and head == "env":
        setting = server.env.get(name)
        shown = showable(name, str(setting.value)) if setting else ""
        yield _said(word, shown, setting.origin if setting else None, server)
    else:
        value = _field(word, server)
        origin = None if value is None else server.origins.get(ORIGINS.get(word, word))
        yield _said(word, value, origin, server)


def _argument(name: str, server: DesiredServer) -> str:
    setting = server.settings.get(name)
    shown = HIDDEN if name in SECRET_ARGUMENTS else printable(str(setting.value)) if setting else ""
    return _said(f"args.{name}", shown, setting.origin if setting else None, server)


def _said(word: str, value: object, origin: Origin | None, server: DesiredServer) -> str:
    if origin is not None and origin.kind is not OriginKind.DEFAULT:
        other = f", another goes into {_file(server)}" if origin.kind in NOBODYS else ""
        return f"{word} is {value}, {origin}{other}"
    if word in INVENTORY:
        return f"{word} is not set for {server.id.host} in the inventory"
    return f"{word} is not set in {_file(server)}"


def _field(word: str, server: DesiredServer) -> object:
    """The value of a key of a model's file."""
    match word:
        case "hf_token":
            return server.token or "null"
        case "health.startup_timeout":
            return None if server.health.startup_timeout is None else f"{server.health.startup_timeout:g}"
        case "vllm_executable":
            return printable(server.executable)
        case "gpus" if isinstance(server.gpus, tuple):
            return list(server.gpus)
        case _:
            return printable(str(getattr(server, word)))


def _file(server: DesiredServer) -> str:
    """The file in which the server's model is described."""
    model = server.origins.get("model")
    return model.place.file if model is not None and model.place is not None else "the model's file"


def _named(text: str, server: DesiredServer) -> list[str]:
    """The arguments that a line of a log names, however it spells them; those that the server sets come first.

    One that it does not set counts only where no other does, and where its name can be no ordinary word.
    """
    words = re.sub(r"[^a-z0-9]+", "_", text.lower())
    mine = [name for name in server.settings if f"_{name}_" in f"_{words}_"]
    if mine:
        return sorted(mine)
    names = {*re.findall(r"[a-z0-9]+(?:_[a-z0-9]+)+", text.lower().replace("-", "_"))}
    return sorted(names & catalogue_for().arguments.keys())
