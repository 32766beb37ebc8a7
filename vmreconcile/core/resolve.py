"""From valid model files and an inventory to the servers that are wanted, each value with its origin. Pure.

What hosts of a model have in common is worked out once and shared. Precedence is in `layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmreconcile.core.conduct import health_of, hooks_of, host_limit_of, rollout_of
from vmreconcile.core.layers import Layer, argument_layer, env_layer, merge_arguments, merge_env
from vmreconcile.core.needs import cordon_of, cordoned_gpus_of, needs_of
from vmreconcile.core.placement import Placement
from vmreconcile.core.tuning import for_model, suggestions
from vmreconcile.model.desired import DEFAULT_PRIORITY, DesiredFleet, DesiredServer, DesiredState, Rollout
from vmreconcile.model.document import Document, Path
from vmreconcile.model.inventory import Host, Inventory
from vmreconcile.model.names import ServerId
from vmreconcile.model.tuning import Rule
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting
from vmreconcile.vllm.catalogue import Catalogue

_VARIABLES = (
    *("vllm_args", "vllm_env", "vllm_executable", "vllm_runtime", "vllm_state_dir", "vllm_hf_token"),
    *("vllm_token_delivery", "vllm_cordon", "vllm_cordoned_gpus", "vllm_max_unavailable"),
)
_FIELDS = {
    "vllm_executable": "executable",
    "vllm_runtime": "runtime",
    "vllm_state_dir": "state_dir",
    "vllm_hf_token": "token",
    "vllm_token_delivery": "delivery",
    "vllm_cordon": "host_cordon",
    "vllm_cordoned_gpus": "cordoned_gpus",
    "vllm_max_unavailable": "host_limit",
}
_KEYS = (
    *("model", "revision", "port", "replicas", "priority", "prefetch", "state", "gpus", "needs", "cordon"),
    *("runtime", "hf_token", "health", "rollout", "hooks"),
)
_LAID_OVER = frozenset({"needs", "health", "rollout", "hooks"})
"""Mappings that are laid over each other key by key; anything else is replaced."""
_DEFAULT = Origin(kind=OriginKind.DEFAULT)


def resolve(
    documents: Sequence[Document], inventory: Inventory, *, catalogue: Catalogue, rules: tuple[Rule, ...] = ()
) -> DesiredFleet:
    """Every wanted server, sorted by host, model and replica. The documents passed `validate` without an error."""
    resolver = _Resolver(inventory, catalogue, rules)
    servers: list[DesiredServer] = []
    for document in documents:
        if document.content is not None:
            servers += resolver.servers(document)
    servers.sort(key=lambda server: (server.id.host, server.id.model, server.id.replica))
    return DesiredFleet(servers=tuple(servers), warnings=suggestions(servers))


def unplaced(documents: Sequence[Document], inventory: Inventory, *, catalogue: Catalogue) -> tuple[DesiredServer, ...]:
    """For each model whose pattern names no host: the server that a host without variables of its own would have.

    Its name has no host; what is said for all hosts counts, overrides do not.
    """
    placement = Placement(inventory)
    variables = inventory.groups["all"].variables if "all" in inventory.groups else {}
    below = _read_host(Host(name="", variables=variables), catalogue)
    found = []
    for document in documents:
        if document.content is not None and not placement.hosts(document.get("hosts")):
            shared = _ModelLayers(document, catalogue, ()).shared(below, ())
            server_id = ServerId(host="", model=str(document.get("name")))
            found.append(DesiredServer(id=server_id, port=shared.port, **shared.fields))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostLayer:
    """What a host's variables say: fields by their name in `DesiredServer`, and both maps."""

    fields: Mapping[str, Setting] = field(default_factory=dict)
    args: Layer = field(default_factory=dict)
    env: Layer = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What the servers of a model have in common on some hosts."""

    port: int
    replicas: int
    fields: Mapping[str, Any]


class _Resolver:
    """Remembers hosts' layers by the identity of their variables' values, which hosts of a group share."""

    def __init__(self, inventory: Inventory, catalogue: Catalogue, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._inventory = inventory
        self._catalogue = catalogue
        self._placement = Placement(inventory)
        self._by_host: dict[str, _HostLayer] = {}
        self._by_values: dict[tuple[int, ...], _HostLayer] = {}

    def servers(self, document: Document) -> Iterable[DesiredServer]:
        """The servers of one model."""
        name = str(document.get("name"))
        overrides = self._placement.overrides(document)
        layers = _ModelLayers(document, self._catalogue, self._rules)
        known: dict[tuple[int, tuple[str, ...]], _Shared] = {}
        turns = self._turns(rollout_of(document.get("rollout")))
        for host in self._placement.hosts(document.get("hosts")):
            below, keys = self._host_layer(host), overrides.get(host, ())
            shared = known.get((id(below), keys))
            if shared is None:
                shared = known[id(below), keys] = layers.shared(below, keys)
            for replica in range(shared.replicas):
                server_id = ServerId(host=host, model=name, replica=replica)
                turn = turns.get(host, len(turns))
                yield DesiredServer(id=server_id, port=shared.port + replica, turn=turn, **shared.fields)

    def _turns(self, rollout: Rollout) -> dict[str, int]:
        """When a host's servers are changed, for the hosts that `rollout.order` names."""
        turns: dict[str, int] = {}
        for at, pattern in enumerate(rollout.order):
            for host in self._placement.hosts(pattern):
                turns.setdefault(host, at)
        return turns

    def _host_layer(self, name: str) -> _HostLayer:
        layer = self._by_host.get(name)
        if layer is None:
            host = self._inventory.hosts[name]
            values = tuple(id(host.variables.get(variable)) for variable in _VARIABLES)
            layer = self._by_values.get(values)
            if layer is None:
                layer = self._by_values[values] = _read_host(host, self._catalogue)
            self._by_host[name] = layer
        return layer


def _read_host(host: Host, catalogue: Catalogue) -> _HostLayer:
    variables = host.variables
    args, env = variables.get("vllm_args"), variables.get("vllm_env")
    return _HostLayer(
        fields={_FIELDS[name]: variables[name] for name in _VARIABLES if name in variables and name in _FIELDS},
        args=argument_layer(args.value, lambda _: args.origin, catalogue) if args else {},
        env=env_layer(env.value, lambda _: env.origin) if env else {},
    )


class _ModelLayers:
    """The model file and its overrides, read once."""

    def __init__(self, document: Document, catalogue: Catalogue, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._document = document
        self._catalogue = catalogue
        self._layers: dict[str, tuple[dict[str, Setting], Layer, Layer]] = {}

    def shared(self, below: _HostLayer, keys: tuple[str, ...]) -> _Shared:
        """Lay everything over each other for hosts with these variables and overrides."""
        layers = [self._layer(None), *(self._layer(key) for key in keys)]
        said: dict[str, Setting] = {}
        for layer, _, _ in layers:
            for name, setting in layer.items():
                said[name] = _over(said.get(name), setting) if name in _LAID_OVER else setting
        fields = dict(below.fields)
        if "hf_token" in said:
            fields["token"] = said["hf_token"]
        if "runtime" in said:
            fields["runtime"] = said["runtime"]
        settings = merge_arguments([below.args, *(args for _, args, _ in layers)], self._catalogue)
        env = merge_env([below.env, *(env for _, _, env in layers)])
        return _Shared(
            port=_int(said["port"].value),
            replicas=_int(said["replicas"].value) if "replicas" in said else 1,
            fields={
                "model": str(said["model"].value),
                "revision": _text_or_none(said.get("revision"), None),
                "priority": _int(said["priority"].value) if "priority" in said else DEFAULT_PRIORITY,
                "prefetch": said["prefetch"].value is True if "prefetch" in said else False,
                "state": DesiredState(str(said["state"].value)) if "state" in said else DesiredState.RUNNING,
                "settings": settings,
                "env": env,
                "gpus": _gpus(said["gpus"].value) if "gpus" in said else "auto",
                "needs": needs_of(_value(said.get("needs"))),
                "cordon": cordon_of(_value(said.get("cordon"))),
                "host_cordon": cordon_of(_value(fields.get("host_cordon"))),
                "cordoned_gpus": cordoned_gpus_of(_value(fields.get("cordoned_gpus"))),
                "token": _text_or_none(fields.get("token"), "default"),
                "runtime": _text_or_none(fields.get("runtime"), "") or "",
                "executable": _text_or_none(fields.get("executable"), "") or "",
                "state_dir": _text_or_none(fields.get("state_dir"), "") or "",
                "delivery": _text_or_none(fields.get("delivery"), "") or "environment",
                "health": health_of(_value(said.get("health"))),
                "rollout": rollout_of(_value(said.get("rollout"))),
                "hooks": hooks_of(_value(said.get("hooks"))),
                "host_limit": host_limit_of(fields.get("host_limit")),
                "origins": _origins(said, fields),
                "rules": for_model(self._rules, str(said["model"].value)),
            },
        )

    def _layer(self, key: str | None) -> tuple[dict[str, Setting], Layer, Layer]:
        name = "" if key is None else key
        if name not in self._layers:
            path: Path = () if key is None else ("overrides", key)
            content = self._document.get(*path)
            content = content if isinstance(content, dict) else {}
            self._layers[name] = (
                {
                    field: Setting(value=content[field], origin=self._origin(path, field))
                    for field in _KEYS
                    if field in content
                },
                argument_layer(content.get("args"), lambda arg: self._origin(path, "args", arg), self._catalogue),
                env_layer(content.get("env"), lambda variable: self._origin(path, "env", variable)),
            )
        return self._layers[name]

    def _origin(self, path: Path, *keys: str) -> Origin:
        place = self._document.key_place(*path, *keys)
        if path:
            return Origin(kind=OriginKind.OVERRIDE, place=place, note=f"override {path[-1]}")
        return Origin(kind=OriginKind.MODEL, place=place)


def _origins(said: Mapping[str, Setting], fields: Mapping[str, Setting]) -> dict[str, Origin]:
    """Origins by the field's name in `DesiredServer`, and of `replicas`."""
    own = [name for name in _KEYS if name not in ("hf_token", "runtime")]
    origins = {name: said[name].origin if name in said else _DEFAULT for name in own}
    for name in _FIELDS.values():
        origins[name] = fields[name].origin if name in fields else _DEFAULT
    return origins


def _over(below: Setting | None, above: Setting) -> Setting:
    """A mapping over a mapping, key by key; the origin is the upper one's."""
    if below is None or not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    return Setting(value={**below.value, **above.value}, origin=above.origin)


def _value(setting: Setting | None) -> JsonValue:
    return setting.value if setting is not None else None


def _int(value: JsonValue) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _text_or_none(setting: Setting | None, default: str | None) -> str | None:
    if setting is None:
        return default
    return None if setting.value is None else str(setting.value)


def _gpus(value: JsonValue) -> str | int | tuple[int, ...]:
    if isinstance(value, list):
        return tuple(_int(index) for index in value)
    return "auto" if isinstance(value, str) else _int(value)
