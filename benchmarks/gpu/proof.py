#!/usr/bin/env python3
"""The whole of it on a real GPU of this machine: seen, placed, mended, measured, and freed after a kill -9.

    benchmarks/gpu/proof.py REPORT.md [--vllm PATH] [--site FOLDER] [--work FOLDER] [--wait S]

Runs `vmreconcile` itself against this machine (ansible_connection: local, runtime process) with the vLLM at PATH
(default: on PATH), or with one that lies unpacked in FOLDER and works with this interpreter (`--site`). Weights are
dummies: their sizes are real, nothing is fetched. Refuses to begin where a GPU is in use; takes down what it started,
however it ends. REPORT.md is what docs/gpus.md shows. Exit status 1 where something did not happen as it should.

Steps: 1 the GPUs as the agent sees them, beside nvidia-smi; 2 two servers share the first GPU by numbers that the tool
chose; 3 a start fails for memory, because of adapters that no prediction counts, and is mended; 4 predicted beside
measured; 5 kill -9 of a root leaves its engine with the memory; apply ends that, sees the memory freed, starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "gpu")]

from measure import refuse_if_busy, used  # noqa: E402 - the path comes first

from tests.lab.tiny_model import write_tokenizer  # noqa: E402

GIB = 1 << 30
PORTS = {"small": 18431, "large": 18432, "adapters": 18433}
COMMON = "load_format: dummy, max_model_len: 4096, enforce_eager: true, max_num_seqs: 64, max_num_batched_tokens: 2048"
ADAPTERS = "enable_lora: true, max_loras: 8, max_lora_rank: 256, max_cpu_loras: 8"
FREED_S = 60.0


class ProofError(Exception):
    """Something is not as it should be; the message says what."""


@dataclass(slots=True)
class Proof:
    """A folder with inventory and models, the command in it, and the report so far."""

    folder: Path
    executable: str
    environ: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """An inventory of this machine and the folders of three models."""
        models = json.loads((ROOT / "tests/vllm/runs/models.json").read_text())["models"]
        (self.folder / "inventory").mkdir(parents=True)
        (self.folder / "models.d").mkdir()
        for name, config in (("small", "qwen2.5-0.5b"), ("large", "qwen2.5-7b")):
            checkpoint = self.folder / "checkpoints" / name
            checkpoint.mkdir(parents=True)
            (checkpoint / "config.json").write_text(json.dumps(models[config]))
            write_tokenizer(checkpoint)
        variables = f"vllm_executable: {self.executable}, vllm_state_dir: {self.folder}/host, vllm_runtime: process"
        host = f"all:\n  hosts:\n    here: {{ansible_connection: local, {variables}}}\n"
        (self.folder / "inventory" / "hosts.yml").write_text(host)

    def want(self, name: str, checkpoint: str, more: str = "", needs: str = "", state: str = "running") -> None:
        """Write a model's file."""
        variables = "".join(f"  {key}: '{value}'\n" for key, value in sorted(self.environ.items()))
        (self.folder / "models.d" / f"{name}.yaml").write_text(
            f"name: {name}\nmodel: {self.folder}/checkpoints/{checkpoint}\nhosts: here\nport: {PORTS[name]}\n"
            f"hf_token: null\nstate: {state}\nargs: {{{', '.join(part for part in (COMMON, more) if part)}}}\n"
            f"{f'needs: {needs}' if needs else ''}\nhealth: {{startup_timeout: 10m}}\n"
            f"env:\n{variables}  HF_HUB_OFFLINE: '1'\n"
        )

    def run(self, *words: str, good: tuple[int, ...] = (0,)) -> str:
        """Run `vmreconcile WORDS…`, note it with what it printed, and give that back."""
        command = [sys.executable, "-m", "vmreconcile", *words]
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "NO_COLOR": "1"}
        begun = time.monotonic()
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begun
        if "--json" not in words:
            shown = self.plain(done.stdout + done.stderr)
            self.lines += ["```", f"$ vmreconcile {' '.join(words)}", shown.rstrip(), f"# {seconds:.1f} s", "```"]
        if done.returncode not in good:
            raise ProofError(f"vmreconcile {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def quietly(self, *words: str) -> str:
        """Run a command without noting it."""
        noted = list(self.lines)
        try:
            return self.run(*words)
        finally:
            self.lines[:] = noted

    def plain(self, text: str) -> str:
        """Without the folder of this run, and without the lines that tell of waiting."""
        lines = [line for line in text.replace(str(self.folder), "/proof").splitlines() if " waits " not in line]
        return "\n".join(lines)

    def document(self, *words: str) -> Any:  # noqa: ANN401 - JSON
        """What a command says with --json."""
        return json.loads(self.run(*words, "--json"))

    def says(self, text: str) -> None:
        """A line of the report."""
        self.lines += ["", text, ""]


def main() -> int:
    """Prove it, or say what failed."""
    options = read_options()
    refuse_if_busy()
    folder = Path(options.work or tempfile.mkdtemp(prefix="proof-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    executable, environ = vllm_of(options, folder)
    proof = Proof(folder=folder, executable=executable, environ=environ)
    failed = ""
    try:
        proof.prepare()
        for step in (seen, placed, mended, compared, freed):
            step(proof)
    except ProofError as error:
        failed = str(error)
        proof.says(f"**Failed**: {failed}")
    finally:
        take_down(proof)
        options.report.write_text("\n".join(proof.lines) + "\n", encoding="utf-8")
        if not options.work:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(proof.lines))
    if failed:
        print(f"proof.py: {failed}", file=sys.stderr)
    return 1 if failed else 0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--vllm", default=shutil.which("vllm") or "", help="the executable")
    parser.add_argument("--site", type=Path, help="a folder of unpacked packages with vLLM among them")
    parser.add_argument("--work", help="a folder for everything (default: a new one, removed afterwards)")
    return parser.parse_args()


def vllm_of(options: argparse.Namespace, folder: Path) -> tuple[str, dict[str, str]]:
    """The executable, and what its environment needs.

    Raises:
        SystemExit: there is none.
    """
    environ = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1"}
    environ |= {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
    if options.site:
        prefix = folder / "vllm"
        library = prefix / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
        library.mkdir(parents=True)
        for about in options.site.glob("vllm-*.dist-info"):
            (library / about.name).symlink_to(about)
        program = prefix / "bin" / "vllm"
        program.parent.mkdir()
        code = (
            "import sys\nfrom vllm.entrypoints.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
        )
        program.write_text(f"#!{sys.executable}\n{code}")
        program.chmod(0o755)
        return str(program), environ | {"PYTHONPATH": str(options.site.resolve())}
    if not options.vllm:
        raise SystemExit("proof.py: no vllm on PATH; name one with --vllm or --site")
    return str(Path(options.vllm).resolve()), environ


def seen(proof: Proof) -> None:
    """1: the GPUs as the agent sees them."""
    proof.says("## 1. The GPUs as they are")
    rows = [row for row in proof.document("doctor", "here")["checks"] if row["check"].startswith("gpu")]
    fields = "index,uuid,name,memory.total,memory.used,driver_version,compute_mode"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    proof.lines += ["```", *(f"doctor      {row['summary']}" for row in rows), f"nvidia-smi  {told}", "```"]
    if not rows:
        raise ProofError("doctor says nothing of a GPU")


def placed(proof: Proof) -> None:
    """2: two servers on the first GPU."""
    proof.says("## 2. Two servers share a GPU")
    proof.want("small", "small", needs="{kv_tokens: 100000}")
    proof.want("large", "large")
    proof.run("plan")
    one, other = proof.document("plan"), proof.document("plan")
    if any(one[part] != other[part] for part in ("changes", "placements")):
        raise ProofError("two plans of one fleet differ")
    proof.run("apply", "-y")
    proof.run("plan")
    rows = {row["server"]: row for row in proof.document("plan")["placements"]}
    shares = {name: row["settings"].get("gpu_memory_utilization") for name, row in rows.items()}
    devices = {device for row in rows.values() for device in row["devices"]}
    proof.says(f"Both on {', '.join(sorted(devices))}, with {shares}.")
    summary = proof.document("plan")["summary"]
    if summary["noop"] != 2:
        raise ProofError(f"after apply there is still something to do: {summary}")


def mended(proof: Proof) -> None:
    """3: a start that fails for memory."""
    proof.says("## 3. A start that fails for memory is mended")
    proof.want("small", "small", state="stopped")
    proof.want("large", "large", state="stopped")
    proof.want("adapters", "large", more=ADAPTERS, needs="{kv_tokens: 20000}")
    proof.run("plan")
    proof.run("apply", "-y")
    phases = {row["server"]: row["phase"] for row in proof.document("status")["servers"]}
    if phases["adapters@here"] != "ready":
        raise ProofError(f"the server with adapters is not ready: {phases}")
    log = proof.quietly("logs", "adapters@here", "-n", "2000")
    telling = ("Available KV cache memory", "No available memory for the cache blocks", "KV cache is needed")
    failures = [line for line in log.splitlines() if any(words in line for words in telling)]
    proof.lines += ["", "Its log over both starts:", "```", *map(proof.plain, failures), "```"]
    if len([line for line in failures if telling[0] in line]) < 2:
        raise ProofError("its log shows no start that failed before the one that was ready")
    if proof.document("plan")["summary"]["noop"] != 3:
        raise ProofError("the mended server is not left alone by the next plan")


def compared(proof: Proof) -> None:
    """4: predicted beside measured."""
    proof.says("## 4. Predicted beside measured")
    proof.want("adapters", "large", more=ADAPTERS, state="absent")
    proof.want("large", "large")
    proof.run("apply", "-y")
    rows = {row["server"]: row["memory"] for row in proof.document("status")["servers"]}
    memory = rows["large@here"]
    if not memory or not memory["measured"] or not memory["predicted"]:
        raise ProofError(f"status has nothing measured and predicted: {memory}")
    for name, measured in memory["measured"].items():
        predicted = memory["predicted"].get(name)
        if measured and predicted:
            off = (predicted - measured) / measured * 100
            proof.lines.append(f"- {name}: predicted {predicted:,}, measured {measured:,} ({off:+.2f} %)")


def freed(proof: Proof) -> None:
    """5: what a kill -9 leaves behind."""
    proof.says("## 5. What a kill -9 leaves is ended, and its memory seen freed")
    rows = {row["server"]: row for row in proof.document("status")["servers"]}
    pid = rows["large@here"]["pid"]
    os.kill(pid, signal.SIGKILL)  # the root of a server that this program started
    time.sleep(2.0)
    left = sum(used()) / GIB
    orphans = proof.document("status")["orphans"]
    proof.says(f"Root {pid} killed: {left:.1f} GiB still held, by {json.dumps(orphans)}.")
    if not orphans or left < 1:
        raise ProofError("no orphan holds memory after the kill")
    proof.run("status")
    proof.run("apply", "-y")
    proof.want("large", "large", state="absent")
    proof.run("apply", "-y")
    deadline = time.monotonic() + FREED_S
    while sum(used()) > GIB and time.monotonic() < deadline:
        time.sleep(0.5)
    proof.says(f"After the server was removed: {sum(used()) / GIB:.2f} GiB held on all GPUs.")
    if sum(used()) > GIB:
        raise ProofError("memory is still held after everything was removed")


def take_down(proof: Proof) -> None:
    """Remove what was started here, whatever happened."""
    for path in (proof.folder / "models.d").glob("*.yaml"):
        text = path.read_text()
        path.write_text(text.replace("state: running", "state: absent").replace("state: stopped", "state: absent"))
    try:
        proof.run("apply", "-y", "--json", good=(0, 1))
    except ProofError as error:
        print(f"proof.py: taking down failed: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
