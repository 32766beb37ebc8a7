"""What `fit` says, as JSON values: a prediction, or why there is none. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.predict import Prediction, Verdict

FORMAT_VERSION = 1
Json = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpredicted:
    """A model whose shape nobody here knows: why, the bytes of its stored weights a GPU, None where not even those."""

    reason: str
    weights: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The answer about one model or server. `source` is where its files were read, `gpu` what its memory is from."""

    model: str
    source: str
    gpu: str
    gpu_memory: int
    vllm_version: str
    answer: Prediction | Unpredicted

    @property
    def fits(self) -> bool | None:
        """Whether it will start; None where nobody can say."""
        if isinstance(self.answer, Unpredicted) or self.answer.verdict is Verdict.UNKNOWN:
            return None
        return self.answer.verdict is Verdict.OK


def fit_json(fit: Fit) -> Json:
    """The contract's keys, all per GPU in bytes and tokens, and beside them what they were worked out from."""
    head: Json = {"format_version": FORMAT_VERSION, "model": fit.model, "source": fit.source}
    gpu: Json = {"gpu": fit.gpu or None, "gpu_memory_bytes": fit.gpu_memory, "vllm_version": fit.vllm_version}
    if isinstance(fit.answer, Unpredicted):
        return head | gpu | _unpredicted(fit.answer)
    return head | gpu | _predicted(fit.answer, fits=fit.fits)


def _predicted(found: Prediction, *, fits: bool | None) -> Json:
    serving, terms, shape = found.planned.serving, found.terms, found.planned.shape
    return {
        "weights_bytes": terms.weights,
        "activation_bytes": terms.activation,
        "overhead_bytes": terms.overhead,
        "graph_bytes": terms.graphs,
        "kv_bytes": found.kv_bytes,
        "kv_tokens": found.tokens,
        "max_concurrency": round(found.concurrency, 2),
        "fits": fits,
        "verdict": found.verdict.value,
        "suggestion": {
            "gpu_memory_utilization": found.better_utilization or None,
            "max_model_len": found.better_length or None,
        },
        "uncertainty_bytes": found.uncertainty,
        "requested_bytes": serving.requested,
        "kv_bytes_needed": found.needed,
        "architecture": shape.architecture or None,
        "weights_from": "files" if found.from_files else "config",
        "settings": {
            "gpu_memory_utilization": serving.utilization,
            "max_model_len": serving.max_model_len,
            "max_num_seqs": serving.max_num_seqs,
            "max_num_batched_tokens": serving.max_num_batched_tokens,
            "tensor_parallel_size": serving.tensor_parallel,
            "pipeline_parallel_size": serving.pipeline_parallel,
            "enforce_eager": serving.eager,
        },
        "notes": list(notes_of(found)),
    }


def _unpredicted(found: Unpredicted) -> Json:
    nothing: Json = dict.fromkeys(("activation_bytes", "overhead_bytes", "graph_bytes", "kv_bytes", "kv_tokens"))
    return {
        "weights_bytes": found.weights,
        **nothing,
        "max_concurrency": None,
        "fits": None,
        "verdict": Verdict.UNKNOWN.value,
        "suggestion": {"gpu_memory_utilization": None, "max_model_len": None},
        "uncertainty_bytes": None,
        "notes": [found.reason],
    }


def notes_of(found: Prediction) -> tuple[str, ...]:
    """What a person should know about how far to trust it."""
    shape, notes = found.planned.shape, list(found.planned.notes)
    kind = shape.model_type or shape.architecture or "no model_type"
    if not shape.known and not shape.doubts:
        notes.append(f"{kind} is not a family known here: read by its standard keys, as a Llama")
    notes += [f"{kind} may be predicted wrong: {doubt}" for doubt in found.doubts]
    if shape.quantisation is not None and not shape.quantisation.known:
        notes.append(f"quantisation {shape.quantisation.method or 'without a name'} is not known here")
    if found.planned.gpu.uncertainty:
        notes.append("what the driver keeps of this GPU is estimated")
    return tuple(notes)
