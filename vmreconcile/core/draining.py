"""How long requests in flight may take before a stop, and that vLLM is told so, too. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.values import Origin, OriginKind, Setting
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.draining import SHUTDOWN_TIMEOUT

WITH_A_HOOK_S = 30.0
"""Where a hook takes a server out of a load balancer, and nobody said how long."""


def drain_of(server: DesiredServer) -> float:
    """Seconds that requests in flight may take before this server is stopped; 0: they are not waited for."""
    if server.rollout.drain is not None:
        return server.rollout.drain
    return WITH_A_HOOK_S if server.hooks.before_stop is not None else 0.0


def with_drain(server: DesiredServer, catalogue: Catalogue) -> DesiredServer:
    """The server with `shutdown_timeout`, where requests are to be waited for, vLLM has it and nobody set it."""
    seconds = math.ceil(drain_of(server))
    if not seconds or SHUTDOWN_TIMEOUT in server.settings or SHUTDOWN_TIMEOUT not in catalogue.arguments:
        return server
    said = "rollout" if server.rollout.drain is not None else "hooks"
    origin = server.origins.get(said)
    note = "rollout.drain" if said == "rollout" else f"rollout.drain is {WITH_A_HOOK_S:g} s with hooks.before_stop"
    setting = Setting(
        value=seconds, origin=Origin(kind=OriginKind.TOOL, place=origin.place if origin else None, note=note)
    )
    return replace(server, settings=dict(sorted({**server.settings, SHUTDOWN_TIMEOUT: setting}.items())))
