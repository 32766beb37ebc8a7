"""Environment variables in `env` and `vllm_env`: none of ours, no token. Their form is the schema's. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.model.document import Path
from vmreconcile.model.values import JsonValue

TOKEN_NAMES = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"})
OURS = "VMRECONCILE_"
ENDPOINT = "HF_ENDPOINT"
_ADDRESS = re.compile(r"https?://(?:[^\s/@]*@)?(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?:/\S*)?")
GPUS = "CUDA_VISIBLE_DEVICES"


def check_environment(env: Mapping[str, JsonValue], path: Path) -> Iterator[Finding]:
    """Everything wrong with a map of variables that stands at `path`."""
    for name, value in env.items():
        at = (*path, name)
        if name.upper() in TOKEN_NAMES and value is not None:
            yield Finding(
                path=at,
                code="token-in-env",
                summary=f"{dotted(at)} is not set here.",
                why="A token in a file ends in version control; the token reaches the server by its source.",
                remedy="Remove it, and name a token source with hf_token. If it was published, revoke it.",
                at_key=True,
            )
        elif name.upper().startswith(OURS):
            yield Finding(
                path=at,
                code="env-owned",
                summary=f"{dotted(at)} is not set here.",
                why=f"Names that begin with {OURS} mark the servers that vmreconcile owns.",
                remedy="Remove it, or choose another name.",
                at_key=True,
            )
        elif name == ENDPOINT and not _ADDRESS.fullmatch(str(value)):
            yield Finding(
                path=at,
                code="endpoint-malformed",
                summary=f"{dotted(at)} is no address of a Hub.",
                why="The Hub's client can ask only http:// and https:// addresses.",
                remedy="Write it as https://HOST or https://HOST:PORT.",
            )
