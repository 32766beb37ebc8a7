"""One argument of `vllm serve` as a catalogue has it, and the arguments that are not a user's to set.

Holds facts only: reading and writing values is `kinds`, looking arguments up is `catalogue`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vmreconcile.model.values import JsonValue


class Kind(enum.StrEnum):
    """What an argument's value is, after vLLM's own converters (its engine/arg_utils.py, utils/argparse_utils.py)."""

    BOOL = "bool"  # --x and --no-x
    FLAG = "flag"  # --x only
    TRUTH = "truth"  # any text but the empty one is true; only arguments on their way out have it
    STR = "str"
    FOLDED_STR = "folded_str"  # lower case, '-' as '_'
    INT = "int"
    FLOAT = "float"
    HUMAN_INT = "human_int"  # 8k = 8000, 32K = 32768
    HUMAN_INT_OR_AUTO = "human_int_or_auto"  # the same, and auto = -1
    ID_LIST = "id_list"  # 0,1,GPU-… in one word
    LIST = "list"  # a JSON list in one word
    OBJECT = "object"  # a JSON object in one word
    OBJECT_OR_STR = "object_or_str"
    CONFIG = "config"  # a JSON object with known keys, numbers may carry suffixes
    LORA = "lora"  # name=path, or a JSON object


OBJECT_KINDS = frozenset({Kind.CONFIG, Kind.OBJECT, Kind.OBJECT_OR_STR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument.

    `name` is canonical (snake_case), `options` every spelling with dashes, `nargs` as in argparse, `optional` whether
    vLLM reads '' and 'None' as none, `append` whether it may be repeated to add values, `const` the value of the bare
    option where the value may be left out, `keys` what a configuration object may hold (empty: not known).
    """

    name: str
    options: tuple[str, ...]
    kind: Kind
    default: JsonValue = None
    nargs: str | None = None
    optional: bool = False
    choices: tuple[JsonValue, ...] = ()
    append: bool = False
    const: JsonValue = None
    keys: tuple[str, ...] = ()
    help: str = ""

    @property
    def option(self) -> str:
        """The spelling that we write: `--max-model-len`."""
        return "--" + self.name.replace("_", "-")

    @property
    def negative(self) -> str:
        """The spelling that switches a `Kind.BOOL` off."""
        return "--no-" + self.name.replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether the value is a list with one word an item."""
        return self.append or self.nargs == "+"

    @property
    def label(self) -> str:
        """The name argparse gives it in errors: every spelling, with slashes between."""
        return "/".join(self.options)


TOOL_OWNED: Mapping[str, str] = MappingProxyType(
    {
        "api_key": "it would show in the process list; vLLM reads VLLM_API_KEY from the environment (`env`) as well",
        "config": "settings in a file of the host would be unseen; write them under `args`",
        "device_ids": "the GPUs are chosen with `gpus`",
        "grpc": "the server is reached over HTTP to see whether it is ready",
        "headless": "a server without an HTTP port cannot be seen to be ready",
        "hf_token": "a token in arguments shows in the process list; name a token source with `hf_token`",
        "model": "the model is given with `model`",
        "model_tag": "the model is given with `model`",
        "port": "the port is given with `port`",
        "revision": "the revision is given with `revision`",
        "ssl_certfile": "the server is asked over plain HTTP to see whether it is ready; end TLS in front of it",
        "ssl_keyfile": "the server is asked over plain HTTP to see whether it is ready; end TLS in front of it",
        "uds": "the server is reached over its port to see whether it is ready",
    }
)
"""Arguments that the tool sets itself or must keep out of argv, with the reason and the way out."""

SECRET_ARGUMENTS = frozenset({"api_key", "hf_token"})
"""Arguments whose value must never be printed."""
