"""What a failure's remedy means for one server: the file and line of the settings that it speaks of. Pure."""

from __future__ import annotations

import re
from dataclasses import replace

from vmreconcile.model.desired import DesiredServer
from vmreconcile.vllm.signatures import Explanation

FIELDS = {"model": "model", "gpus": "gpus", "hf_token": "token", "port": "port", "revision": "revision"}
"""Words of remedies that are keys of a model file, with their names in `DesiredServer.origins`."""

ARGUMENTS = (
    *("gpu_memory_utilization", "max_model_len", "max_num_seqs", "tensor_parallel_size", "pipeline_parallel_size"),
    *("data_parallel_size", "quantization"),
)
"""Words of remedies that are arguments, whether the file sets them or not."""


def located(found: Explanation, server: DesiredServer | None) -> Explanation:
    """The explanation, its remedy with the places of the settings that it names, and the host."""
    if server is None:
        return found
    words = list(dict.fromkeys(re.findall(r"[a-z_]+", found.remedy)))
    places = [text for word in words if (text := _place(word, server))]
    where = "; ".join([*places, f"on {server.id.host}"])
    return replace(found, remedy=f"{found.remedy} ({where})")


def _place(word: str, server: DesiredServer) -> str:
    setting = server.settings.get(word)
    if setting is not None:
        return f"{word} is {setting.value}, {setting.origin}"
    if word in ARGUMENTS:
        model = server.origins.get("model")
        file = model.place.file if model is not None and model.place is not None else "the model's file"
        return f"args.{word} is not set in {file}"
    origin = server.origins.get(FIELDS.get(word, ""))
    return f"{word}: {origin}" if origin is not None and origin.place is not None else ""
