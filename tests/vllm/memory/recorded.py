"""What real vLLM measured, as recorded in tests/vllm/runs, and ways to make predictions in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.arguments import Gpu, planned
from vmreconcile.vllm.memory.gpus import gpu_of, seen_gpu
from vmreconcile.vllm.memory.predict import Prediction, predict
from vmreconcile.vllm.memory.reading import read_shape

RUNS = Path(__file__).resolve().parents[1] / "runs"
MODELS: dict[str, dict[str, JsonValue]] = json.loads((RUNS / "models.json").read_text())["models"]
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Run:
    """One start: the file it is recorded in, the file's head, and the row."""

    file: str
    head: dict[str, Any]
    row: dict[str, Any]

    def __str__(self) -> str:
        """The name of a test."""
        arguments = ",".join(f"{name}={value}" for name, value in self.row["arguments"].items())
        return f"{self.head['vllm_version']}-{self.row['model']}-{arguments}"

    @property
    def model(self) -> dict[str, JsonValue]:
        """The config.json that was served."""
        config, changes = MODELS[self.row["model"]], self.row.get("changes", {})
        text = config.get("text_config")
        return {**config, "text_config": {**text, **changes}} if isinstance(text, dict) else {**config, **changes}

    def predicted(self) -> Prediction:
        """What we say of it."""
        gpu = seen_gpu(self.head["gpu"], self.head["gpu_total_bytes"])
        return predict(planned(read_shape(self.model), self.row["arguments"], gpu, self.head["vllm_version"]))


def runs() -> Iterator[Run]:
    """Every recorded run."""
    for path in sorted(RUNS.glob("*.json")):
        document = json.loads(path.read_text())
        for row in document.pop("runs", []):
            yield Run(path.stem, document, row)


def said(model: str, gpu: str | Gpu = "H100", version: str = "0.22.1", **arguments: JsonValue) -> Prediction:
    """The prediction for a recorded model."""
    card = gpu_of(gpu) if isinstance(gpu, str) else gpu
    return predict(planned(read_shape(MODELS[model]), arguments, card, version))
