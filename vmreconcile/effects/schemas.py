"""Finds and reads the JSON Schemas: in a wheel they ship inside the package, in a checkout they stand at its top."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from vmreconcile.model.values import JsonValue

TUNING_SCHEMA = "tuning.schema.json"
NAMES = ("model.schema.json", "host-vars.schema.json", "vllm-args.schema.json", TUNING_SCHEMA)


@functools.cache
def read_schemas() -> Mapping[str, Mapping[str, JsonValue]]:
    """The schemas that `validate` needs, by file name. Read once; that of vLLM's arguments is for editors alone."""
    needed = (*NAMES[:2], TUNING_SCHEMA)
    return MappingProxyType({name: json.loads(schema_text(name)) for name in needed})


def schema_text(name: str) -> str:
    """One schema file as it stands.

    Raises:
        FileNotFoundError: the installation is broken.
    """
    packaged = resources.files("vmreconcile") / "schemas" / name
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[2] / "schemas" / name).read_text(encoding="utf-8")
