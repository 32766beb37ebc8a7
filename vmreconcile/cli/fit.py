"""fit: would this model fit on this GPU, and why; every term of the answer."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmreconcile.cli.output import inputs_of, print_json, reach_of, say_notes
from vmreconcile.cli.terminal import Style, printable, style_for
from vmreconcile.core.fitting import Fit, Unpredicted, fit_json, notes_of
from vmreconcile.core.selection import similar
from vmreconcile.effects.checkpoint import local_folder
from vmreconcile.effects.token import find_token
from vmreconcile.errors import UsageError
from vmreconcile.flows.fitting import Changes, Wanted, fit_server, given_gpu, local_gpu
from vmreconcile.flows.fitting import fit as fit_model
from vmreconcile.flows.prepare import prepared
from vmreconcile.model.tokens import DEFAULT_SOURCE, Need
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.predict import Prediction, Verdict

if TYPE_CHECKING:
    import argparse

GIB = 1 << 30
ARGUMENTS = (
    *("tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "kv_cache_dtype", "max_num_seqs"),
    *("max_num_batched_tokens", "enforce_eager"),
)
"""Options of the command that are arguments of vLLM."""

WORDS = {
    Verdict.OK: "fits",
    Verdict.NO_KV_MEMORY: "does not fit: no memory is left for the KV cache",
    Verdict.KV_TOO_SMALL: "does not fit: the KV cache is too small for one request of the longest context",
    Verdict.WEIGHTS_TOO_LARGE: "does not fit: the weights are too large for the GPU",
    Verdict.UNKNOWN: "unknown: this model may be predicted wrong, and the answer hangs on it",
}


def fit(arguments: argparse.Namespace) -> int:
    """Predict and print; 0 where it fits, 1 where it does not or nobody can say."""
    version = arguments.vllm_version or ""
    if version and not re.match(r"v?\d+\.\d+", version):
        raise UsageError(f"--vllm-version: {version} is no version", remedy="give one such as 0.22.1")
    said = {name: getattr(arguments, name) for name in ARGUMENTS}
    settings: dict[str, JsonValue] = {name: value for name, value in said.items() if value not in (None, False)}
    gpu = given_gpu(arguments.gpu_memory) if arguments.gpu_memory else None
    folder = local_folder(arguments.model)
    if "@" in arguments.model and folder is None:
        found = _server(arguments, Changes(arguments=settings, gpu=gpu, version=version))
    else:
        environ, home = dict(os.environ), Path.home()
        token = None if folder else find_token(environ, home)
        wanted = Wanted(
            model=arguments.model,
            arguments=settings,
            environ=environ,
            home=home,
            version=version,
            source=DEFAULT_SOURCE if token else "",
            token=token.secret if token else None,
        )
        found = fit_model(wanted, gpu or local_gpu())
    if arguments.json:
        print_json(fit_json(found))
    else:
        print(fit_text(found, style_for(sys.stdout, no_color=arguments.no_color)))
    return 0 if found.fits else 1


def _server(arguments: argparse.Namespace, changes: Changes) -> Fit:
    """A desired server by its name."""
    inputs = inputs_of(arguments)
    name = arguments.model
    server = next((each for each in inputs.desired.servers if str(each.id) == name), None)
    if server is None:
        near = similar(name, inputs.desired)
        raise UsageError(f"no server is called {name!r}{near}", remedy="vmreconcile status lists the servers")
    need = Need.COMPARED if server.token else Need.NONE  # the cache, or an open model, needs no token either
    with prepared(inputs, reach_of(arguments, (server.id.host,), need)) as ready:
        say_notes(ready)
        (server,) = (each for each in ready.inputs.desired.servers if each.id == server.id)
        return fit_server(server, ready, changes)


def fit_text(found: Fit, style: Style) -> str:
    """The verdict, the terms, what to change."""
    color = {True: "green", False: "red", None: "yellow"}[found.fits]
    where = found.gpu or f"a GPU of {found.gpu_memory / GIB:.2f} GiB"
    head = f"{printable(found.model)} on {printable(where)}, vLLM {printable(found.vllm_version)}: "
    if isinstance(found.answer, Unpredicted):
        lines = [head + style.paint("unknown", color), f"  note  {printable(found.answer.reason)}"]
        if found.answer.weights is not None:
            lines.append(f"  {'weights':<14}{found.answer.weights / GIB:>9.2f} GiB  in all, as they are stored")
        return "\n".join(lines)
    lines = [head + style.paint(WORDS[found.answer.verdict], color), *_terms(found, found.answer)]
    lines += [f"  mend  {text}" for text in _mend(found.answer)]
    return "\n".join([*lines, *(f"  note  {printable(note)}" for note in notes_of(found.answer))])


def _terms(found: Fit, answer: Prediction) -> list[str]:
    serving, terms = answer.planned.serving, answer.terms
    split = (
        f", one of {serving.tensor_parallel * serving.pipeline_parallel} GPUs" if serving.tensor_parallel > 1 else ""
    )
    full = answer.concurrency >= 1
    held = f"{answer.tokens:,} tokens, {answer.concurrency:.2f} requests of {serving.max_model_len:,} tokens"
    short = f"{answer.needed / GIB:.2f} GiB are needed for one request of {serving.max_model_len:,} tokens"
    rows = (
        ("GPU memory", found.gpu_memory, "as CUDA gives it"),
        ("requested", serving.requested, f"gpu_memory_utilization {serving.utilization:g}"),
        ("weights", -terms.weights, ("from its files" if answer.from_files else "from config.json") + split),
        (
            "activations",
            -terms.activation,
            f"{serving.max_num_batched_tokens} tokens and {serving.max_num_seqs} requests at once",
        ),
        ("overhead", -terms.overhead, "kernels, driver" + (", communication" if serving.tensor_parallel > 1 else "")),
        ("CUDA graphs", -terms.graphs, "none: enforce_eager" if serving.eager else ""),
        ("KV cache", answer.kv_bytes, f"± {answer.uncertainty / GIB:.2f}; {held if full else short}"),
    )
    return [f"  {name:<14}{size / GIB:>9.2f} GiB  {text}".rstrip() for name, size, text in rows]


def _mend(answer: Prediction) -> list[str]:
    """What would make it fit, each alone."""
    if answer.verdict in {Verdict.OK, Verdict.UNKNOWN}:
        return []
    ways = []
    if answer.better_utilization:
        ways.append(f"gpu_memory_utilization: {answer.better_utilization:g}")
    if answer.better_length:
        ways.append(f"max_model_len: {answer.better_length}")
    return [", or ".join(ways) or "more GPUs (tensor_parallel_size), a larger GPU, or a quantised model"]
