"""`validate`: each kind of mistake, where it stands, and what is said about it."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.models import HEAD, INVENTORY, brief, check, fleet
from vmreconcile.core.placement import Placement
from vmreconcile.core.resolve import resolve
from vmreconcile.core.validate import validate
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import load_models
from vmreconcile.effects.schemas import read_schemas
from vmreconcile.errors import Diagnostic, Severity
from vmreconcile.model.inventory import Inventory
from vmreconcile.vllm.catalogue import catalogue_for

TOKEN = "hf_" + "aB3" * 11 + "x"


def test_a_valid_model_has_no_problem(tmp_path: Path) -> None:
    """The contract's example, whole, is accepted."""
    text = """
name: qwen2.5-7b
model: Qwen/Qwen2.5-7B-Instruct
hosts: gpu
port: 8001
replicas: 1
state: running
gpus: auto
revision: null
args:
  max_model_len: 8192
  gpu_memory_utilization: auto
env: {VLLM_LOGGING_LEVEL: INFO}
hf_token: default
runtime: systemd
health: {startup_timeout: 15m, completion: true}
rollout: {max_unavailable: 1}
overrides: {gpu3: {args: {max_model_len: 4096}}}
"""
    assert check(tmp_path, text) == ()


@pytest.mark.parametrize(
    ("text", "expected", "suggestion"),
    [
        ("heath: {}", "a.yaml:5:1 unknown-key", "health"),
        ("health: {startup_timeout: 0}", "a.yaml:5:27 wrong-value", ""),
        ("health: {startup_timeout: 0m}", "a.yaml:5:27 wrong-value", ""),
        ("health: {startup_timeout: 9d}", "a.yaml:5:27 wrong-value", ""),
        ("health: {startup_timeout: 15 min}", "a.yaml:5:27 wrong-value", ""),
        ("health: {completion: 'true'}", "a.yaml:5:22 wrong-value", "true (without quotes)"),
        ("health: {completion: yes}", "a.yaml:5:22 yaml-boolean", ""),
        ("replicas: 0", "a.yaml:5:11 wrong-value", ""),
        ("replicas: 65", "a.yaml:5:11 wrong-value", ""),
        ("replicas: two", "a.yaml:5:11 wrong-value", ""),
        ("replicas: '2'", "a.yaml:5:11 wrong-value", "2 (without quotes)"),
        ("state: runing", "a.yaml:5:8 wrong-value", "running"),
        ("gpus: all", "a.yaml:5:7 wrong-value", ""),
        ("gpus: 0", "a.yaml:5:7 wrong-value", ""),
        ("gpus: [1, 1]", "a.yaml:5:7 wrong-value", ""),
        ("gpus: []", "a.yaml:5:7 wrong-value", ""),
        ("gpus: [-1]", "a.yaml:5:7 wrong-value", ""),
        ("gpus: true", "a.yaml:5:7 wrong-value", ""),
        ("revision: 123", "a.yaml:5:11 wrong-value", '"123" (in quotes)'),
        ("revision: 2024-01-01", "a.yaml:5:11 yaml-date", ""),
        ("hf_token: my token", "a.yaml:5:11 wrong-value", "my-token"),
        ("hf_token: lab", "a.yaml:5:11 unknown-token-source", ""),
        ("gpus: 2", "a.yaml:5:7 idle-gpus", ""),
        ("gpus: [0, 1, 2]\nargs: {tp: 2}", "a.yaml:5:7 idle-gpus", ""),
        ("needs: 5", "a.yaml:5:8 wrong-value", ""),
        ("needs: {tokens: 1}", "a.yaml:5:9 unknown-key", "kv_tokens"),
        ("needs: {kv_tokens: 0}", "a.yaml:5:20 wrong-value", ""),
        ("needs: {kv_tokens: 0k}", "a.yaml:5:20 wrong-value", ""),
        ("needs: {kv_tokens: 1.5K}", "a.yaml:5:20 wrong-value", ""),
        ("needs: {kv_tokens: 1.5}", "a.yaml:5:20 wrong-value", ""),
        ("needs: {kv_tokens: '8000'}", "a.yaml:5:20 wrong-value", "8000 (without quotes)"),
        ("needs: {concurrency: 0}", "a.yaml:5:22 wrong-value", ""),
        ("needs: {concurrency: 1e9}", "a.yaml:5:22 wrong-value", ""),
        ("needs: {concurrency: many}", "a.yaml:5:22 wrong-value", ""),
        ("needs: {concurrency: 0.9}", "a.yaml:5:22 needs-too-small", ""),
        ("needs: {kv_tokens: 8k}\nargs: {max-model-len: 8K}", "a.yaml:5:20 needs-too-small", ""),
        ("needs: {concurrency: 2}\nargs: {gpu_memory_utilization: 0.5}", "a.yaml:6:8 needs-only-checked", ""),
        ("needs: {concurrency: 2}\nargs: {kv-cache-memory-bytes: 9g}", "a.yaml:6:8 needs-overruled", ""),
        ("cordon: ''", "a.yaml:5:9 wrong-value", ""),
        ("cordon: 5", "a.yaml:5:9 wrong-value", '"5" (in quotes)'),
        ("cordon: yes", "a.yaml:5:9 yaml-boolean", ""),
        ('cordon: "a\\nb"', "a.yaml:5:9 control-character", ""),
        ("overrides: {gpu1: {cordon: {}}}", "a.yaml:5:28 wrong-value", ""),
        ("args: {ssl_keyfile: /k}", "a.yaml:5:8 argument-owned", ""),
        ("runtime: docker", "a.yaml:5:10 wrong-value", ""),
        ("rollout: {max_unavailable: 0}", "a.yaml:5:28 wrong-value", ""),
        ("rollout: {max_unavailable: 101%}", "a.yaml:5:28 wrong-value", ""),
        ("rollout: {order: gpu9}", "a.yaml:5:18 unknown-host", "gpu"),
        ("rollout: {order: [gpu, 'gpu9']}", "a.yaml:5:24 unknown-host", "gpu"),
        ("rollout: {order: []}\nhooks: {before_stop: []}", "a.yaml:6:22 wrong-value", ""),
        ("rollout: {canary: -1}", "a.yaml:5:19 wrong-value", ""),
        ("rollout: {pause: soon}", "a.yaml:5:18 wrong-value", ""),
        ("rollout: {max_failures: 10%}", "a.yaml:5:25 wrong-value", ""),
        ("hooks: {after_stop: x}", "a.yaml:5:9 unknown-key", "before_stop"),
        ("health: {soak: -1}", "a.yaml:5:16 wrong-value", ""),
        ("args: []", "a.yaml:5:7 wrong-value", ""),
        ("env: {A: 1.5}", "a.yaml:5:10 wrong-value", '"1.5" (in quotes)'),
        ("env: {A: true}", "a.yaml:5:10 wrong-value", '"true" (in quotes)'),
        ("env: {A-B: x}", "a.yaml:5:7 wrong-key", ""),
        ("env: {VMRECONCILE_SERVER: x}", "a.yaml:5:7 env-owned", ""),
        ("env: {HF_TOKEN: x}", "a.yaml:5:7 token-in-env", ""),
        ("env: {hugging_face_hub_token: x}", "a.yaml:5:7 token-in-env", ""),
        ("args: {max_model_length: 1}", "a.yaml:5:8 unknown-argument", "max_model_len"),
        ("args: {max_model_len.x: 1}", "a.yaml:5:8 argument-has-no-parts", ""),
        ("args: {max_model_len: long}", "a.yaml:5:23 argument-value", ""),
        ("args: {max_model_len: 1.5}", "a.yaml:5:23 argument-value", ""),
        ("args: {enforce_eager: 'true'}", "a.yaml:5:23 argument-value", ""),
        ("args: {gpu_memory_utilization: 1.01}", "a.yaml:5:32 argument-value", ""),
        ("args: {gpu_memory_utilization: 0}", "a.yaml:5:32 argument-value", ""),
        ("args: {tp: 0}", "a.yaml:5:12 argument-value", ""),
        ("args: {tp: 1, tensor-parallel-size: 1}", "a.yaml:5:15 argument-twice", ""),
        ("args: {compilation_config.modee: 3}", "a.yaml:5:8 argument-value", "mode"),
        ("args: {port: 80}", "a.yaml:5:8 argument-owned", ""),
        ("args: {--port: 80}", "a.yaml:5:8 argument-owned", ""),
        ("args: {model: m}", "a.yaml:5:8 argument-owned", ""),
        ("args: {revision: m}", "a.yaml:5:8 argument-owned", ""),
        ("args: {api-key: m}", "a.yaml:5:8 argument-owned", ""),
        ("args: {hf_token: m}", "a.yaml:5:8 argument-owned", ""),
        ("args: {config: m}", "a.yaml:5:8 argument-owned", ""),
        ("args: {uds: /x}", "a.yaml:5:8 argument-owned", ""),
        ("args: {host: '0.0.0.0:80'}", "a.yaml:5:14 argument-value", ""),
        ("gpus: 1\nargs: {tensor_parallel_size: 2}", "a.yaml:5:1 too-few-gpus", None),
        ("gpus: [0]\nenv: {CUDA_VISIBLE_DEVICES: '1'}", "a.yaml:6:7 env-owned", ""),
        ("gpus: 1\nenv: {CUDA_VISIBLE_DEVICES: '1'}", "a.yaml:6:7 env-owned", ""),
        ("env: {CUDA_VISIBLE_DEVICES: '1'}\noverrides: {gpu1: {gpus: [0]}}", "a.yaml:6:20 env-owned", ""),
        ("overrides: {gpu9: {}}", "a.yaml:5:13 unknown-host", "gpu"),
        ("overrides: {cpu: {}}", "a.yaml:5:13 override-without-effect", ""),
        ("overrides: {gpu1: {name: b}}", "a.yaml:5:20 unknown-key", ""),
        ("overrides: {gpu1: {rollout: {}}}", "a.yaml:5:20 unknown-key", ""),
        ("overrides: {gpu1: }", "a.yaml:5:19 wrong-value", ""),
        ("overrides: {gpu1: {args: {tpp: 1}}}", "a.yaml:5:27 unknown-argument", None),
        ("overrides: {gpu1: {env: {HF_TOKEN: x}}}", "a.yaml:5:26 token-in-env", ""),
        ("overrides: {'gpu[9]': {}}", "a.yaml:5:13 bad-pattern", ""),
        ('env: {A: "x\\0y"}', "a.yaml:5:10 control-character", ""),
        ('runtime: "sys\\ntemd"', "a.yaml:5:10 control-character", None),
    ],
)
def test_each_mistake_is_found_where_it_stands(
    tmp_path: Path, text: str, expected: str, suggestion: str | None
) -> None:
    """One mistake in an otherwise valid file: its place, its code, what was probably meant."""
    found = check(tmp_path, HEAD + text + "\n")
    assert expected in brief(found, tmp_path)
    assert len(found) == 1 or suggestion is None
    if suggestion is not None:
        assert found[0].suggestion == suggestion
    assert all(one.summary.endswith((".", "?")) for one in found)


@pytest.mark.parametrize(
    ("line", "expected", "suggestion"),
    [
        ("name: A b", "a.yaml:1:7 wrong-value", "a-b"),
        ('name: "a\\n"', "a.yaml:1:7 control-character", None),
        ("name: 7", "a.yaml:1:7 wrong-value", ""),
        ("model: ./m", "a.yaml:2:8 wrong-value", ""),
        ("model: --port", "a.yaml:2:8 wrong-value", ""),
        ("model: https://huggingface.co/org/m/tree/main", "a.yaml:2:8 wrong-value", "org/m"),
        ("hosts: gpus", "a.yaml:3:8 unknown-host", "gpu"),
        ("hosts: gpu:nothere", "a.yaml:3:8 unknown-host", None),
        ("hosts: zz*", "a.yaml:3:8 pattern-without-match", ""),
        ("hosts: spare", "a.yaml:3:8 no-hosts", ""),
        ("hosts: gpu:!gpu", "a.yaml:3:8 no-hosts", ""),
        ("hosts: ~(", "a.yaml:3:8 bad-pattern", ""),
        ("hosts: '@file'", "a.yaml:3:8 bad-pattern", ""),
        ("hosts: [gpu]", "a.yaml:3:8 wrong-value", ""),
        ("hosts: !gpu3", "a.yaml:3:8 yaml-tag", ""),
        ("port: 65536", "a.yaml:4:7 wrong-value", ""),
        ("port: '8001'", "a.yaml:4:7 wrong-value", "8001 (without quotes)"),
        ("port: 08001", "a.yaml:4:7 yaml-number", ""),
        ("port: 65535\nreplicas: 2", "a.yaml:4:7 port-range", ""),
    ],
)
def test_the_required_keys(tmp_path: Path, line: str, expected: str, suggestion: str | None) -> None:
    """One of the four keys that must be there is wrong."""
    key = line.partition(":")[0]
    lines = [line if old.startswith(key + ":") else old for old in HEAD.splitlines()]
    found = check(tmp_path, "\n".join(lines) + "\n")
    assert expected in brief(found, tmp_path)
    if suggestion is not None:
        assert [one.suggestion for one in found] == [suggestion]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """Every one that is missing is told, at the top of the file."""
    found = check(tmp_path, "state: running\n")
    assert [one.summary for one in found] == [f"{key} is missing." for key in ("hosts", "model", "name", "port")]


@pytest.mark.parametrize(
    "text",
    [
        "gpus: 8\nargs: {tp: 2, pipeline_parallel_size: 2, dp: 2}",
        "gpus: [0, 1]\nargs: {dp: 4, data_parallel_size_local: 2}",
        "gpus: 3\nargs: {tp: 4, distributed_executor_backend: ray}",
        "gpus: 3\nargs: {tp: 4, nnodes: 2}",
        "env: {CUDA_VISIBLE_DEVICES: '1'}",
        "gpus: 1\nenv: {CUDA_VISIBLE_DEVICES: null}",
        "needs: {kv_tokens: 200k}\nargs: {max_model_len: auto, gpu_memory_utilization: auto}",
        "needs: {kv_tokens: 8K, concurrency: 1}\nargs: {max_model_len: 8K}",
        "needs: {kv_tokens: 1k}\noverrides: {gpu: {needs: {kv_tokens: null}, args: {max_model_len: 4k}}}",
        "needs: {}\nargs: {gpu_memory_utilization: 0.5}",
        "cordon: waits for new weights\noverrides: {gpu1: {cordon: false}, gpu2: {cordon: null}}",
    ],
)
def test_gpus_needs_and_cordons_that_make_sense(tmp_path: Path, text: str) -> None:
    """Nothing is said of what is right, or cannot be known before the host is seen."""
    assert check(tmp_path, HEAD + text + "\n") == ()


@pytest.mark.parametrize(("given", "said"), [("[1, 1]", "[1, 1]"), ("[-1]", "[-1]"), ("[[0]]", "a list")])
def test_a_list_of_gpus_that_cannot_be_is_repeated(tmp_path: Path, given: str, said: str) -> None:
    """A list as such is right; what is wrong with this one can be seen."""
    (problem,) = check(tmp_path, f"name: a\nmodel: o/m\nhosts: gpu1\nport: 8001\ngpus: {given}\n")
    assert problem.summary == f"gpus cannot be {said}."


def test_gpus_are_compared_on_the_hosts_themselves(tmp_path: Path) -> None:
    """Overrides count where they hold, all of them together; what no host gets is no mistake."""
    text = HEAD + "gpus: 1\nargs: {tp: 2}\noverrides: {gpu: {gpus: 2}, gpu3: {args: {tp: 4}}}\n"
    found = check(tmp_path, text)
    assert brief(found, tmp_path) == ["a.yaml:7:43 too-few-gpus"]
    assert found[0].summary == "4 GPUs are needed, gpus gives 2."


def test_what_the_inventory_says_of_arguments_counts(tmp_path: Path) -> None:
    """Sizes and numbers of `vllm_args` lie under the model's; the warning names their place."""
    variables = "{vllm_args: {tensor-parallel-size: 2, gpu_memory_utilization: 0.9}}"
    inventory = f"all:\n  children:\n    gpu:\n      hosts: {{gpu1: , gpu2: }}\n      vars: {variables}\n"
    found = check(tmp_path, HEAD + "gpus: 1\nneeds: {concurrency: 2}\n", inventory)
    assert brief(found, tmp_path) == ["a.yaml:5:1 too-few-gpus", "a.yaml:6:9 needs-only-checked"]
    assert all(f"{tmp_path}/inventory.yml:5:14" in one.why for one in found)
    own = HEAD + "gpus: 1\nneeds: {concurrency: 2}\nargs: {tp: 1, gpu_memory_utilization: auto}\n"
    assert check(tmp_path, own, inventory) == ()


def test_warnings_refuse_nothing(tmp_path: Path) -> None:
    """Hosts come and go: a pattern without hosts is a warning, a name that nothing bears is an error."""
    found = check(
        tmp_path, {"a.yaml": HEAD.replace("hosts: gpu", "hosts: spare"), "b.yaml": HEAD.replace("name: a", "name: b")}
    )
    assert [(one.code, one.severity) for one in found] == [("no-hosts", Severity.WARNING)]


def test_two_models_on_one_port(tmp_path: Path) -> None:
    """Both places are named, once for the pair whatever the number of hosts."""
    found = check(tmp_path, {"a.yaml": HEAD, "b.yaml": HEAD.replace("name: a", "name: b")})
    assert brief(found, tmp_path) == ["b.yaml:4:7 port-taken"]
    assert found[0].summary == "Port 8001 on gpu1 and 2 more hosts is wanted by both a and b."
    assert f"{tmp_path}/models.d/a.yaml:4:7" in found[0].why


def test_replicas_running_into_the_next_model(tmp_path: Path) -> None:
    """Replica 2 of the one listens where the other begins."""
    other = HEAD.replace("name: a", "name: b").replace("8001", "8003").replace("gpu", "gpu2")
    found = check(tmp_path, {"a.yaml": HEAD + "replicas: 3\n", "b.yaml": other})
    assert brief(found, tmp_path) == ["b.yaml:4:7 port-taken"]
    assert found[0].summary == "Port 8003 on gpu2 is wanted by both a/2 and b."


def test_an_override_makes_and_avoids_clashes(tmp_path: Path) -> None:
    """Ports are compared after overrides; absent servers claim none, stopped ones do."""
    other = HEAD.replace("name: a", "name: b")
    apart = other.replace("8001", "8005") + "overrides: {gpu2: {port: 8001}}\n"
    found = check(tmp_path, {"a.yaml": HEAD, "b.yaml": apart})
    assert brief(found, tmp_path) == ["b.yaml:5:26 port-taken"]
    assert check(tmp_path, {"a.yaml": HEAD + "overrides: {gpu2: {state: absent}}\n", "b.yaml": apart}) == ()
    assert len(check(tmp_path, {"a.yaml": HEAD + "overrides: {gpu2: {state: stopped}}\n", "b.yaml": apart})) == 1


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """The name counts, not what the file is called."""
    found = check(tmp_path, {"a.yaml": HEAD, "b.yml": HEAD.replace("8001", "8002")})
    assert brief(found, tmp_path) == ["b.yml:1:7 name-taken"]


def test_everything_at_once(tmp_path: Path) -> None:
    """A file full of mistakes and one that is no YAML are reported together, in order."""
    bad = "name: a\nname: b\nmodel: x y\nhosts: gpux\nport: no\nargs: {portt: 1}\n"
    found = check(tmp_path, {"a.yaml": bad, "b.yaml": "name: [\n", "c.yaml": ""})
    assert brief(found, tmp_path) == [
        "a.yaml:2:1 duplicate-key",
        "a.yaml:3:8 wrong-value",
        "a.yaml:4:8 unknown-host",
        "a.yaml:5:7 yaml-boolean",
        "a.yaml:6:8 unknown-argument",
        "b.yaml:2:1 yaml-syntax",
        "c.yaml file-empty",
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"args: {{served_model_name: {TOKEN}}}",
        f"env: {{A: 'x {TOKEN}'}}",
        f"env: {{HF_TOKEN: {TOKEN}}}",
        f"hf_token: {TOKEN}",
        f"args: {{{TOKEN}: 1}}",
        f"{TOKEN}: 1",
        f"{TOKEN}: 1\n{TOKEN}: 2",
        f"overrides: {{{TOKEN}: {{env: {{{TOKEN}: 1}}}}}}",
        f"args: {{max_model_len: {TOKEN}}}",
        f"args: {{hf_token: {TOKEN}}}",
        f"args: {{api_key: {TOKEN}}}",
        f"runtime: {TOKEN}",
        f"state: *{TOKEN}",
        f"state: !{TOKEN} x",
        f"state: [{TOKEN}",
        f"state: {TOKEN}: {TOKEN}",
        f"revision: ['{TOKEN}']",
    ],
)
def test_a_token_is_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    """Wherever a token stands, there is an error, and no text of any diagnostic holds it."""
    found = check(tmp_path, HEAD + text + "\n")
    assert any(one.severity is Severity.ERROR for one in found)
    assert TOKEN not in repr(found)


def test_tokens_are_found_below_lists_and_in_variables(tmp_path: Path) -> None:
    """A token in a list of an argument, and one in the inventory's variables."""
    found = check(tmp_path, HEAD + f"args:\n  middleware: [x, {TOKEN}]\n")
    assert "a.yaml:6:19 token-in-file" in brief(found, tmp_path)
    inventory = f"all: {{hosts: {{gpu: {{vllm_env: {{A: {TOKEN}}}}}}}}}\n"
    found = check(tmp_path, HEAD, inventory)
    assert [one.code for one in found] == ["token-in-file"]
    assert TOKEN not in repr(found)


@pytest.mark.parametrize(
    ("variables", "codes"),
    [
        ("vllm_args: {max_model_lenn: 1}", ["unknown-argument"]),
        ("vllm_args: {port: 1}", ["argument-owned"]),
        ("vllm_args: 5", ["wrong-value"]),
        ("vllm_env: {HF_TOKEN: x}", ["token-in-env"]),
        ("vllm_env: {A: 1.5}", ["wrong-value"]),
        ("vllm_runtime: docker", ["wrong-value"]),
        ("vllm_arg: {}", ["unknown-variable"]),
        ("vllm_notes: {}", []),
        ("vllm_cordon: true", []),
        ("vllm_cordon: false", []),
        ("vllm_cordon: null", []),
        ("vllm_cordon: its memory is exchanged", []),
        ("vllm_cordon: 5", ["wrong-value"]),
        ("vllm_cordon: '{{ why }}'", ["variable-template"]),
        ("vllm_cordoned_gpus: [0, GPU-5fd4f2c1, MIG-GPU-5fd4f2c1/3/0]", []),
        ("vllm_cordoned_gpus: []", []),
        ("vllm_cordoned_gpus: null", []),
        ("vllm_cordoned_gpus: 3", ["wrong-value"]),
        ("vllm_cordoned_gpus: [-1]", ["wrong-value"]),
        ("vllm_cordoned_gpus: ['3']", ["wrong-value"]),
        ("vllm_cordoned_gpus: [3, 3]", ["wrong-value"]),
        ("vllm_cordoned_gpus: [H100]", ["wrong-value"]),
        ("vllm_executable: '{{ where }}/vllm'", ["variable-template"]),
        ("vllm_env: {A: '{{ b }}'}", ["variable-template"]),
        ("other: '{{ b }}'", []),
        ("ansible_port: ssh", ["variable-value"]),
        ("ansible_host: '{{ a }}'", ["variable-template"]),
    ],
)
def test_variables_of_the_inventory(tmp_path: Path, variables: str, codes: list[str]) -> None:
    """By the same rules as a model's keys, told once for all hosts of a group, with the variable's place."""
    inventory = f"all:\n  children:\n    gpu:\n      hosts: {{gpu1: , gpu2: }}\n      vars:\n        {variables}\n"
    found = check(tmp_path, HEAD, inventory)
    assert list(dict.fromkeys(one.code for one in found)) == codes
    assert all((one.place.file, one.place.line) == (str(tmp_path / "inventory.yml"), 6) for one in found)


def test_control_characters_never_reach_a_message(tmp_path: Path) -> None:
    """An escape sequence in a value or a key does not move anybody's cursor."""
    found = check(tmp_path, HEAD + 'state: "\\e[2J"\n"\\e[2J": 1\nenv: {"\\e": x}\nargs: {"\\e]0;x": 1, tp: "\\e"}\n')
    assert len(found) >= 4
    for one in found:
        assert all(text.isprintable() for text in (one.summary, one.why, one.remedy, one.suggestion))


def _read(folder: Path, text: bytes) -> tuple[tuple[Diagnostic, ...], Inventory]:
    (folder / "a.yaml").write_bytes(text)
    (folder / "inventory").mkdir(exist_ok=True)
    (folder / "inventory" / "hosts.yml").write_text(INVENTORY)
    inventory = read_inventory([str(folder / "inventory")], environ={})
    documents = load_models(folder)
    found = validate(documents, inventory, schemas=read_schemas(), catalogue=catalogue_for(None))
    if not any(one.severity is Severity.ERROR for one in found):
        resolve(documents, inventory, catalogue=catalogue_for(None))
    return found, inventory


FRAGMENTS = st.sampled_from(
    [*HEAD.splitlines(), "  tp: 2", "  - x", "overrides:", "  gpu1:", "    state: stopped", "\t", "? [a]", ": b",
     "&a", "*a", "<<: *a", "!!str x", "---", "...", "{", "}", "[", "]", "'", '"', "|", ">", "\0", "\ufeff", "%YAML 1.1"]
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(FRAGMENTS, max_size=12).map(lambda parts: "\n".join(parts).encode()),
        st.lists(FRAGMENTS, max_size=12).map(lambda parts: " ".join(parts).encode()),
    )
)
def test_no_text_makes_it_raise(text: bytes) -> None:
    """Whatever a file holds, there are diagnostics and no exception; what passes can be resolved."""
    with tempfile.TemporaryDirectory() as folder:
        _read(Path(folder), text)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from(["auto", "gpu", "gpu1", "running", "15m", "50%", "org/m", "/x", 2, 8001, "~(", "gpu[7]", "@x"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(
    st.one_of(
        st.sampled_from(sorted(catalogue_for(None).names)), st.text(max_size=6), st.just("compilation_config.mode")
    ),
    VALUES,
    max_size=4,
)
KEYS = [
    "name",
    "model",
    "hosts",
    "port",
    "replicas",
    "state",
    "gpus",
    "needs",
    "cordon",
    "revision",
    "env",
    "hf_token",
    "runtime",
    "health",
    "rollout",
]


def _keys() -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    _keys(), ARGUMENTS, st.dictionaries(st.sampled_from(["gpu1", "gpu", "~(", "", "all"]), _keys() | VALUES, max_size=2)
)
def test_no_content_makes_it_raise(
    keys: dict[str, object], args: dict[str, object], overrides: dict[str, object]
) -> None:
    """Values of any type under any key, in the model and in overrides."""
    content = {"name": "a", "model": "m", "hosts": "gpu", "port": 8001, "args": args, "overrides": overrides, **keys}
    with tempfile.TemporaryDirectory() as folder:
        _read(Path(folder), yaml.safe_dump(content, allow_unicode=True).encode())
        _read(Path(folder), json.dumps(content).encode())


def _fleet_files(folder: Path, models: int) -> tuple[Path, Path]:
    (folder / "m").mkdir(parents=True)
    lines = ["all:", "  vars: {vllm_args: {enforce_eager: true}}", "  children:"]
    for group in range(models // 8):
        lines += [
            f"    g{group}:",
            "      hosts:",
            *(f"        h{group * 8 + n}:" for n in range(8)),
        ]
    (folder / "hosts.yml").write_text("\n".join(lines))
    for number in range(models):
        (folder / "m" / f"{number}.yaml").write_text(
            f"name: m{number}\nmodel: org/m\nhosts: g{number // 8}\nport: {8001 + number % 8}\n"
            "args: {max_model_len: 8192, tensor_parallel_size: 2, gpu_memory_utilization: auto}\n"
            "env: {VLLM_LOGGING_LEVEL: INFO}\nhealth: {startup_timeout: 15m}\n"
            f"overrides: {{h{number // 8 * 8}: {{args: {{max_model_len: 4096}}}}}}\n"
        )
    return folder / "hosts.yml", folder / "m"


@pytest.mark.slow
def test_a_thousand_hosts_and_models_take_seconds_and_grow_linearly(tmp_path: Path) -> None:
    """1,000 hosts, 1,000 models, 8 servers a host: checked in 3 s of processor time; four times as much, linearly."""
    times = []
    for models in (1000, 4000):
        hosts, folder = _fleet_files(tmp_path / str(models), models)
        started = time.process_time()
        inventory = read_inventory([str(hosts)], environ={})
        documents = load_models(folder)
        assert validate(documents, inventory, schemas=read_schemas(), catalogue=catalogue_for(None)) == ()
        times.append(time.process_time() - started)
        assert len(resolve(documents, inventory, catalogue=catalogue_for(None)).servers) == 8 * models
    assert times[0] < 3
    assert times[1] < 8 * times[0]


def test_patterns_are_worked_out_once(tmp_path: Path) -> None:
    """The placement of a pattern is remembered by its text, and a broken one means no host."""
    fleet(tmp_path, HEAD)
    placement = Placement(read_inventory([str(tmp_path / "inventory.yml")], environ={}))
    assert placement.hosts("gpu") == ("gpu1", "gpu2", "gpu3")
    assert placement.hosts("gpu") is placement.hosts("gpu")
    assert placement.hosts("~(") == placement.hosts(None) == ()


def test_a_host_is_named_by_its_name_whatever_is_in_it(tmp_path: Path) -> None:
    """A blank parts words of a pattern, but not where the whole is a host's name: `stop NAME@HOST` writes it so."""
    (tmp_path / "inventory.yml").write_text("all: {hosts: {'gpu 1': , gpu: , other: }}\n", encoding="utf-8")
    placement = Placement(read_inventory([str(tmp_path / "inventory.yml")], environ={}))
    assert placement.hosts("gpu 1") == ("gpu 1",)
    assert placement.problems("gpu 1") == ()
    assert placement.hosts("gpu other") == ("gpu", "other")
