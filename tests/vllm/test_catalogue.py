"""Finding arguments by any of their names, and whether values fit them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.vllm.made import samples
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import SECRET_ARGUMENTS, TOOL_OWNED
from vmreconcile.vllm.catalogue import Catalogue, catalogue_for, check_value, versions

NEWEST = catalogue_for()


def test_versions_are_oldest_first() -> None:
    """At least three, by number and not by spelling, 0.32.0 the newest."""
    assert len(versions()) >= 3
    assert versions()[-1] == "0.32.0"
    assert versions()[0] == "0.10.2"


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (None, "0.32.0"),
        ("0.32.0", "0.32.0"),
        ("0.32.0+cpu", "0.32.0"),
        ("v0.33.1rc2.dev5+g12ab", "0.32.0"),
        ("0.31.9", "0.26.0"),
        ("0.22.1", "0.22.1"),
        ("0.11.2", "0.11.2"),
        ("0.9.0", "0.10.2"),
        ("nightly", "0.32.0"),
        ("", "0.32.0"),
    ],
)
def test_the_nearest_known_version_that_is_not_newer(asked: str | None, got: str) -> None:
    """A host's version finds its catalogue; one older than all known ones gets the oldest."""
    assert catalogue_for(asked).version == got
    assert catalogue_for(asked).version in versions()


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("max_model_len", "max_model_len"),
        ("max-model-len", "max_model_len"),
        ("--max-model-len", "max_model_len"),
        ("tp", "tensor_parallel_size"),
        ("-tp", "tensor_parallel_size"),
        ("dpm", "data_parallel_multi_port_external_lb"),
        ("device-memory-utilization", "gpu_memory_utilization"),
        ("no_enable_lora", "enable_lora"),
        ("compilation_config.mode", "compilation_config"),
        ("compilation-config.pass_config.x", "compilation_config"),
        ("cc.mode", "compilation_config"),
        ("port.x", None),
        ("swap_space", None),
        ("", None),
        (".", None),
    ],
)
def test_names_of_an_argument(name: str, canonical: str | None) -> None:
    """Every spelling leads to the canonical name; a dotted one only where the argument holds an object."""
    assert NEWEST.canonical(name) == canonical


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("max_modl_len", "max_model_len"),
        ("gpu-memory-utilisation", "gpu_memory_utilization"),
        ("gpu_mem", "gpu_memory_utilization"),
        ("disable_log_requests", "enable_log_requests"),
        ("tensor_parallel", "tensor_parallel_size"),
        ("compilation_confg.mode", "compilation_config"),
    ],
)
def test_did_you_mean(name: str, suggested: str) -> None:
    """A slip, a beginning or an argument that has changed sides finds what was meant."""
    assert suggested in NEWEST.suggest(name)


def test_nothing_is_suggested_for_nonsense() -> None:
    """No guess is better than a wild one."""
    assert NEWEST.suggest("zzzzqqqq") == ()


@pytest.mark.parametrize("catalogue", [catalogue_for(version) for version in versions()], ids=versions())
def test_every_argument_is_usable(catalogue: Catalogue) -> None:
    """Each is found by its own name and options, its default fits it, and it says what it is for."""
    for name, argument in catalogue.arguments.items():
        assert catalogue.canonical(name) == name
        assert argument.option in argument.options
        assert argument.name == name
        if name != "reasoning_parser":  # of old: its default '' is none of its choices, and cannot be said
            assert check_value(argument, argument.default) is None, name
        assert all(check_value(argument, value) is None for value in samples(argument))
        assert len(argument.help) <= 160
    assert catalogue.arguments["max_model_len"].help


def test_what_the_tool_owns_is_vllms() -> None:
    """Every owned or secret name is an argument of the newest version (model_tag is the positional)."""
    assert set(TOOL_OWNED) - {"model_tag"} <= set(NEWEST.arguments)
    assert set(NEWEST.arguments) >= SECRET_ARGUMENTS
    assert set(TOOL_OWNED) >= SECRET_ARGUMENTS
    assert all(TOOL_OWNED.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_model_len", 8192),
        ("max_model_len", "8k"),
        ("max_model_len", "32K"),
        ("max_model_len", "auto"),
        ("max_model_len", None),
        ("max_num_batched_tokens", "25.6k"),
        ("port", "80"),
        ("port", 8e3),
        ("gpu_memory_utilization", 1),
        ("gpu_memory_utilization", "0.9"),
        ("enable_lora", True),
        ("dtype", "half"),
        ("served_model_name", "a"),
        ("served_model_name", ["-a"]),
        ("compilation_config", {"mode": 3}),
        ("compilation_config", '{"mode": 3}'),
        ("hf_overrides", "text"),
        ("lora_modules", ["a=/p", {"name": "b", "path": "q"}]),
        ("device_ids", [0, "GPU-1"]),
        ("device_ids", "0,1"),
        ("hf_token", True),
        ("revision", 1),
        ("middleware", ["a", "-b", "c"]),
    ],
)
def test_values_that_fit(name: str, value: JsonValue) -> None:
    """What vLLM would read from these is what is meant."""
    assert check_value(NEWEST.arguments[name], value) is None


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("max_model_len", "1.5K", "max_model_len wants a whole number, one with a suffix (8k = 8000, 32K = 32768)"),
        ("max_num_seqs", "8k", "max_num_seqs wants a whole number, not '8k'"),
        ("max_num_seqs", True, "max_num_seqs wants a whole number, not true"),
        ("max_num_seqs", 1.5, "max_num_seqs wants a whole number, not 1.5"),
        ("gpu_memory_utilization", "auto", "gpu_memory_utilization wants a number, not 'auto'"),
        ("gpu_memory_utilization", float("nan"), "gpu_memory_utilization wants a number, not nan"),
        ("enable_lora", "yes", "enable_lora wants true or false, not 'yes'"),
        ("headless", 1, "headless wants true or false, not 1"),
        ("dtype", "int3", "dtype is one of auto, bfloat16, float, float16, float32, half, not 'int3'"),
        ("tokenizer", ["a"], "tokenizer wants a text, not ['a']"),
        ("tokenizer", "a\0b", "tokenizer: a NUL character cannot be passed to a program"),
        ("served_model_name", ["a", "-b"], "served_model_name: an item of several cannot begin with '-'"),
        ("served_model_name", {"a": 1}, "served_model_name wants a text, not {'a': 1}"),
        ("kv_transfer_config", "text", "kv_transfer_config wants a mapping, not 'text'"),
        ("compilation_config", {"moed": 3}, "compilation_config has no key 'moed'; did you mean mode?"),
        ("limit_mm_per_prompt", "image=1", "limit_mm_per_prompt wants a mapping, not 'image=1'"),
        ("lora_modules", ["a"], "lora_modules wants name=path, or a mapping with name and path, not 'a'"),
        ("ignore_patterns", [], "ignore_patterns: an empty list cannot be given on vLLM's command line"),
        ("api_key", {"a": "sentinel"}, "api_key wants a text, not what is there"),
    ],
)
def test_values_that_do_not_fit(name: str, value: JsonValue, problem: str) -> None:
    """The line names the argument, what it wants and what it got, but never a secret."""
    said = check_value(NEWEST.arguments[name], value)
    assert said is not None
    assert said.startswith(problem)
    assert "\n" not in said


def test_catalogues_are_lazy() -> None:
    """Importing the modules reads no catalogue, and no heavy module."""
    code = (
        "import sys, vmreconcile.vllm.command, vmreconcile.vllm.catalogue as c\n"
        "assert c._load.cache_info().currsize == 0 and c._known.cache_info().currsize == 0\n"
        "assert not {'asyncio', 'socket', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_thousand_models_are_checked_quickly() -> None:
    """Looking up and checking ten arguments of a thousand models takes a fraction of validate's three seconds."""
    args: dict[str, JsonValue] = {"max-model-len": "8k", "tp": 2, "dtype": "half", "compilation_config": {"mode": 3}}
    begun = time.process_time()
    for _ in range(1000):
        for name, value in args.items():
            assert check_value(NEWEST.arguments[NEWEST.canonical(name) or ""], value) is None
    assert time.process_time() - begun < 1
