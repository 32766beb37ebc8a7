"""What a model says of health, rollouts and hooks, from the words of a file to values. Pure; raises nothing."""

from __future__ import annotations

from vmreconcile.core.durations import seconds
from vmreconcile.model.desired import Health, Hooks, HostLimit, Rollout
from vmreconcile.model.values import JsonValue, Setting


def health_of(value: JsonValue) -> Health:
    """`health:` of a model."""
    said, standard = _mapping(value), Health()
    return Health(
        startup_timeout=seconds(said.get("startup_timeout")) or standard.startup_timeout,
        completion=bool(said.get("completion", standard.completion)),
        soak=_seconds(said, "soak", standard.soak),
    )


def rollout_of(value: JsonValue) -> Rollout:
    """`rollout:` of a model."""
    said, standard = _mapping(value), Rollout()
    order = said.get("order", [])
    return Rollout(
        max_unavailable=_count(said.get("max_unavailable", standard.max_unavailable)),
        canary=_whole(said.get("canary", standard.canary)),
        pause=_seconds(said, "pause", standard.pause),
        max_failures=_whole(said.get("max_failures", standard.max_failures)),
        order=tuple(map(str, order)) if isinstance(order, list) else (str(order),),
        drain=_seconds(said, "drain", 0.0) if "drain" in said else None,
    )


def hooks_of(value: JsonValue) -> Hooks:
    """`hooks:` of a model."""
    said, standard = _mapping(value), Hooks()
    return Hooks(
        before_stop=_command(said.get("before_stop")),
        after_ready=_command(said.get("after_ready")),
        timeout=_seconds(said, "timeout", standard.timeout),
    )


def host_limit_of(setting: Setting | None) -> HostLimit | None:
    """`vllm_max_unavailable` of a host; hosts that have it from the same place share it."""
    if setting is None or setting.value is None:
        return None
    return HostLimit(max_unavailable=_count(setting.value), place=str(setting.origin))


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _seconds(said: dict[str, JsonValue], name: str, default: float) -> float:
    """A duration that may be none at all, which is 0."""
    return (seconds(said[name]) or 0.0) if name in said else default


def _count(value: JsonValue) -> int | str:
    return value if isinstance(value, str) else _whole(value)


def _whole(value: JsonValue) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _command(value: JsonValue) -> tuple[str, ...] | str | None:
    if isinstance(value, list):
        return tuple(map(str, value))
    return None if value is None else str(value)
