"""When a server counts as ready: the address to ask, what it must answer, and for how long to wait. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from vmreconcile.core.launching import launch_settings
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.observed import ObservedServer
from vmreconcile.model.plan import Gate
from vmreconcile.model.values import JsonValue

USUAL_TIMEOUT_S = 900.0
"""How long a start may take where nobody said it, beside the time that its weights take."""

SLOWEST_LOAD = 100e6
"""Bytes a second at which weights come over one gigabit link (118 MB/s of payload at most), the slowest way that is
usual: from the Hub, or from a disk that is shared over the network. Disks of a GPU host read ten times as fast."""

MOST_EXTENDED = 4
"""Times its timeout: longer than that nobody waits for a start, however busy its log looks."""

GENERATE, POOLING = "generate", "pooling"
POOLING_WORDS = frozenset({"embed", "embedding", "classify", "score", "reward"})
"""Of `--convert`, and of `--task`, which versions up to 0.12 have instead (vLLM: config/model.py)."""


def gate_of(server: DesiredServer, observed: ObservedServer | None = None, placed: Placed | None = None) -> Gate:
    """When this server counts as ready; what was seen and decided of it tells how large its weights are."""
    settings = launch_settings(server)
    weights = weights_of(observed, placed)
    return Gate(
        address=probe_address(settings.get("host")),
        port=server.port,
        timeout=startup_timeout(server, weights),
        completion=server.health.completion,
        models=served_names(server.model, settings),
        runner=runner_of(settings),
        soak=server.health.soak,
        grows=server.health.startup_timeout is None and weights is None,
    )


def startup_timeout(server: DesiredServer, weights: int | None) -> float:
    """How long a start may take, in seconds: as was said, else longer for more bytes of `weights`."""
    said = server.health.startup_timeout
    return USUAL_TIMEOUT_S + (weights or 0) / SLOWEST_LOAD if said is None else said


def extension_of(timeout: float) -> float:
    """How long after the last progress a start is still waited for, in seconds."""
    return max(60.0, timeout / 4)


def longest_wait(timeout: float) -> float:
    """The end of all waiting, whatever the log shows, in seconds."""
    return MOST_EXTENDED * timeout


def weights_of(observed: ObservedServer | None, placed: Placed | None) -> int | None:
    """Bytes that a server loads on all its GPUs together: as planned for, else as once measured; None: not known.

    What a plan counts beside the KV cache is a little more than the weights, which does no harm here.
    """
    measured = observed.record.measured if observed and observed.record else None
    each = placed.least.beside if placed and placed.least else None
    each = each or (measured.figures.weights if measured else None)
    return None if each is None else each * max(1, len(placed.devices) if placed else 0)


def served_names(model: str, settings: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """The names that `/v1/models` shows: those that were given, else the model's own as it stands on the command line.

    So it is for an id of the Hub and for a path (vLLM 0.32.0: launchers/api_server/app_state.py; asked of the real one
    by tests/contract/test_vllm_server.py). Adapters are listed after them.
    """
    said = settings.get("served_model_name")
    names = said if isinstance(said, list) else [said]
    return tuple(str(name) for name in names if name) or (model,)


def runner_of(settings: Mapping[str, JsonValue]) -> str:
    """What kind of model the settings make of it; "" where they leave that to vLLM, which looks at the model."""
    if settings.get("runner") == POOLING or POOLING_WORDS & {str(settings.get(name)) for name in ("convert", "task")}:
        return POOLING
    return GENERATE if GENERATE in {settings.get("runner"), settings.get("task")} else ""


def probe_address(host: JsonValue) -> str:
    """Where to ask a server that listens on `--host`: every address and none are reached over loopback."""
    return "127.0.0.1" if host in {None, "", "0.0.0.0", "::", "localhost"} else str(host)  # noqa: S104 - compared, not bound
