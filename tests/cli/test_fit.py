"""fit: what it says of folders, models of the Hub and desired servers, as text and as JSON, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.lab.desk import Desk
from tests.lab.hub import Hub, Repository
from vmreconcile.cli.main import main

MODELS = json.loads((Path(__file__).resolve().parents[1] / "vllm/runs/models.json").read_text())["models"]
CONTRACT = {
    *("weights_bytes", "activation_bytes", "overhead_bytes", "graph_bytes", "kv_bytes", "kv_tokens"),
    *("max_concurrency", "fits", "verdict", "suggestion", "uncertainty_bytes"),
}
H100 = ("--gpu-memory", "H100", "--vllm-version", "0.22.1")
GIB = 1 << 30


def put(desk: Desk, name: str, **changes: object) -> str:
    """A folder with the config.json of a recorded model."""
    desk.write(f"{name}/config.json", json.dumps({**MODELS[name], **changes}))
    return f"./{name}"


def put_on_host(desk: Desk, name: str = "qwen2.5-7b", host: str = "gpu1") -> None:
    """The config.json of a recorded model at a path of a host, where the desired server looks for it."""
    desk.change("model: org/qwen", "model: /models/qwen")
    desk.hosts[host].checkpoints["/models/qwen"] = {"config": MODELS[name]}


def test_a_model_that_fits(desk: Desk) -> None:
    """Every term, and exit 0."""
    said = desk("fit", put(desk, "qwen2.5-7b"), *H100, "--gpu-memory-utilization", "0.8", "--enforce-eager")
    assert said.code == 0, said
    first, *rest = said.out.splitlines()
    assert first == "./qwen2.5-7b on NVIDIA H100 80GB HBM3, vLLM 0.22.1: fits"
    assert [line.split("  ")[1] for line in rest] == [
        *("GPU memory", "requested", "weights", "activations", "overhead", "CUDA graphs", "KV cache"),
    ]
    assert "873,568 tokens, 26.66 requests of 32,768 tokens" in said.out


def test_the_classic_failure_and_what_mends_it(desk: Desk) -> None:
    """Exit 1, the utilization that would do; with that it fits."""
    folder = put(desk, "qwen2.5-7b")
    said = desk("fit", folder, *H100, "--gpu-memory-utilization", "0.2", "--enforce-eager")
    assert said.code == 1
    assert "no memory is left for the KV cache" in said.out
    assert "  mend  gpu_memory_utilization: 0.24\n" in said.out
    assert desk("fit", folder, *H100, "--gpu-memory-utilization", "0.24", "--enforce-eager").code == 0


def test_json_has_the_contracts_keys(desk: Desk) -> None:
    """For each verdict; nothing else is printed."""
    folder = put(desk, "qwen2.5-7b")
    large = put(desk, "qwen2.5-72b")
    for words, verdict, code in (
        ((folder,), "ok", 0),
        ((folder, "--gpu-memory-utilization", "0.2"), "no_kv_memory", 1),
        ((folder, "--gpu-memory-utilization", "0.23", "--enforce-eager"), "kv_too_small", 1),
        ((large,), "weights_too_large", 1),
        ((large, "--tensor-parallel-size", "4"), "ok", 0),
    ):
        said = desk("fit", *words, *H100, "--json")
        assert (said.code, said.json["verdict"], said.json["fits"]) == (code, verdict, code == 0)
        assert set(said.json) >= CONTRACT
        assert set(said.json["suggestion"]) == {"gpu_memory_utilization", "max_model_len"}
        total = sum(said.json[f"{name}_bytes"] for name in ("weights", "activation", "overhead", "graph", "kv"))
        assert total == said.json["requested_bytes"]


def test_suggestions_are_null_where_nothing_needs_help(desk: Desk) -> None:
    """And numbers where it does."""
    folder = put(desk, "llama-3.1-8b")
    nothing = {"gpu_memory_utilization": None, "max_model_len": None}
    assert desk("fit", folder, *H100, "--json").json["suggestion"] == nothing
    some = desk("fit", folder, *H100, "--gpu-memory-utilization", "0.3", "--enforce-eager", "--json").json["suggestion"]
    assert some == {"gpu_memory_utilization": 0.42, "max_model_len": pytest.approx(54352, rel=0.02)}


def test_every_option_counts(desk: Desk) -> None:
    """Each changes the answer the way it should."""
    folder = put(desk, "llama-3.1-8b")

    def tokens(*words: str) -> int:
        return int(desk("fit", folder, *H100, "--json", *words).json["kv_tokens"])

    plain = tokens()
    assert tokens("--enforce-eager") > plain
    assert tokens("--kv-cache-dtype", "fp8") == pytest.approx(2 * plain, rel=0.001)
    assert tokens("--max-num-seqs", "16") > plain
    assert tokens("--max-num-batched-tokens", "65536") < plain
    assert tokens("--gpu-memory-utilization", "0.5") < plain
    assert desk("fit", folder, *H100, "--json", "--max-model-len", "1024").json["max_concurrency"] > plain / 1100


def test_a_model_that_nobody_knows_is_unknown(desk: Desk) -> None:
    """No false figure: nulls, the reason, exit 1."""
    desk.write("odd/config.json", '{"model_type": "rwkv", "hidden_size": 512}')
    said = desk("fit", "./odd", *H100, "--json")
    assert (said.code, said.json["verdict"], said.json["fits"], said.json["kv_bytes"]) == (1, "unknown", None, None)
    assert set(said.json) >= CONTRACT
    assert "num_attention_heads" in said.json["notes"][0]
    assert "unknown" in desk("fit", "./odd", *H100).out


def test_a_bracket_with_two_answers_is_unknown(desk: Desk) -> None:
    """And says why the model may be predicted wrong."""
    folder = put(desk, "llama-3.1-8b", model_type="hybrid", mamba_d_state=128)
    said = desk("fit", folder, *H100, "--gpu-memory-utilization", "0.45")
    assert said.code == 1
    assert "may be predicted wrong: it has mamba_d_state" in said.out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("./nothing", *H100), 5, "nothing is no folder"),
        (("./" + "x" * 300, *H100), 5, "is no folder"),
        (("~nobody-here/m", *H100), 5, "is no folder"),
        (("org/" + "x" * 300, *H100), 1, "HF_HUB_OFFLINE"),
        (("./m", "--gpu-memory", "h10"), 64, "did you mean 'h100'"),
        (("./m", "--gpu-memory", "80"), 64, "80 is no GPU's memory"),
        (("./m", *H100, "--tensor-parallel-size", "3"), 5, "28 attention heads cannot be split over 3 GPUs"),
        (("./m", *H100, "--max-model-len", "999999"), 5, "longer than the model's, 32768"),
        (("./m", *H100, "--gpu-memory-utilization", "1.5"), 64, "not a number above 0 and up to 1"),
        (("./m", "--gpu-memory", "H100", "--vllm-version", "new"), 64, "new is no version"),
        (("org/absent", *H100), 1, "HF_HUB_OFFLINE"),
        (("qwen@gpu7", *H100), 64, "did you mean 'qwen@gpu"),
    ],
)
def test_wrong_input_is_told_with_a_remedy(desk: Desk, words: tuple[str, ...], code: int, told: str) -> None:
    """What is wrong, and the way out; never a traceback."""
    shutil.copytree(put(desk, "qwen2.5-7b"), "m")
    said = desk("fit", *words)
    assert said.code == code, said
    assert told in said.err
    assert "fault of vmreconcile" not in said.err


def test_without_a_gpu_it_asks_for_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes this machine's own where there is one."""
    folder = put(desk, "qwen2.5-7b")
    monkeypatch.setenv("PATH", str(desk.folder / "bin"))
    assert "give one, as in --gpu-memory H100" in desk("fit", folder).err
    gpus = ("NVIDIA H100 80GB HBM3, 81559, Disabled", "NVIDIA L4, 23034, [N/A]", "lost, [GPU is lost], [N/A]")
    desk.write("bin/nvidia-smi", "#!/bin/sh\n" + "".join(f"echo '{gpu}'\n" for gpu in gpus))
    (desk.folder / "bin/nvidia-smi").chmod(0o755)
    assert desk("fit", folder, "--json").json["gpu"] == "NVIDIA L4"


@pytest.mark.parametrize(
    ("answers", "gpu"),
    [
        ("echo 'NVIDIA H100 80GB HBM3, 81559, Enabled'; echo 'NVIDIA H200, 143771, Disabled'", "NVIDIA H200"),
        ("case $1 in *mig*) echo 'not a valid field'; exit 2;; *) echo 'NVIDIA L4, 23034';; esac", "NVIDIA L4"),
    ],
    ids=["one is split", "an old nvidia-smi"],
)
def test_this_machines_own_gpu(desk: Desk, monkeypatch: pytest.MonkeyPatch, answers: str, gpu: str) -> None:
    """No program gets the whole of a split one; an old driver knows of no splitting."""
    monkeypatch.setenv("PATH", f"{desk.folder}/bin:/usr/bin:/bin")
    desk.write("bin/nvidia-smi", f"#!/bin/sh\n{answers}\n")
    (desk.folder / "bin/nvidia-smi").chmod(0o755)
    assert desk("fit", put(desk, "qwen2.5-7b"), "--json").json["gpu"] == gpu


def test_a_desired_server_with_its_settings(desk: Desk) -> None:
    """Its utilization and length, and options over them; where the GPU is given, its host is asked for files alone."""
    put_on_host(desk)
    said = desk("fit", "qwen@gpu1", *H100, "--json")
    assert said.code == 0, said
    assert [request["do"] for request in desk.hosts["gpu1"].requests] == ["checkpoint"]
    assert said.json["settings"]["gpu_memory_utilization"] == 0.5
    assert said.json["settings"]["max_model_len"] == 4096
    over = desk("fit", "qwen@gpu1", *H100, "--json", "--gpu-memory-utilization", "0.2")
    assert over.json["verdict"] == "no_kv_memory"


def test_a_path_of_a_desired_server_is_its_hosts(desk: Desk) -> None:
    """Whatever is at that path here; without files there, or without the host, it is told."""
    folder = Path(put(desk, "qwen2.5-7b")).resolve()
    desk.change("model: org/qwen", f"model: {folder}")
    missing = desk("fit", "qwen@gpu1", *H100)
    assert (missing.code, f"gpu1 has no config.json in {folder}" in missing.err) == (1, True)
    desk.hosts["gpu1"].checkpoints[str(folder)] = {"config": MODELS["llama-3.1-8b"]}
    said = desk("fit", "qwen@gpu1", *H100, "--json").json
    assert (said["architecture"], said["source"]) == ("LlamaForCausalLM", f"gpu1:{folder}")
    desk.hosts["gpu2"].unreachable = "no route to host"
    away = desk("fit", "qwen@gpu2", *H100)
    assert (away.code, "gpu2: no route to host" in away.err) == (3, True)
    assert desk("fit", str(folder), *H100, "--json").json["architecture"] == "Qwen2ForCausalLM"


def test_a_model_that_only_the_host_has(desk: Desk) -> None:
    """In its cache, config and tensors: used for the server, and what it is worked out from is said."""
    tensors = [["model.embed_tokens.weight", "BF16", [152064, 3584]]]
    desk.hosts["gpu1"].checkpoints["org/qwen"] = {"config": MODELS["qwen2.5-7b"], "tensors": tensors}
    said = desk("fit", "qwen@gpu1", *H100, "--json").json
    assert (said["weights_from"], said["source"]) == ("files", "org/qwen in the cache of gpu1")
    assert said["weights_bytes"] < 2 * GIB
    nothing = desk("fit", "qwen@gpu2", *H100)
    assert (nothing.code, "nor in that of gpu2" in nothing.err) == (1, True)


def test_a_token_that_is_not_to_be_had_hinders_nothing(desk: Desk) -> None:
    """The source is told; nobody is asked for anything, and a model at hand is predicted."""
    put_on_host(desk)
    desk.write("group_vars/all.yml", "vllm_token_sources: {vault: {command: [sh, -c, exit 7]}}\nvllm_hf_token: vault\n")
    said = desk("fit", "qwen@gpu1", *H100, "--json")
    assert (said.code, said.json["verdict"]) == (0, "ok"), said
    assert "note: token source 'vault' (command sh): exit status 7" in said.err


def test_a_desired_server_on_its_hosts_gpu(desk: Desk) -> None:
    """The look tells the GPU's memory and vLLM's version; without one it says so; exit 3 where it is out of reach."""
    put_on_host(desk)
    assert "no NVIDIA driver" in desk("fit", "qwen@gpu1").err
    desk.hosts["gpu1"].gpus |= {"problem": None, "devices": [device("NVIDIA H100 80GB HBM3", 85520809984)]}
    said = desk("fit", "qwen@gpu1", "--json")
    assert said.code == 0, said
    assert (said.json["gpu"], said.json["vllm_version"]) == ("NVIDIA H100 80GB HBM3", "0.32.0")
    assert said.json["gpu_memory_bytes"] / GIB == pytest.approx(79.18, abs=0.01)
    desk.change("port: 8001", "port: 8001\ngpus: [3]")
    assert "it has no GPU 3" in desk("fit", "qwen@gpu1").err
    desk.hosts["gpu2"].unreachable = "no route to host"
    away = desk("fit", "qwen@gpu2")
    assert (away.code, "no route to host" in away.err) == (3, True)


def device(name: str, total: int) -> dict[str, object]:
    """One GPU as the agent tells it."""
    memory = {"memory_total": total, "memory_used": 0, "memory_free": total}
    return {"index": 0, "uuid": "GPU-1", "name": name, **memory, "processes": []}


def test_a_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found there, then in the cache; one that is not there is told in the words of `auth check`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as hub:
        for name, value in hub.environ().items():
            monkeypatch.setenv(name, value)
        hub.repositories["acme/llama"] = Repository(files={"config.json": json.dumps(MODELS["llama-3.1-8b"]).encode()})
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read when it was imported
        assert main(["fit", "acme/llama", *H100, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["source"] == f"{hub.url}/acme/llama"
        assert main(["fit", "acme/none", *H100]) == 1
        assert "has no model acme/none" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["fit", "acme/llama", *H100, "--json"]) == 0
    assert "models--acme--llama" in json.loads(capsys.readouterr().out)["source"]
