"""The page `/metrics`: the part of vLLM's that says what a server is doing and with which settings it runs.

Owns the names and labels, which are those of vLLM 0.32.0. Pure: from a `Serving` to text.
"""

from __future__ import annotations

from vmreconcile.simulator.memory import BLOCK_SIZE
from vmreconcile.simulator.serving import Serving


def metrics_page(serving: Serving) -> str:
    """Render the page in Prometheus' text format."""
    label = f'{{engine="0",model_name="{_escape(serving.options.served_names[0])}"}}'
    samples: list[tuple[str, str, str, float]] = [
        (
            "vllm:num_requests_running",
            "gauge",
            "Number of requests in model execution batches.",
            serving.hung or serving.running,
        ),
        ("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", 0),
        ("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", 0),
        ("vllm:prefix_cache_queries_total", "counter", "Prefix cache queries, in tokens.", serving.prompt_tokens),
        ("vllm:prefix_cache_hits_total", "counter", "Prefix cache hits, in tokens.", 0),
        ("vllm:num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", 0),
        ("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.", serving.prompt_tokens),
        ("vllm:generation_tokens_total", "counter", "Number of generation tokens.", serving.generation_tokens),
    ]
    lines = []
    for name, kind, text, value in samples:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{label} {float(value)}"]
    name = "vllm:request_success_total"
    lines += [f"# HELP {name} Count of successfully processed requests.", f"# TYPE {name} counter"]
    reason = label.replace('engine="0",', 'engine="0",finished_reason="length",')
    lines += [f"{name}{reason} {float(serving.finished)}"]
    name = "vllm:cache_config_info"
    lines += [f"# HELP {name} Information of the LLMEngine CacheConfig", f"# TYPE {name} gauge"]
    labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sorted(_cache_config(serving).items()))
    lines += [f"{name}{{{labels}}} 1.0", ""]
    return "\n".join(lines)


def _cache_config(serving: Serving) -> dict[str, str]:
    """The labels of `vllm:cache_config_info`, values as Python prints them."""
    options = serving.options
    return {
        "block_size": str(options.block_size or BLOCK_SIZE),
        "cache_dtype": options.kv_cache_dtype,
        "enable_prefix_caching": str(options.prefix_caching),
        "engine": "0",
        "gpu_memory_utilization": str(options.utilization),
        "is_attention_free": "False",
        "kv_cache_max_concurrency": str(round(serving.memory.concurrency, 2)),
        "kv_cache_memory_bytes": str(options.kv_bytes or None),
        "kv_cache_size_tokens": str(serving.memory.tokens),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(serving.memory.blocks),
        "num_gpu_blocks_override": "None",
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": "None",
        "user_specified_block_size": str(bool(options.block_size)),
    }


def _escape(value: str) -> str:
    """Escape a label's value as Prometheus' text format asks."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
