"""The models that the files hold, one row each, for `list`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmreconcile.core.reports import FORMAT_VERSION, Json
from vmreconcile.model.desired import DEFAULT_PRIORITY, DesiredFleet, DesiredServer
from vmreconcile.model.document import Document
from vmreconcile.model.values import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A model: what its servers have in common, and `mixed` where overrides make them differ."""

    name: str
    model: str
    file: str
    hosts: tuple[str, ...]
    port: JsonValue
    state: JsonValue
    priority: JsonValue
    gpu_memory_utilization: JsonValue
    max_model_len: JsonValue
    tensor_parallel_size: JsonValue

    @property
    def json(self) -> Json:
        """As `list --json` prints it."""
        found: Json = {name: getattr(self, name) for name in self.__slots__}
        return found | {"hosts": [*self.hosts]}


MIXED = "mixed"
ARGS = {"gpu_memory_utilization": "auto", "max_model_len": None, "tensor_parallel_size": 1}
"""Arguments that the list shows, with what stands where nobody says anything."""


def listed(documents: Sequence[Document], desired: DesiredFleet) -> tuple[Listed, ...]:
    """Every model, sorted by name."""
    servers: dict[str, list[DesiredServer]] = {}
    for server in desired.servers:
        servers.setdefault(server.id.model, []).append(server)
    found = (
        _listed(document, servers.get(str(document.get("name")), [])) for document in documents if document.content
    )
    return tuple(sorted(found, key=lambda each: each.name))


def _listed(document: Document, servers: list[DesiredServer]) -> Listed:
    first = [server for server in servers if server.id.replica == 0]
    args = {
        name: _agreed([_argument(server, name, default) for server in first], document.get("args", name) or default)
        for name, default in ARGS.items()
    }
    return Listed(
        name=str(document.get("name")),
        model=str(document.get("model")),
        file=document.file,
        hosts=tuple(dict.fromkeys(server.id.host for server in servers)),
        port=_agreed([server.port for server in first], document.get("port")),
        state=_agreed([server.state.value for server in servers], document.get("state") or "running"),
        priority=_agreed([server.priority for server in servers], document.get("priority") or DEFAULT_PRIORITY),
        **args,
    )


def _argument(server: DesiredServer, name: str, default: JsonValue) -> JsonValue:
    setting = server.settings.get(name)
    return default if setting is None else setting.value


def _agreed(values: Sequence[JsonValue], otherwise: JsonValue) -> JsonValue:
    """The value that all have; `mixed` where they differ; `otherwise` where there are none."""
    if not values:
        return otherwise
    return values[0] if all(value == values[0] for value in values) else MIXED


def list_json(models: Sequence[Listed]) -> Json:
    """`list --json`."""
    return {"format_version": FORMAT_VERSION, "models": [each.json for each in models]}
