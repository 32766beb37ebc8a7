"""Settings to argv and back: the identity for every argument of every version, and every form vLLM accepts."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vllm.made import samples, settings_of, texts
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import Argument, Kind
from vmreconcile.vllm.catalogue import Catalogue, catalogue_for, versions
from vmreconcile.vllm.command import (
    Command,
    differences,
    from_argv,
    is_vllm_root,
    normalise,
    parse_strict,
    same,
    to_argv,
    without_defaults,
)

NEWEST = catalogue_for()
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
EVERY = [catalogue_for(version) for version in versions()]


def read(*argv: str, catalogue: Catalogue = NEWEST) -> Command:
    """Read an argv that must be a root's."""
    command = from_argv(argv, catalogue)
    assert command is not None
    return command


def serve(*words: str) -> Command:
    """Read the words after `vllm serve m`."""
    return read("/venv/bin/python3.12", "/venv/bin/vllm", "serve", "m", *words)


def said(argument: Argument, value: JsonValue) -> bool:
    """Whether argv can say this: a flag that is off and an empty list of words are said by leaving them out."""
    return not (argument.kind is Kind.FLAG and value is False) and not (argument.is_list and value == [])


@pytest.mark.parametrize("catalogue", EVERY, ids=versions())
def test_every_argument_survives_argv(catalogue: Catalogue) -> None:
    """Each sample of each argument comes back from argv as it went in, and is no problem."""
    tried = 0
    for name, argument in catalogue.arguments.items():
        for value in samples(argument):
            if name in ("model", "config") or not said(argument, value):
                continue
            command = from_argv(to_argv("vllm", "m", {name: value}, catalogue), catalogue)
            assert command == Command(prefix=("vllm", "serve"), model="m", settings={name: value})
            tried += 1
    assert tried > 2 * len(catalogue.arguments)


@pytest.mark.parametrize("catalogue", EVERY, ids=versions())
@PATIENT
@given(data=st.data())
def test_settings_survive_argv(catalogue: Catalogue, data: st.DataObject) -> None:
    """Any settings come back from argv as they went in, and normalising changes nothing more."""
    settings = data.draw(settings_of(catalogue))
    argv = to_argv("/opt/v/bin/vllm", "org/model", settings, catalogue)
    command = from_argv(argv, catalogue)
    expected = {name: value for name, value in settings.items() if said(catalogue.arguments[name], value)}
    assert command == Command(prefix=argv[:2], model="org/model", settings=expected)
    assert normalise(expected, catalogue) == expected
    assert same(settings, expected, catalogue)
    assert parse_strict(argv[2:], catalogue) == ("org/model", expected)


@PATIENT
@given(words=st.lists(texts | st.sampled_from([*NEWEST.options, "--", "-", "--a.b", "-tp=2", "--x=", "[" * 5000])))
def test_no_argv_is_too_odd(words: list[str]) -> None:
    """Whatever stands after `serve` is read without an exception, and unreadable parts are said."""
    command = from_argv(["vllm", "serve", *words], NEWEST)
    assert command is not None
    to_argv("vllm", "m", command.settings, NEWEST)
    differences({}, command.settings, NEWEST)
    try:
        parse_strict(words, NEWEST)
    except ValueError:
        assert command.problems or len(words) > 1


@PATIENT
@given(argv=st.lists(texts))
def test_any_argv_is_a_root_or_not(argv: list[str]) -> None:
    """No argv at all makes recognition fail, and both answers agree."""
    assert is_vllm_root(argv) is (from_argv(argv, NEWEST) is not None)


def test_nesting_without_end_is_a_problem() -> None:
    """JSON nested beyond reason is refused, not followed."""
    assert serve("--hf-overrides", "{" + '"a":{' * 4000 + "}" * 4001).problems
    assert serve("--hf-overrides." + "a." * 4000 + "b", "1").problems


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["-tp", "2"], {"tensor_parallel_size": 2}),
        (["-tp=2"], {"tensor_parallel_size": 2}),
        (["--tensor_parallel_size", "2"], {"tensor_parallel_size": 2}),
        (["--tensor_parallel_size=2"], {"tensor_parallel_size": 2}),
        (["--gpu-mem", "0.5"], {"gpu_memory_utilization": 0.5}),
        (["--device-memory-utilization", "0.5"], {"gpu_memory_utilization": 0.5}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--enable_prefix_caching"], {"enable_prefix_caching": True}),
        (["--headless"], {"headless": True}),
        (["-n2"], {"nnodes": 2}),
        (["--max-model-len", "8k"], {"max_model_len": 8000}),
        (["--max-model-len", "32K"], {"max_model_len": 32768}),
        (["--max-model-len", "auto"], {"max_model_len": -1}),
        (["--max-model-len", "-1"], {"max_model_len": -1}),
        (["--max-num-batched-tokens", "25.6k"], {"max_num_batched_tokens": 25600}),
        (
            ["-cc.mode", "3", "-cc.custom_ops+", "all,none"],
            {"compilation_config": {"mode": 3, "custom_ops": ["all", "none"]}},
        ),
        (["--kv-transfer-config.kv_buffer_size=80m"], {"kv_transfer_config": {"kv_buffer_size": 80_000_000}}),
        (["--kv-transfer-config", '{"kv_port": 1k}'], {"kv_transfer_config": {"kv_port": 1000}}),
        (["--hf-overrides.a.b", "x", "--hf-overrides.a.c", "true"], {"hf_overrides": {"a": {"b": "x", "c": True}}}),
        (["-O3"], {"optimization_level": "3"}),
        (["-O", "1"], {"optimization_level": "1"}),
        (["-O=2"], {"optimization_level": "2"}),
        (["--served-model-name", "a", "b", "--port", "1"], {"served_model_name": ["a", "b"], "port": 1}),
        (["--middleware", "a", "--middleware", "b"], {"middleware": ["a", "b"]}),
        (
            ["--lora-modules", "a=/p", '{"name":"b","path":"q"}'],
            {"lora_modules": [{"name": "a", "path": "/p"}, {"name": "b", "path": "q"}]},
        ),
        (["--device-ids", "0, 1,GPU-x"], {"device_ids": [0, 1, "GPU-x"]}),
        (["--moe-backend", "Deep-Gemm"], {"moe_backend": "deep_gemm"}),
        (["--port", "1", "--port", "2"], {"port": 2}),
        (["--chat-template", "None"], {"chat_template": None}),
        (["--speculative-config", '{"a": 1}', "--speculative-config.b", "2"], {"speculative_config": {"b": 2}}),
    ],
)
def test_forms_that_vllm_accepts(words: list[str], settings: dict[str, JsonValue]) -> None:
    """Each spelling of a setting reads as the same setting."""
    assert serve(*words) == Command(
        prefix=("/venv/bin/python3.12", "/venv/bin/vllm", "serve"), model="m", settings=dict(sorted(settings.items()))
    )


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["-tp2"], "unrecognized arguments: -tp2"),
        (["--swap-space", "4"], "unrecognized arguments: --swap-space 4"),
        (
            ["--enable-prefix-caching=false"],
            "argument --enable-prefix-caching/--no-enable-prefix-caching: ignored explicit argument 'false'",
        ),
        (["--seed"], "argument --seed: expected one argument"),
        (["--served-model-name"], "argument --served-model-name: expected at least one argument"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["-tp", "x"], "argument --tensor-parallel-size/-tp: invalid int value: 'x'"),
        (
            ["--gpu-memory-utilization", "much"],
            "argument --gpu-memory-utilization/--device-memory-utilization: invalid float value: 'much'",
        ),
        (["--grpc-port", "x"], "argument --grpc-port: Value x cannot be converted to <class 'int'>."),
        (["--max-model-len", "1.5K"], "Decimals are not allowed"),
        (["--dtype", "int3"], "invalid choice: 'int3' (choose from"),
        (["--max-num", "1"], "ambiguous option: --max-num could match --max-num-active-seqs, "),
    ],
)
def test_forms_that_vllm_refuses(words: list[str], refusal: str) -> None:
    """The refusal is argparse's own, and the same argv found on a host is readable with a problem."""
    with pytest.raises(ValueError, match=r".") as raised:
        parse_strict(["m", *words], NEWEST)
    assert refusal in str(raised.value)
    assert serve(*words).problems


def test_minus_o_of_older_versions() -> None:
    """Before --optimization-level, -O3 set a part of the compilation configuration."""
    argv = ["vllm", "serve", "m", "-O3"]
    assert read(*argv, catalogue=catalogue_for("0.10.2")).settings == {"compilation_config": {"level": 3}}
    assert read(*argv, catalogue=catalogue_for("0.11.2")).settings == {"compilation_config": {"mode": 3}}
    assert read(*argv, catalogue=catalogue_for("0.32.0")).settings == {"optimization_level": "3"}


def test_unknown_options_are_kept_and_said() -> None:
    """An option of a newer vLLM is compared by its words, so that a plan with it becomes empty."""
    command = serve("--frobnicate", "5", "--no-wobble", "--spin=a b", "--port", "1")
    assert command.settings == {"frobnicate": "5", "port": 1, "spin": "a b", "wobble": False}
    assert command.problems == ("unrecognized arguments: --frobnicate --no-wobble --spin",)
    desired: dict[str, JsonValue] = {"frobnicate": 5, "wobble": False, "spin": "a b", "port": 1, "gone": None}
    argv = to_argv("vllm", "m", normalise(desired, NEWEST), NEWEST)
    assert same(desired, read(*argv).settings, NEWEST)
    assert differences({"frobnicate": 6}, {"frobnicate": "5"}, NEWEST) == (("frobnicate", "5", 6),)


@pytest.mark.parametrize(
    ("argv", "model", "prefix"),
    [
        (["/v/bin/vllm", "serve", "m"], "m", 2),
        (["/usr/bin/python3", "/v/bin/vllm", "serve", "m"], "m", 3),
        (["python", "-u", "-X", "dev", "/v/bin/vllm", "serve", "m"], "m", 6),
        (["python3.12", "-m", "vllm.entrypoints.cli.main", "serve", "m"], "m", 4),
        (["python", "-um", "vllm.entrypoints.openai.api_server", "--model", "m", "--port", "1"], "m", 3),
        (["python", "-m", "vllm.entrypoints.openai.api_server"], None, 3),
        (["vllm", "serve", "--port", "1", "m"], "m", 2),
        (["vllm", "serve", "--port", "1", "--model=m"], "m", 2),
        (["vllm", "serve", "--model", "m", "--port", "1"], "m", 2),
    ],
)
def test_roots_are_recognised(argv: list[str], model: str | None, prefix: int) -> None:
    """The forms in which a server's root process shows in /proc, with its model."""
    command = read(*argv)
    assert is_vllm_root(argv)
    assert command.model == model
    assert command.prefix == tuple(argv[:prefix])
    assert "model" not in command.settings


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [""],
        ["VLLM::EngineCore"],
        ["bash", "-c", "vllm serve m"],
        ["sudo", "vllm", "serve", "m"],
        ["grep", "vllm", "serve"],
        ["vllm", "bench", "serve"],
        ["vllm"],
        ["python", "-c", "vllm", "serve"],
        ["python", "-m", "vllm.entrypoints.cli.main", "chat"],
        ["python", "train.py", "vllm", "serve"],
        ["python", "-m"],
        ["python"],
    ],
)
def test_others_are_not_roots(argv: list[str]) -> None:
    """A worker, a shell, a search or another program of vLLM's is no server."""
    assert not is_vllm_root(argv)
    assert from_argv(argv, NEWEST) is None


def test_a_config_file_is_a_problem() -> None:
    """Settings in a file on the host cannot be seen, which is said."""
    assert "argument --config: the settings in this file cannot be seen" in serve("--config", "x.yaml").problems


def test_problems_hold_no_secret() -> None:
    """Neither an unknown option's value nor a secret's shows in the problems."""
    command = serve("--api-kex", "sk-sentinel", "--hf-tokeneer=hf_sentinel", "--api-key")
    assert command.problems
    assert "sentinel" not in "".join(command.problems)


def test_user_spellings_become_one() -> None:
    """Kebab, alias, dotted, negative and textual values of YAML end as one canonical setting each."""
    written: dict[str, JsonValue] = {
        "max-model-len": "8k",
        "tp": 2.0,
        "compilation_config.mode": 3,
        "compilation-config": '{"custom_ops": ["all"], "mode": 1}',
        "kv_transfer_config.kv_buffer_size": "80m",
        "served_model_name": 123,
        "device_ids": "0,1",
        "no_enable_lora": True,
        "cpu_offload_gb": 4,
        "seed": None,
        "chat_template": "None",
        "lora_modules": "a=/p",
        "Frob-nicate": [1],
    }
    assert normalise(written, NEWEST) == {
        "Frob_nicate": [1],
        "chat_template": None,
        "compilation_config": {"custom_ops": ["all"], "mode": 3},
        "cpu_offload_gb": 4.0,
        "device_ids": [0, 1],
        "enable_lora": False,
        "kv_transfer_config": {"kv_buffer_size": 80_000_000},
        "lora_modules": [{"name": "a", "path": "/p"}],
        "max_model_len": 8000,
        "served_model_name": ["123"],
        "tensor_parallel_size": 2,
    }


def test_defaults_do_not_differ() -> None:
    """What equals the version's default is no setting; a default of another version is one."""
    given_: dict[str, JsonValue] = {"gpu_memory_utilization": 0.92, "port": 8000, "headless": False, "middleware": []}
    assert without_defaults(given_, NEWEST) == {}
    assert without_defaults({"gpu_memory_utilization": 0.92}, catalogue_for("0.10.2")) == {
        "gpu_memory_utilization": 0.92
    }
    assert without_defaults({"eplb_config": {"window_size": 1000, "step_interval": 5}}, NEWEST) == {
        "eplb_config": {"step_interval": 5}
    }


def test_differences_name_before_and_after() -> None:
    """Differences are sorted, show the default for what one side leaves out, and see through spellings."""
    observed: dict[str, JsonValue] = {"max_model_len": 4096, "seed": 1, "enable_lora": True}
    desired: dict[str, JsonValue] = {"max_model_len": "8k", "seed": 1.0, "gpu_memory_utilization": "0.90"}
    assert differences(desired, observed, NEWEST) == (
        ("enable_lora", True, None),
        ("gpu_memory_utilization", 0.92, 0.9),
        ("max_model_len", 4096, 8000),
    )
    assert same({"gpu_memory_utilization": 1}, {"gpu_memory_utilization": 1.0}, NEWEST)
    assert not same({"hf_overrides": {"a": 1}}, {"hf_overrides": {"a": True}}, NEWEST)
