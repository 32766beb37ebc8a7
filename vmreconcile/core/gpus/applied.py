"""A wanted server with what was decided about its GPUs and its memory. Pure."""

from __future__ import annotations

from dataclasses import replace

from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.values import Origin, OriginKind, Setting


def with_placed(server: DesiredServer, placed: Placed | None) -> DesiredServer:
    """The server as it is to be started; a number that was decided to be nobody's is left to vLLM."""
    if placed is None:
        return server
    settings = dict(server.settings) | {
        name: Setting(value=value, origin=Origin(kind=OriginKind.TOOL, note=_why(name, placed)))
        for name, value in placed.settings.items()
    }
    kept = {name: each for name, each in settings.items() if each.value is not None or name not in placed.settings}
    return replace(server, settings=dict(sorted(kept.items())), visible=placed.visible)


def _why(name: str, placed: Placed) -> str:
    """The reason of one number alone; where it has none, those of the whole placement."""
    said = f"{name} {placed.settings[name]}: "
    found = [reason.removeprefix(said) for reason in placed.reasons if reason.startswith(said)]
    return "; ".join(found or placed.reasons)
