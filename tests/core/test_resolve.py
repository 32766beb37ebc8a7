"""`resolve`: which servers are wanted, with which values, and who said each of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.models import HEAD, check, fleet, server
from vmreconcile.core.durations import WEEK, seconds
from vmreconcile.core.resolve import resolve
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import load_models
from vmreconcile.model.desired import CORDONED, DesiredState
from vmreconcile.model.gpus import Needs
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.names import ServerId
from vmreconcile.model.values import JsonValue, OriginKind
from vmreconcile.vllm.argument import Kind
from vmreconcile.vllm.catalogue import catalogue_for, versions
from vmreconcile.vllm.command import differences, normalise


def _read(folder: Path) -> Inventory:
    return read_inventory([str(folder / "inventory.yml")], environ={})


def _values(folder: Path, text: str, name: str, inventory: str | None = None) -> dict[str, JsonValue]:
    wanted = fleet(folder, text, inventory) if inventory else fleet(folder, text)
    return {key: setting.value for key, setting in server(wanted, name).settings.items()}


def test_one_server_for_each_host_and_replica(tmp_path: Path) -> None:
    """Sorted by host, model, replica; replica n listens on port + n."""
    files = {"a.yaml": HEAD + "replicas: 2\n", "b.yaml": HEAD.replace("name: a", "name: b").replace("8001", "9000")}
    wanted = fleet(tmp_path, files)
    assert [(str(one.id), one.port) for one in wanted.on("gpu1")] == [
        ("a@gpu1", 8001),
        ("a/1@gpu1", 8002),
        ("b@gpu1", 9000),
    ]
    assert list(wanted.servers) == sorted(wanted.servers, key=lambda one: (one.id.host, one.id.model, one.id.replica))
    assert len(wanted.servers) == 9


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    """Defaults as in docs/models.md, with an origin that says so."""
    one = server(fleet(tmp_path, HEAD), "a@gpu2")
    assert one.id == ServerId(host="gpu2", model="a")
    assert (one.model, one.revision, one.port, one.state) == ("org/m", None, 8001, DesiredState.RUNNING)
    assert (one.settings, one.env, one.gpus, one.token) == ({}, {}, "auto", "default")
    assert (one.runtime, one.executable, one.state_dir) == ("", "", "")
    assert (one.needs, one.cordon, one.host_cordon, one.cordoned_gpus) == (Needs(), "", "", ())
    assert (one.health.startup_timeout, one.health.completion, one.rollout.max_unavailable) == (None, True, 1)
    assert one.origins["state"].kind is OriginKind.DEFAULT
    assert str(one.origins["port"]) == f"{tmp_path}/models.d/a.yaml:4:1"


def test_every_key_is_carried(tmp_path: Path) -> None:
    """All that a model file may say, in the types of `DesiredServer`."""
    text = HEAD + (
        "revision: main\nstate: stopped\ngpus: [1, 0]\nhf_token: null\nruntime: process\n"
        "args: {tensor_parallel_size: 2}\nneeds: {kv_tokens: 200k, concurrency: 2.5}\ncordon: new weights\n"
        "health: {startup_timeout: 1h30m, completion: false}\nrollout: {max_unavailable: 25%}\n"
        "env: {A: '01', B: 2, C: null}\n"
    )
    one = server(fleet(tmp_path, text), "a@gpu1")
    assert (one.revision, one.state, one.gpus, one.token) == ("main", DesiredState.STOPPED, (1, 0), None)
    assert (one.runtime, one.health.startup_timeout, one.health.completion) == ("process", 5400.0, False)
    assert one.rollout.max_unavailable == "25%"
    assert (one.needs, one.cordon) == (Needs(kv_tokens=200_000, concurrency=2.5), "new weights")
    assert {name: setting.value for name, setting in one.env.items()} == {"A": "01", "B": "2"}


INVENTORY = """
all:
  vars: {vllm_runtime: process, vllm_hf_token: default, vllm_env: {A: all, B: all}}
  children:
    gpu:
      vars: {vllm_args: {max-model-len: 1024, enforce_eager: true, seed: 1}, vllm_state_dir: /srv/v}
      hosts:
        gpu1: {vllm_executable: /opt/v/bin/vllm}
        gpu2: {vllm_args: {max_num_seqs: 5}}
"""


def test_precedence_and_origins(tmp_path: Path) -> None:
    """Group vars, host vars (which replace a group's map, as in Ansible), the model, its overrides in file order."""
    text = HEAD + (
        "args: {max_model_len: 2048, tp: 2}\nenv: {B: model}\n"
        "overrides:\n  gpu: {args: {max_model_len: 4096}}\n  gpu1: {args: {tensor-parallel-size: 1}, port: 9001}\n"
    )
    wanted = fleet(tmp_path, text, INVENTORY)
    one, two = server(wanted, "a@gpu1"), server(wanted, "a@gpu2")
    assert {name: setting.value for name, setting in one.settings.items()} == {
        "enforce_eager": True,
        "max_model_len": 4096,
        "seed": 1,
        "tensor_parallel_size": 1,
    }
    assert {name: setting.value for name, setting in two.settings.items()} == {
        "max_model_len": 4096,
        "max_num_seqs": 5,
        "tensor_parallel_size": 2,
    }
    assert {name: setting.value for name, setting in one.env.items()} == {"A": "all", "B": "model"}
    assert (one.port, two.port, one.executable, two.executable) == (9001, 8001, "/opt/v/bin/vllm", "")
    assert (one.runtime, one.token, one.state_dir) == ("process", "default", "/srv/v")
    kinds = {name: setting.origin.kind.value for name, setting in one.settings.items()}
    assert kinds == {
        "enforce_eager": "group_vars",
        "max_model_len": "override",
        "seed": "group_vars",
        "tensor_parallel_size": "override",
    }
    assert two.settings["max_num_seqs"].origin.kind is OriginKind.HOST_VARS
    assert str(one.settings["tensor_parallel_size"].origin).endswith("a.yaml:9:17 (override gpu1)")
    assert str(one.origins["port"]).endswith("a.yaml:9:43 (override gpu1)")
    assert one.origins["runtime"].kind is OriginKind.GROUP_VARS


def test_the_model_overrides_the_hosts_runtime_and_token(tmp_path: Path) -> None:
    """`runtime:` and `hf_token:` of the model stand above the host's variables; null is a value."""
    one = server(fleet(tmp_path, HEAD + "runtime: systemd\nhf_token: null\n", INVENTORY), "a@gpu1")
    assert (one.runtime, one.token) == ("systemd", None)


def test_null_takes_back_what_is_below(tmp_path: Path) -> None:
    """Under args and env, in the model or an override, in any spelling."""
    text = HEAD + "args: {enforce-eager: null, seed: null}\nenv: {A: null}\noverrides: {gpu2: {env: {B: null}}}\n"
    wanted = fleet(tmp_path, text, INVENTORY)
    assert {name: one.value for name, one in server(wanted, "a@gpu1").settings.items()} == {"max_model_len": 1024}
    assert set(server(wanted, "a@gpu1").env) == {"B"}
    assert set(server(wanted, "a@gpu2").env) == set()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("{}", {}),
        ("{gpu_memory_utilization: auto}", {}),
        ("{gpu-memory-utilization: auto}", {}),
        ("{gpu_memory_utilization: 0.5}", {"gpu_memory_utilization": 0.5}),
        ("{gpu_memory_utilization: 1}", {"gpu_memory_utilization": 1.0}),
        ("{max_model_len: auto}", {"max_model_len": -1}),
        ("{max_model_len: 32K}", {"max_model_len": 32768}),
        ("{no_enable_prefix_caching: true}", {"enable_prefix_caching": False}),
        ("{tp: 2}", {"tensor_parallel_size": 2}),
        ("{compilation_config: {mode: 3}}", {"compilation_config": {"mode": 3}}),
        ("{compilation_config.mode: 3}", {"compilation_config": {"mode": 3}}),
        ("{compilation_config.mode: 2, compilation_config: {mode: 3, backend: x}}",
         {"compilation_config": {"mode": 2, "backend": "x"}}),
    ],
)  # fmt: skip
def test_values_are_normalised(tmp_path: Path, args: str, expected: dict[str, JsonValue]) -> None:
    """Every spelling gives the canonical name and form; `auto` leaves the utilization out."""
    assert _values(tmp_path, HEAD + f"args: {args}\n", "a@gpu1") == expected


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ("gpu_memory_utilization: 0.5", "gpu_memory_utilization: auto", {}),
        ("compilation_config: {mode: 1, backend: x}", "compilation_config.mode: 2",
         {"compilation_config": {"mode": 2, "backend": "x"}}),
        ("compilation_config: {mode: 1, backend: x}", "compilation_config: {mode: 2}",
         {"compilation_config": {"mode": 2}}),
        ("compilation_config.mode: 1", "compilation_config: {backend: x}", {"compilation_config": {"backend": "x"}}),
        ("compilation_config.mode: 1", "compilation_config.backend: x",
         {"compilation_config": {"mode": 1, "backend": "x"}}),
        ("compilation_config: {mode: 1, backend: x}", "compilation_config.mode: null",
         {"compilation_config": {"backend": "x"}}),
        ("compilation_config.mode: 1", "compilation_config.mode: null", {}),
        ("compilation_config.mode: 1", "compilation_config: null", {}),
        ("enable_prefix_caching: true", "no_enable_prefix_caching: true", {"enable_prefix_caching": False}),
    ],
)  # fmt: skip
def test_parts_of_arguments_over_each_other(
    tmp_path: Path, below: str, above: str, expected: dict[str, JsonValue]
) -> None:
    """A whole argument replaces what is below, a dotted name is laid into it, null takes back."""
    text = HEAD + f"args: {{{below}}}\noverrides: {{gpu1: {{args: {{{above}}}}}}}\n"
    assert _values(tmp_path, text, "a@gpu1") == expected


def test_health_is_laid_over_key_by_key(tmp_path: Path) -> None:
    """An override of one key leaves the other as the model has it."""
    text = (
        HEAD + "health: {startup_timeout: 60, completion: false}\noverrides: {gpu1: {health: {startup_timeout: 2m}}}\n"
    )
    health = server(fleet(tmp_path, text), "a@gpu1").health
    assert (health.startup_timeout, health.completion) == (120.0, False)


def test_needs_are_laid_over_key_by_key(tmp_path: Path) -> None:
    """An override of one key leaves the other; null takes one back."""
    text = HEAD + (
        "needs: {kv_tokens: 256K, concurrency: 4}\n"
        "overrides: {gpu1: {needs: {concurrency: 8}}, gpu2: {needs: {kv_tokens: null}}}\n"
    )
    wanted = fleet(tmp_path, text)
    found = [server(wanted, f"a@gpu{number}") for number in (1, 2, 3)]
    assert [one.needs for one in found] == [
        Needs(kv_tokens=262_144, concurrency=8.0),
        Needs(concurrency=4.0),
        Needs(kv_tokens=262_144, concurrency=4.0),
    ]
    assert str(found[0].origins["needs"]).endswith("a.yaml:6:20 (override gpu1)")
    assert str(found[2].origins["needs"]).endswith("a.yaml:5:1")


CORDONS = """
all:
  vars: {vllm_cordon: moves to another room}
  children:
    gpu:
      vars: {vllm_cordoned_gpus: [3, GPU-5fd4f2c1]}
      hosts:
        gpu1:
        gpu2: {vllm_cordon: false, vllm_cordoned_gpus: []}
        gpu3: {vllm_cordon: true, vllm_cordoned_gpus: null}
"""


def test_cordons_of_models_hosts_and_gpus(tmp_path: Path) -> None:
    """True or a reason; a nearer layer takes it back with false, null or an empty list; each with its origin."""
    text = HEAD + "cordon: true\noverrides: {gpu2: {cordon: null}, gpu3: {cordon: 'its weights are broken'}}\n"
    wanted = fleet(tmp_path, text, CORDONS)
    found = [server(wanted, f"a@gpu{number}") for number in (1, 2, 3)]
    assert [one.cordon for one in found] == [CORDONED, "", "its weights are broken"]
    assert [one.host_cordon for one in found] == ["moves to another room", "", CORDONED]
    assert [one.cordoned_gpus for one in found] == [("3", "GPU-5fd4f2c1"), (), ()]
    assert str(found[2].origins["cordon"]).endswith("(override gpu3)")
    assert found[0].origins["host_cordon"].kind is OriginKind.GROUP_VARS
    assert found[1].origins["cordoned_gpus"].kind is OriginKind.HOST_VARS


def test_cordons_of_an_ini_inventory(tmp_path: Path) -> None:
    """INI has texts where YAML has truth values; the words that Ansible takes for them count as such."""
    read = fleet(tmp_path, HEAD, CORDONS)
    (tmp_path / "hosts.ini").write_text(
        "[gpu]\ngpu1 vllm_cordon=true\ngpu2 vllm_cordon=no\ngpu3 vllm_cordon='new memory'\n"
        "[gpu:vars]\nvllm_cordoned_gpus=[0, 'MIG-1']\n"
    )
    inventory = read_inventory([str(tmp_path / "hosts.ini")], environ={})
    wanted = resolve(load_models(tmp_path / "models.d"), inventory, catalogue=catalogue_for(None))
    assert len(wanted.servers) == len(read.servers)
    assert [one.host_cordon for one in wanted.servers] == [CORDONED, "", "new memory"]
    assert {one.cordoned_gpus for one in wanted.servers} == {("0", "MIG-1")}


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("args", ["{max_model_len: auto}", "{max-model-len: -1}", "{max_model_len: 'AUTO'}"])
def test_a_context_left_to_the_tool_stays_open(tmp_path: Path, version: str, args: str) -> None:
    """`max_model_len: auto` goes through as vLLM's own -1, whatever the vLLM of the host knows of it."""
    wanted = fleet(tmp_path, HEAD + f"args: {{max_model_len: 4096}}\noverrides: {{gpu1: {{args: {args}}}}}\n")
    settings = {name: one.value for name, one in server(wanted, "a@gpu1").settings.items()}
    assert settings == {"max_model_len": -1}
    here = catalogue_for(version)
    assert normalise(settings, here) == settings
    assert differences(settings, {"max_model_len": 8192}, here) == (("max_model_len", 8192, -1),)
    assert differences(settings, settings, here) == ()
    read = resolve(load_models(tmp_path / "models.d"), _read(tmp_path), catalogue=here)
    value = server(read, "a@gpu1").settings["max_model_len"].value
    assert value == -1 or (here.arguments["max_model_len"].kind is Kind.HUMAN_INT and str(value).lower() == "auto")


def test_a_context_left_to_the_tool_over_and_under_a_number(tmp_path: Path) -> None:
    """Like any other value: the nearer layer counts, and null leaves vLLM's default."""
    inventory = "all: {vars: {vllm_args: {max_model_len: auto}}, hosts: {gpu1: , gpu2: , gpu3: }}\n"
    text = HEAD.replace("hosts: gpu", "hosts: all") + (
        "overrides: {gpu2: {args: {max_model_len: 8k}}, gpu3: {args: {max_model_len: null}}}\n"
    )
    wanted = fleet(tmp_path, text, inventory)
    found = [server(wanted, f"a@gpu{number}").settings for number in (1, 2, 3)]
    assert [{name: one.value for name, one in each.items()} for each in found] == [
        {"max_model_len": -1},
        {"max_model_len": 8000},
        {},
    ]


def test_patterns_in_overrides(tmp_path: Path) -> None:
    """Keys are host patterns; on a host that several name, the last in the file wins."""
    text = HEAD + "overrides: {'gpu:!gpu3': {port: 1}, gpu2: {port: 2}, '~gpu[12]': {replicas: 2}}\n"
    wanted = fleet(tmp_path, text)
    assert [(str(one.id), one.port) for one in wanted.servers] == [
        ("a@gpu1", 1), ("a/1@gpu1", 2), ("a@gpu2", 2), ("a/1@gpu2", 3), ("a@gpu3", 8001),
    ]  # fmt: skip


def test_what_hosts_have_in_common_is_shared(tmp_path: Path) -> None:
    """Hosts with the same variables and overrides share one settings mapping, so a large fleet stays small."""
    wanted = fleet(tmp_path, HEAD + "args: {tp: 2}\n")
    assert server(wanted, "a@gpu1").settings is server(wanted, "a@gpu2").settings


def test_files_without_content_are_passed_over(tmp_path: Path) -> None:
    """An empty folder wants nothing (validate warns)."""
    assert [one.code for one in check(tmp_path, {})] == ["models-empty"]


@pytest.mark.slow
def test_eight_thousand_servers_with_variables_of_their_own(tmp_path: Path) -> None:
    """Nothing to share (each host has its own map): still about a tenth of a millisecond a server."""
    hosts = "".join(f"    h{number}: {{vllm_args: {{seed: {number}}}}}\n" for number in range(1000))
    (tmp_path / "models.d").mkdir()
    files = {f"{n}.yaml": HEAD.replace("name: a", f"name: a{n}").replace("8001", f"{8001 + n}") for n in range(8)}
    files = {name: text.replace("gpu", "all") for name, text in files.items()}
    started = time.process_time()
    wanted = fleet(tmp_path, files, "all:\n  hosts:\n" + hosts)
    assert len(wanted.servers) == 8000
    assert server(wanted, "a3@h7").settings["seed"].value == 7
    assert time.process_time() - started < 4


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (90, 90.0), (0.5, 0.5), ("90s", 90.0), ("15m", 900.0), ("1h30m", 5400.0), ("2d", 172800.0), ("7d", WEEK),
        (0, None), (-1, None), ("0s", None), ("8d", None), ("", None), ("15", None), ("m15", None), ("1m1h", None),
        ("1.5h", None), ("15m\n", None), ("\u0661m", None), (True, None), (None, None), (float("inf"), None),
    ],
)  # fmt: skip
def test_durations(written: object, expected: float | None) -> None:
    """Seconds, or units from the largest to the smallest."""
    assert seconds(written) == expected


@given(st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.none(), st.lists(st.integers())))
def test_durations_never_raise(written: object) -> None:
    """Whatever it is, it is a sensible number of seconds or none."""
    found = seconds(written)
    assert found is None or 0 < found <= WEEK
