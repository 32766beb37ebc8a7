"""The peak of memory while vLLM profiles a model: one forward pass, then one sampling of every request. Pure.

vLLM runs both once with dummies and takes the highest allocation (vllm/v1/worker/gpu_worker.py:
determine_available_memory; vllm/v1/worker/gpu_model_runner.py: profile_run, 0.22.1). Nothing here is fitted: the terms
are the tensors that are alive at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmreconcile.vllm.memory.defaults import Behaviour
from vmreconcile.vllm.memory.serving import Serving
from vmreconcile.vllm.memory.shape import Attention, Experts, Layer, Shape
from vmreconcile.vllm.memory.sizes import MIB
from vmreconcile.vllm.memory.weights import Stage, padded_vocabulary

LIBRARIES = 32 * MIB
"""The workspace of cuBLAS in PyTorch's pool (PyTorch 2.11, aten/src/ATen/cuda/CUDABlas.cpp, on Hopper)."""

PROCESSORS = 132
"""Streaming multiprocessors of an H100: rows of the buffer that top-k/top-p sampling keeps."""

LOGITS32, INDEX = 4, 8
"""Bytes of a 32-bit logit and of an index."""

SORTING = 9.5
"""32-bit logits alive at once while PyTorch sorts them: half a one in 16 bits, one in 32, sorted values, indices,
softmax, mask, and the buffers of the sort itself (vllm/v1/sample/ops/topk_topp_sampler.py, 0.15.0)."""

LATENT_PREFILL = 64 * 1024
"""Tokens of context that MLA unpacks at once at most (…/attention/mla_attention.py:
determine_chunked_prefill_workspace_size, 0.22.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes: `kept` by workspaces once they are made, and the higher of the forward pass and the sampling on top."""

    kept: int
    forward: int
    sampling: int

    @property
    def total(self) -> int:
        """The whole peak."""
        return self.kept + max(self.forward, self.sampling)


def peak(shape: Shape, stage: Stage, serving: Serving, behaviour: Behaviour) -> Peak:
    """The peak on one GPU of a stage."""
    experts = max(
        (_expert_workspace(shape, layer.experts, serving) for layer in stage.layers if layer.experts), default=0
    )
    kept = LIBRARIES + experts
    forward = max((_layer(shape, layer, serving) for layer in stage.layers), default=0)
    passed = 0 if stage.first and stage.last else 2 * _hidden(shape, serving)
    sampling = _hidden(shape, serving) + _sampling(shape, serving, behaviour) if stage.last else 0
    return Peak(kept=kept, forward=forward + passed, sampling=sampling)


def _hidden(shape: Shape, serving: Serving) -> int:
    """Bytes of the hidden states of a whole batch."""
    return serving.max_num_batched_tokens * shape.hidden * shape.itemsize


def _sampling(shape: Shape, serving: Serving, behaviour: Behaviour) -> int:
    """Bytes for the logits of every request and what is made of them.

    The older runner keeps the 16-bit logits, their 32-bit copy, probabilities and random numbers, and a buffer of one
    row a multiprocessor (gpu_model_runner.py: _dummy_sampler_run; v1/sample/sampler.py: forward;
    topk_topp_sampler.py: forward_native, random_sample; topk_topp_triton.py). The newer one samples from one copy
    (v1/worker/gpu/sample/sampler.py: apply_sampling_params), or in place from 0.26 on.
    """
    logits = serving.sampled * padded_vocabulary(shape)
    if behaviour.second_runner:
        return logits * (shape.itemsize + (LOGITS32 if behaviour.copies_logits else 0))
    if behaviour.sorts:
        return int(logits * SORTING * LOGITS32)
    copies = 3 if shape.itemsize < LOGITS32 else 2
    buffer = min(PROCESSORS, serving.sampled) * padded_vocabulary(shape) * LOGITS32
    return logits * (shape.itemsize + copies * LOGITS32) + buffer


def _layer(shape: Shape, layer: Layer, serving: Serving) -> int:
    """Bytes alive at the widest point of one layer: in its attention, its dense part or its experts."""
    tokens = serving.max_num_batched_tokens * shape.itemsize
    found = [_attention(shape, layer.attention, serving)]
    if layer.inner:
        found.append(tokens * (_mlp(shape, layer.inner, serving) + 3 * shape.hidden))
    if layer.experts:
        shared = _mlp(shape, layer.experts.shared, serving) if layer.experts.shared else 0
        found.append(tokens * (4 * shape.hidden + shared + 2 * layer.experts.count))
    return max(found)


def _mlp(shape: Shape, inner: int, serving: Serving) -> int:
    """Elements a token: gate, up and their product, or one and its activation; three hidden states beside it."""
    return serving.share(inner) * (3 if shape.traits.gated else 2)


def _attention(shape: Shape, attention: Attention, serving: Serving) -> int:
    """Bytes: queries, keys, values, output, and the hidden states and residual that wait.

    MLA also unpacks the context that a prefill may look back at (mla_attention.py: forward_impl with no metadata).
    """
    heads = serving.share(attention.heads)
    tokens = serving.max_num_batched_tokens * shape.itemsize
    output = heads * attention.value_dim
    if latent := attention.latent:
        packed = latent.q_rank + latent.kv_rank + latent.rope
        at_once = min(max(8 * serving.max_model_len, 4 * serving.max_num_seqs * serving.block), LATENT_PREFILL)
        at_once = max(at_once, serving.max_num_seqs * serving.block)
        unpacked = at_once * heads * (latent.nope + attention.value_dim) * shape.itemsize
        return tokens * (heads * attention.head_dim + packed + output + 2 * shape.hidden) + unpacked
    kv_heads = serving.share(attention.kv_heads)
    queries = heads * attention.head_dim + kv_heads * (attention.head_dim + attention.value_dim)
    copies = heads * attention.head_dim if shape.traits.qk_norm else 0
    return tokens * (queries + copies + output + 2 * shape.hidden)


def _expert_workspace(shape: Shape, experts: Experts, serving: Serving) -> int:
    """Bytes that the experts' kernels keep; those of MXFP4 keep none.

    …/fused_moe/modular_kernel.py: _allocate_buffers; …/experts/triton_moe.py: workspace_shapes (0.22.1).
    """
    if shape.quantisation is not None and shape.quantisation.experts_only:
        return 0
    inner = experts.inner if serving.expert_parallel else serving.share(experts.inner)
    tokens = serving.max_num_batched_tokens * shape.itemsize
    return tokens * experts.active * (max(inner, shape.hidden) + max(2 * inner, shape.hidden))
