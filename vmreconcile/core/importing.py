"""From a VLLM Manager's list of models to models of ours: what each entry means, and what it cannot mean. Pure.

The old manager wrote `{"models": [ENTRY…]}`: generation 1 as models_config.json, 2 and 3 as models.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vmreconcile.errors import Diagnostic, Severity
from vmreconcile.model.document import Document
from vmreconcile.model.names import MODEL_NAME
from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue

REQUIRED = ("name", "huggingface_id", "port")
OPTIONAL: Mapping[str, int | float] = {
    "priority": 3,
    "gpu_memory_utilization": 0.3,
    "max_model_len": 2048,
    "tensor_parallel_size": 1,
}
"""With the value that the old manager took where an entry said nothing."""

RUNTIME = frozenset({"status", "pid", "gpu_memory_mb", "cpu_percent", "uptime_seconds", "start_time", "last_error"})
"""What the third generation remembered of a running server; it dropped them on saving, and so do we."""

OVERRIDDEN = "qwen2.5"
"""Where this was in an id, the old manager started the model with 0.8 of the GPU's memory whatever its file said."""

LONGEST_NAME = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry as understood; `name` "" where it cannot be imported."""

    number: int
    name: str = ""
    model: str = ""
    port: int = 0
    priority: int | None = None
    args: Mapping[str, JsonValue] = field(default_factory=dict)
    problems: tuple[Diagnostic, ...] = ()


def entries_of(document: Document) -> tuple[Entry, ...]:
    """Every entry of the file, counted from 1, the bad ones too.

    Raises:
        ValueError: it holds no list of models.
    """
    models = document.get("models")
    if not isinstance(models, list):
        raise ValueError(  # noqa: TRY004 - about a file, not about this call
            'it has no list "models", as the VLLM Manager writes it'
        )
    return tuple(_Reader(document, index).entry(entry) for index, entry in enumerate(models))


class _Reader:
    """One entry and what is found wrong with it."""

    def __init__(self, document: Document, index: int) -> None:
        self._document = document
        self._index = index
        self._problems: list[Diagnostic] = []

    def entry(self, said: JsonValue) -> Entry:
        number = self._index + 1
        if not isinstance(said, dict):
            self._refuse((), "is no mapping", 'write {"name": …, "huggingface_id": …, "port": …}')
            return Entry(number=number, problems=tuple(self._problems))
        for key in said:
            if key not in {*REQUIRED, *OPTIONAL, *RUNTIME}:
                self._warn((key,), f"has the unknown key {shown(key)}, left out", _about(key))
        name, model, port = self._name(said), self._model(said), self._port(said)
        args, priority = self._args(said, model), self._priority(said)
        if any(problem.severity is Severity.ERROR for problem in self._problems):
            return Entry(number=number, problems=tuple(self._problems))
        return Entry(
            number=number,
            name=name,
            model=model,
            port=port,
            priority=priority,
            args=args,
            problems=tuple(self._problems),
        )

    def _name(self, said: Mapping[str, JsonValue]) -> str:
        text = said.get("name")
        if not isinstance(text, str) or not text.strip():
            self._refuse(("name",), "has no name", "give it a name")
            return ""
        name = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")[:LONGEST_NAME]
        if not MODEL_NAME.fullmatch(name):
            self._refuse(("name",), f"has the name {shown(text)}, of which nothing can be kept", "rename it")
        elif name != text:
            self._warn(
                ("name",), f"was called {shown(text)} and is {name} here", "names are small letters, digits, . -"
            )
        return name

    def _model(self, said: Mapping[str, JsonValue]) -> str:
        text = said.get("huggingface_id")
        if not isinstance(text, str) or not text.strip():
            self._refuse(("huggingface_id",), "has no huggingface_id", "give the model's id on the Hub")
            return ""
        return text.strip()

    def _port(self, said: Mapping[str, JsonValue]) -> int:
        port = said.get("port")
        if port is None:
            self._refuse(("port",), "has no port", "give a whole number from 1 to 65535")
            return 0
        if type(port) is not int or not 0 < port < 65536:
            self._refuse(("port",), f"has the port {shown(port)}", "give a whole number from 1 to 65535")
            return 0
        return port

    def _priority(self, said: Mapping[str, JsonValue]) -> int | None:
        priority = self._number(said, "priority", lambda value: type(value) is int and 1 <= value <= 5, "1 to 5")
        return None if priority is None else int(priority)

    def _args(self, said: Mapping[str, JsonValue], model: str) -> dict[str, JsonValue]:
        """Written out, the old manager's own defaults too: they are what it started the model with."""
        old = OPTIONAL["gpu_memory_utilization"]
        share = self._number(said, "gpu_memory_utilization", lambda value: 0 < value <= 1, "above 0, at most 1")
        args: dict[str, JsonValue] = {"gpu_memory_utilization": old if share is None else share}
        if OVERRIDDEN in model.lower() and args["gpu_memory_utilization"] == old:
            args["gpu_memory_utilization"] = "auto"
            self._warn(
                ("gpu_memory_utilization",),
                f"has the old default {old}, which the old manager raised for Qwen2.5: auto here",
                "the tuning rules give it at least 0.8; write a number to have that instead",
            )
        length = self._number(said, "max_model_len", lambda value: type(value) is int and value > 0, "a whole number")
        args["max_model_len"] = OPTIONAL["max_model_len"] if length is None else length
        size = self._number(said, "tensor_parallel_size", lambda value: type(value) is int and value > 0, "1 or more")
        if size not in {None, OPTIONAL["tensor_parallel_size"]}:
            args["tensor_parallel_size"] = size
        return args

    def _number(
        self, said: Mapping[str, JsonValue], key: str, fits: Callable[[int | float], bool], range_: str
    ) -> int | float | None:
        """The number under `key`; None where there is none that can be used."""
        value = said.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and fits(value):
            return value
        self._warn((key,), f"has {key} {shown(value)}: the old default {OPTIONAL[key]} is taken", f"it is {range_}")
        return None

    def _refuse(self, path: tuple[str, ...], what: str, remedy: str) -> None:
        self._say(path, f"Entry {self._index + 1} {what}.", remedy, "import-entry", Severity.ERROR)

    def _warn(self, path: tuple[str, ...], what: str, remedy: str) -> None:
        self._say(path, f"Entry {self._index + 1} {what}.", remedy, "import-changed", Severity.WARNING)

    def _say(self, path: tuple[str, ...], summary: str, remedy: str, code: str, severity: Severity) -> None:
        place = self._document.key_place("models", self._index, *path)
        remedy = f"{remedy[0].upper()}{remedy[1:]}." if remedy else ""
        self._problems.append(Diagnostic(place=place, code=code, summary=summary, remedy=remedy, severity=severity))


def _about(key: str) -> str:
    if "token" in key.lower():
        return "a token is no argument: vmreconcile auth login keeps it; for several accounts see docs/tokens.md"
    return f"if vLLM has an argument {key.replace('_', '-')!r}, write it under args: of the model's file"


_ARGS = "args: {"


def forced(names: tuple[str, ...]) -> tuple[str, ...]:
    """What the old manager forced on every model, and how to have it still."""
    if not names:
        return ()
    whom = ", ".join(names)
    return (
        f"trust_remote_code was forced on {whom} and is not taken over; where needed: {_ARGS}trust_remote_code: true}}",
        f"enforce_eager was forced on {whom} and is not taken over; to keep it: {_ARGS}enforce_eager: true}}",
        f"GPU 0 was forced on {whom} and is not taken over; to keep it: gpus: [0]",
        "--disable-log-requests is gone from vLLM, which no longer logs requests unless told to",
    )
