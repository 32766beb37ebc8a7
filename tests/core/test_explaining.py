"""What a failure means for one server: every recorded log, with the names and places that a person needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.worlds import FILE, wanted
from vmreconcile.core.explaining import located
from vmreconcile.errors import Place
from vmreconcile.model.names import ServerId
from vmreconcile.model.values import JsonValue, Origin, OriginKind
from vmreconcile.vllm.signatures import Explanation, cause, signatures

LOGS = Path(__file__).parents[1] / "vllm" / "logs"
FAILED = sorted(path.stem for path in LOGS.glob("*.log") if not path.stem.startswith("ready"))
SERVER = wanted(
    "m@h1",
    args={
        "data_parallel_size": 1,
        "gpu_memory_utilization": 0.5,
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "pipeline_parallel_size": 1,
        "quantization": "fp8",
        "seed": "x",
        "swap_space": 4,
        "tensor_parallel_size": 3,
    },
    env=dict.fromkeys(("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HTTPS_PROXY", "VLLM_ENGINE_READY_TIMEOUT_S"), "1"),
    prefetch=True,
    executable="/opt/vllm/bin/vllm",
    origins={
        **dict.fromkeys(("model", "port", "token", "gpus", "prefetch", "health"), FILE),
        "executable": Origin(kind=OriginKind.HOST_VARS, place=Place(file="inventory/host_vars/h1.yaml", line=3)),
    },
)
BARE = wanted("m@h1")
SETTINGS = {
    "bad_argument": ("args.seed",),
    "bad_path": ("model",),
    "bad_token": ("hf_token",),
    "bad_token-expired": ("hf_token",),
    "bad_token-unauthorized": ("hf_token",),
    "credential": ("hf_token",),
    "died": ("model",),
    "disk_full": ("env.HF_HOME",),
    "gated": ("model", "hf_token"),
    "gated-fine_grained": ("hf_token", "model"),
    "gated-forbidden": ("model", "hf_token"),
    "gpu_already_used": ("args.gpu_memory_utilization", "gpus"),
    "gpu_already_used-cpu": ("args.gpu_memory_utilization", "gpus"),
    "hub_unreachable": ("env.HF_ENDPOINT", "env.HTTPS_PROXY"),
    "hub_unreachable-cut": ("env.HF_ENDPOINT", "env.HTTPS_PROXY", "prefetch"),
    "invalid_setting": ("args.tensor_parallel_size",),
    "invalid_setting-range": ("args.gpu_memory_utilization",),
    "kv_too_small": ("args.max_model_len", "args.gpu_memory_utilization"),
    "killed": ("model",),
    "max_model_len": ("args.max_model_len",),
    "memory_moved": ("gpus", "args.gpu_memory_utilization"),
    "no_kv_memory": ("args.gpu_memory_utilization", "args.tensor_parallel_size"),
    "no_permission": ("env.HF_HOME", "model"),
    "no_such_repo": ("model", "hf_token"),
    "not_enough_gpus": (
        "args.tensor_parallel_size",
        "args.pipeline_parallel_size",
        "args.data_parallel_size",
        "gpus",
    ),
    "offline": ("env.HF_HUB_OFFLINE", "model"),
    "out_of_memory": ("args.tensor_parallel_size", "args.quantization", "args.max_num_seqs"),
    "out_of_memory-warming_up": ("args.max_num_seqs", "args.gpu_memory_utilization"),
    "port_in_use": ("port",),
    "too_slow": ("env.VLLM_ENGINE_READY_TIMEOUT_S",),
    "unknown_argument": ("args.swap_space", "vllm_executable"),
    "unsupported_model": ("model", "vllm_executable"),
}
"""What a person would change after each log, in the words of the files."""


def explained(name: str) -> Explanation:
    """What one recorded log shows."""
    found = cause((LOGS / f"{name}.log").read_text(encoding="utf-8").splitlines())
    assert found is not None
    return found


@pytest.mark.parametrize("name", FAILED)
def test_every_log_leads_to_server_host_file_and_setting(name: str) -> None:
    """The remedy names all four; a setting that stands in a file with file and line."""
    found = located(explained(name), SERVER.id, SERVER)
    assert found.remedy.endswith("m@h1 on host h1)")
    assert "{" not in found.summary + found.remedy
    assert "NAME@HOST" not in found.remedy
    assert SETTINGS[name]
    for setting in SETTINGS[name]:
        file = "inventory/host_vars/h1.yaml:3" if setting == "vllm_executable" else "models.d/m.yaml:9"
        (place,) = [each for each in found.remedy.split("; ") if f"{setting} is " in each]
        assert file in place


@pytest.mark.parametrize("name", FAILED)
def test_what_nobody_wrote_leads_to_where_it_would_be(name: str) -> None:
    """The model's file, for each setting that it does not hold."""
    found = located(explained(name), BARE.id, BARE)
    assert "models.d/m.yaml" in found.remedy
    assert "{" not in found.remedy
    for setting in SETTINGS[name]:
        if setting == "vllm_executable":
            assert "vllm_executable is not set for h1 in the inventory" in found.remedy
        elif setting.startswith("env."):
            assert f"{setting} is not set in models.d/m.yaml" in found.remedy


@pytest.mark.parametrize("name", FAILED)
def test_a_server_that_nobody_wants_is_named_all_the_same(name: str) -> None:
    """There is no file then."""
    found = located(explained(name), ServerId.parse("old@h2"), None)
    assert found.remedy.endswith(" (old@h2 on host h2)")
    assert "{" not in found.remedy


def test_every_signature_has_settings() -> None:
    """Nothing that can be explained is without something to change."""
    assert [signature.kind for signature in signatures() if not signature.settings] == []


def test_a_refused_argument_is_found_under_any_spelling() -> None:
    """As an option, in words, in snake case; of several the server's own; no ordinary word is taken for one."""
    remedies = {
        text: located(_refused(text), SERVER.id, SERVER).remedy
        for text in (
            "argument -tp/--tensor-parallel-size: invalid int value: 'x'",
            "heads must be divisible by tensor parallel size (3)",
            "tensor_parallel_size: Input should be greater than 0",
        )
    }
    for text, remedy in remedies.items():
        assert "args.tensor_parallel_size is 3, models.d/m.yaml:9" in remedy, text
    assert "args, models.d/m.yaml;" in located(_refused("the model has no port"), BARE.id, BARE).remedy
    unset = located(_refused("argument --max-num-seqs: no"), BARE.id, BARE).remedy
    assert "args.max_num_seqs is not set in models.d/m.yaml" in unset


@pytest.mark.parametrize(
    ("args", "env", "setting"),
    [({"api_key": "opensesame"}, {}, "args.api_key"), ({}, {"MY_API_KEY": "opensesame"}, "env.MY_API_KEY")],
)
def test_a_secret_is_not_shown(args: dict[str, JsonValue], env: dict[str, str], setting: str) -> None:
    """Its place is."""
    server = wanted(args=args, env=env)
    found = located(replace(_refused(""), settings=(setting,)), server.id, server)
    assert "opensesame" not in found.remedy
    assert f"{setting} is (hidden), models.d/m.yaml:9" in found.remedy


def _refused(text: str) -> Explanation:
    return Explanation(kind="x", summary="x", evidence=text, line=1, remedy="x", settings=("args.*",))
