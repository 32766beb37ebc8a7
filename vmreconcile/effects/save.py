"""Writes `state:` of a model back into its file, and nothing else; a file is replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vmreconcile.effects.files import replacing
from vmreconcile.effects.yaml_edit import EditError, set_text
from vmreconcile.errors import UsageError, VmreconcileError
from vmreconcile.model.desired import DesiredFleet, DesiredServer, DesiredState
from vmreconcile.model.document import Document

_MODE = "Look at its owner, its mode and the space on the disk."
_OR_NO_SAVE = "With --no-save nothing is written."
_NO_SAVE = "Write state: yourself, or add --no-save."


class SaveError(VmreconcileError):
    """A model file could not be changed; nothing was written to it."""


def save_state(
    documents: Sequence[Document], names: Sequence[str], desired: DesiredFleet, state: DesiredState
) -> tuple[str, ...]:
    """Want `state` of the servers named (`NAME`, `NAME@HOST`, `NAME/N@HOST`) from now on; the paths written.

    NAME sets the model's own `state:`, and that of every override that has one. With a host, the host's override gets
    it. What is wanted so already is not written. All texts are made before the first is written.

    Raises:
        UsageError: one of several replicas is named, which a model file cannot say.
        SaveError: a file cannot be edited safely, or cannot be written.
    """
    whole, hosts = _asked(names, desired, state)
    texts: dict[str, str] = {}
    for document in documents:
        name = document.get("name")
        if name in whole:
            texts[document.path] = _edited(document, _whole_paths(document), state)
        elif name in hosts:
            texts[document.path] = _edited(document, _host_paths(document, hosts[str(name)]), state)
    for path, text in texts.items():
        replace_text(Path(path), text, remedy=_MODE if state is DesiredState.ABSENT else f"{_MODE} {_OR_NO_SAVE}")
    return tuple(texts)


def _asked(
    names: Sequence[str], desired: DesiredFleet, state: DesiredState
) -> tuple[set[str], Mapping[str, list[DesiredServer]]]:
    """Models to be set as a whole, and for the others a server for each host to be set."""
    wrong = [server for server in desired.servers if server.state is not state]
    whole = {server.id.model for server in wrong if server.id.model in names}
    named = {str(server.id) for server in desired.servers if str(server.id) in names}
    hosts: dict[str, dict[str, DesiredServer]] = {}
    for server in wrong:
        if server.id.model in whole or str(server.id) not in named:
            continue
        _all_replicas(server, desired, named)
        hosts.setdefault(server.id.model, {}).setdefault(server.id.host, server)
    return whole, {model: list(servers.values()) for model, servers in hosts.items()}


def _all_replicas(server: DesiredServer, desired: DesiredFleet, named: set[str]) -> None:
    for other in desired.on(server.id.host):
        if other.id.model == server.id.model and str(other.id) not in named:
            raise UsageError(
                f"{server.id}: a model file holds one state for all replicas on a host, and {other.id} was not named",
                remedy=f"Name {other.id} too, or add --no-save.",
            )


def _whole_paths(document: Document) -> Iterable[tuple[str, ...]]:
    yield ("state",)
    overrides = document.get("overrides")
    for key in overrides if isinstance(overrides, dict) else ():
        if document.get("overrides", key, "state") is not None:
            yield ("overrides", key, "state")


def _host_paths(document: Document, servers: Sequence[DesiredServer]) -> Iterable[tuple[str, ...]]:
    overrides = document.get("overrides")
    order = list(overrides) if isinstance(overrides, dict) else []
    for server in servers:
        host = server.id.host
        origin = server.origins.get("state")
        winner = origin.note.removeprefix("override ") if origin and origin.note.startswith("override ") else ""
        if host in order and winner in order and order.index(winner) > order.index(host):
            raise SaveError(
                f"{document.file}: the override for {winner!r} also sets state: and comes after that for {host!r}",
                remedy=f"Move the override for {host!r} to the end, or add --no-save.",
            )
        yield ("overrides", host, "state")


def _edited(document: Document, paths: Iterable[tuple[str, ...]], state: DesiredState) -> str:
    try:
        text = Path(document.path).read_bytes().decode("utf-8")
        for path in paths:
            text = set_text(text, path, state.value, after="port")
    except EditError as error:
        raise SaveError(f"{document.file} cannot be changed safely: {error}", remedy=_NO_SAVE) from None
    except UnicodeDecodeError:
        raise SaveError(f"{document.file} is not UTF-8", remedy=_NO_SAVE) from None
    except OSError as error:
        raise SaveError(f"{document.file} cannot be read: {error.strerror}", remedy=_NO_SAVE) from None
    return text


def replace_text(path: Path, text: str, *, remedy: str = _MODE) -> None:
    """A new file beside the old one, with its mode and owner, then renamed; a link keeps pointing at it.

    Raises:
        SaveError: it cannot be written; the old file is then untouched.
    """
    try:
        target = path.resolve(strict=True)
        status = target.stat()
        with replacing(target) as file:
            file.write(text.encode())
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            with contextlib.suppress(OSError):  # only root may keep a foreign owner
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {error.strerror}", remedy=remedy) from None
