"""What a measurement holds for: a digest over all of a server that decides about its GPU's memory. Pure."""

from __future__ import annotations

import json

from vmreconcile.core.fingerprints import digest
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.showing import SECRET_NAME

OPEN = frozenset({"gpu_memory_utilization", "max_model_len"})
"""What a measurement is asked about: how much memory to take, and for how long a context."""

HARMLESS = frozenset(
    [
        # who may ask, where, and how the HTTP side answers
        *("host", "port", "uds", "grpc", "grpc_port", "root_path", "middleware", "served_model_name"),
        *("api_key", "hf_token", "allow_credentials", "allowed_headers", "allowed_methods", "allowed_origins"),
        *("allowed_local_media_path", "allowed_media_domains", "enable_ssl_refresh", "ssl_ca_certs", "ssl_cert_reqs"),
        *("ssl_certfile", "ssl_ciphers", "ssl_keyfile", "h11_max_header_count", "h11_max_incomplete_event_size"),
        *("disable_fastapi_docs", "enable_offline_docs", "enable_request_id_headers", "shutdown_timeout"),
        *("enable_tokenizer_info_endpoint", "sse_keep_alive_interval", "max_num_queued_reqs", "max_num_queued_tokens"),
        # what a request is turned into, and an answer
        *("chat_template", "chat_template_content_format", "trust_request_chat_template", "response_role"),
        *("default_chat_template_kwargs", "enable_auto_tool_choice", "exclude_tools_when_tool_choice_none"),
        *("tool_call_parser", "tool_parser_plugin", "tool_server", "reasoning_parser", "reasoning_parser_plugin"),
        *("generation_config", "override_generation_config", "return_tokens_as_token_ids", "seed"),
        *("enable_force_include_usage", "enable_prompt_tokens_details"),
        # what is logged and counted
        *("aggregate_engine_logging", "collect_detailed_traces", "cudagraph_metrics", "custom_histogram_buckets"),
        *("disable_access_log_for_endpoints", "disable_log_requests", "disable_log_stats", "log_error_stack"),
        *("disable_uvicorn_access_log", "enable_log_deltas", "enable_log_outputs", "enable_log_requests", "log_level"),
        *("enable_logging_iteration_details", "enable_mfu_metrics", "enable_per_request_metrics", "logging_config"),
        *("enable_server_load_tracking", "kv_cache_metrics", "kv_cache_metrics_sample", "log_config_file"),
        *("max_log_len", "otlp_traces_endpoint", "per_request_spec_decode_metrics", "uvicorn_log_level"),
        *("show_hidden_metrics_for_version", "use_tqdm_on_load"),
        # where files come from and how hosts find each other
        *("download_dir", "data_parallel_address", "data_parallel_rpc_port", "master_addr", "master_port"),
        *("distributed_timeout_seconds", "cpu_distributed_timeout_seconds"),
    ]
)
"""Arguments that have nothing to do with the memory of a GPU; one that is not here counts, whatever it does."""

COUNTED = ("VLLM_", "PYTORCH_", "TORCH", "NCCL_")
"""Beginnings of the variables that may decide about memory: ways of profiling, attention, allocating, communicating."""

HARMLESS_VARIABLES = ("VLLM_LOGGING_", "VLLM_LOG_", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "VLLM_USAGE_")


def memory_key(server: DesiredServer) -> str:
    """A digest over model, revision, and the settings and variables that decide about memory.

    `server` is as its host is to run it, with what tuning rules set there. Neither the utilization nor the context is
    in it, nor anything secret, nor which GPUs it is given.
    """
    settings = {name: each.value for name, each in server.settings.items() if name not in OPEN | HARMLESS}
    env = {name: str(each.value) for name, each in server.env.items() if _counts(name)}
    said = {name: value for name, value in settings.items() if value is not None}
    return digest(json.dumps([server.model, server.revision or "", said, env], sort_keys=True))


def _counts(name: str) -> bool:
    """Whether a variable may decide about memory, and is no secret."""
    return name.startswith(COUNTED) and not name.startswith(HARMLESS_VARIABLES) and not SECRET_NAME.search(name)
