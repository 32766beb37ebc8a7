"""`vllm serve`, simulated: the command line, the start up to the launch of the engines, and what a start says.

Owns the order of a start, which is vLLM's: arguments, port, model, engines, HTTP. Everything after the launch is
`root`'s.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from vmreconcile.simulator.devices import StartError
from vmreconcile.simulator.endpoints import answer
from vmreconcile.simulator.engine import WATCHED, Plan, launch
from vmreconcile.simulator.failures import EXAMPLE, FAILURES, traceback
from vmreconcile.simulator.faults import Faults, read_faults
from vmreconcile.simulator.gpu_folder import Claims, find_claims
from vmreconcile.simulator.httpd import serve_connection
from vmreconcile.simulator.log import Log, die, write_error
from vmreconcile.simulator.memory import GIB, Found, Wanted, profile
from vmreconcile.simulator.options import Options, RangeError, read_options
from vmreconcile.simulator.root import Root
from vmreconcile.simulator.served import DEFAULT_LIMIT, ServedModel, look_at
from vmreconcile.simulator.serving import Serving
from vmreconcile.vllm.catalogue import catalogue_for

_SERVER_HEADER = "vllm-simulator"

ADAPTER_RANK_GIB = 0.005
"""One rank of a LoRA adapter over all layers of a model of 7e9 parameters, in 16 bits: 28 x 90,112 x 2 bytes."""


def serve(words: tuple[str, ...], environ: Mapping[str, str], *, version: str, folder: str) -> NoReturn:
    """Be the root process of one server; `words` follow `vllm serve`, `folder` is where the simulator is installed.

    Ends the process: 0 stopped or engine dead, 1 a failed start, 2 wrong arguments.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log = Log("APIServer")
    options = _read_options(words, environ, version)
    faults = _watch_faults(environ, folder, options.port)
    _greet(log, options, version)
    listener = _bind(options)
    model = look_at(options.model, environ)
    options = _check(options, model, environ)
    if model.failure:
        _fail(model.failure, options, model)
    claims = _claims(options, model, environ, version, faults())
    memory = profile(_wanted(options, model, faults(), claims))
    failure = _engine_failure(options, memory, faults(), model)
    time.sleep(faults().early_seconds)
    root = Root(log, faults)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    root.watch_signals()
    plan = replace(_plan(options, memory, failure, version, faults), claims=claims)
    root.adopt(launch(plan, close=(listener.fileno(), *root.descriptors)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    root.wait_until_ready()
    serving = Serving(
        options=options,
        version=version,
        memory=memory,
        log=log,
        faults=faults,
        wake=root.wake,
        runtime_lora=environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in {"1", "true"},
        api_keys=options.api_keys,
        adapters=dict(options.adapters),
    )
    _listen(listener, log, options)

    def connect(connection: socket.socket, client: str) -> None:
        serve_connection(connection, client, lambda request: answer(serving, request), server=_SERVER_HEADER)

    root.serve(listener, serving, connect)


def _read_options(words: tuple[str, ...], environ: Mapping[str, str], version: str) -> Options:
    """Read the command line; what vLLM's parser refuses ends with its message and exit code 2."""
    try:
        return read_options(words, environ, catalogue_for(version))
    except ValueError as problem:
        unknown = str(problem).startswith("unrecognized arguments")
        usage = (
            "usage: vllm [-h] [-v] {serve} ...\nvllm"
            if unknown
            else "usage: vllm serve [model_tag] [options]\nvllm serve"
        )
        write_error(f"{usage}: error: {problem}\n")
        die(2)
    except NotImplementedError as problem:
        write_error(f"{problem}\n")
        die(1)


def _watch_faults(environ: Mapping[str, str], folder: str, port: int) -> Callable[[], Faults]:
    """A function that reads the switches anew; one that cannot be read leaves the last ones in force.

    Raises:
        ValueError: the switches cannot be read even now, at the start.
    """
    last = read_faults(environ, folder=folder, port=port)

    def faults() -> Faults:
        nonlocal last
        try:
            last = read_faults(environ, folder=folder, port=port)
        except (ValueError, OSError) as problem:
            write_error(f"simulator of vLLM: {problem}\n")
        return last

    return faults


def _greet(log: Log, options: Options, version: str) -> None:
    """Say what this is, then what vLLM says first."""
    log("simulator.py:1", f"This is a SIMULATOR of vLLM {version}, not vLLM: no model is loaded, answers mean nothing.")
    log("api_utils.py:347", f"SIMULATOR of vLLM  version {version}  model {options.model}")
    log("api_utils.py:286", f"non-default args: {options.shown}")


def _bind(options: Options) -> socket.socket:
    """Take the port without listening yet, so that a start fails early on a port that is held."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            _fail("port-in-use", options, ServedModel())
        write_error(traceback(f"OSError: {problem}"))
        die(1)
    return listener


def _listen(listener: socket.socket, log: Log, options: Options) -> None:
    """Open the port to clients and say so, as vLLM and uvicorn do."""
    listener.listen(128)
    listener.setblocking(False)  # noqa: FBT003 - positional only
    log("entry.py:140", f"Starting vLLM server on http://{options.host or '0.0.0.0'}:{options.port}")  # noqa: S104 - says what vLLM says
    write_error(
        f"INFO:     Started server process [{os.getpid()}]\n"
        "INFO:     Waiting for application startup.\n"
        "INFO:     Application startup complete.\n"
    )


def _check(options: Options, model: ServedModel, environ: Mapping[str, str]) -> Options:
    """Settle the context length; end with vLLM's validation errors where a value is out of range."""
    try:
        options.check_ranges()
    except RangeError as problem:
        write_error(traceback(str(problem)))
        die(1)
    limit = model.limit or DEFAULT_LIMIT
    if options.max_model_len <= 0:
        options = options.with_max_model_len(limit)
    if model.limit and options.max_model_len > limit and environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
        _fail("max-model-len", options, model)
    return options


def _fail(name: str, options: Options, model: ServedModel) -> NoReturn:
    """End the start in the API server with one of vLLM's failures."""
    failure = FAILURES[name]
    text = _fill(failure.text, options, model, None)
    write_error(text + "\n" if failure.exit_code == 2 else traceback(text))
    die(failure.exit_code)


def _fill(text: str, options: Options, model: ServedModel, memory: Found | None) -> str:
    """Put the start's own values into a failure's text."""
    needed = options.max_model_len * model.bytes_per_token / GIB
    values: dict[str, object] = {
        **EXAMPLE,
        "model": options.model,
        "max_model_len": options.max_model_len,
        "limit": model.limit or DEFAULT_LIMIT,
        "needed": needed,
        "available": memory.kv_gib if memory and memory.failure else needed * 0.85,
        "estimate": memory.tokens if memory and memory.failure else int(options.max_model_len * 0.85),
    }
    return text.format_map(values)


def _claims(
    options: Options, model: ServedModel, environ: Mapping[str, str], version: str, faults: Faults
) -> Claims | None:
    """Find the shared GPUs that this start is to run on; None where none are described, or it is to fail anyway."""
    if not faults.gpus or faults.die or faults.die_text:
        return None
    try:
        return find_claims(options, environ, version, faults.gpus, _weights(options, model, faults))
    except StartError as error:
        write_error(traceback(str(error)))
        die(1)


def _wanted(options: Options, model: ServedModel, faults: Faults, claims: Claims | None) -> Wanted:
    """What decides the memory of this start; every GPU of a group carries its part."""
    gpus = options.tensor_parallel * options.pipeline_parallel
    return Wanted(
        total_gib=claims.least / GIB if claims else faults.gpu_gib,
        weights_gib=_weights(options, model, faults),
        utilization=options.utilization,
        kv_bytes=options.kv_bytes,
        max_model_len=options.max_model_len,
        eager=options.eager,
        bytes_per_token=max(1, model.bytes_per_token // gpus),
    )


def _weights(options: Options, model: ServedModel, faults: Faults) -> float:
    """GiB of weights on each GPU, with the room for adapters that vLLM takes while it loads the model."""
    weights = faults.weights_gib if model.weights_gib is None else model.weights_gib
    adapters = options.adapter_ranks * ADAPTER_RANK_GIB
    return (weights + adapters) / (options.tensor_parallel * options.pipeline_parallel)


def _engine_failure(options: Options, memory: Found, faults: Faults, model: ServedModel) -> str:
    """The text with which loading is to end; a failure that the API server meets ends the process here."""
    if faults.die and faults.die not in FAILURES:
        raise ValueError(f"the simulator of vLLM has no failure {faults.die!r}; known: {', '.join(sorted(FAILURES))}")
    name = faults.die or memory.failure
    if not name or faults.die_text:
        return faults.die_text
    failure = FAILURES[name]
    text = _fill(failure.text, options, model, memory)
    if not failure.in_engine:
        time.sleep(faults.early_seconds)
        write_error(text + "\n" if failure.exit_code == 2 else traceback(text))
        die(faults.die_code if faults.die_code >= 0 else failure.exit_code)
    return text


def _plan(options: Options, memory: Found, failure: str, version: str, faults: Callable[[], Faults]) -> Plan:
    """What the engines are to do and to say."""
    seconds = faults().start_seconds
    concurrency = f"Maximum concurrency for {options.max_model_len:,} tokens per request: {memory.concurrency:.2f}x"
    findings = [
        (
            "gpu_model_runner.py:4410",
            f"Model loading took {memory.weights_gib:.2f} GiB memory and {seconds:.6f} seconds",
        ),
        ("gpu_worker.py:436", f"Available KV cache memory: {memory.kv_gib:.2f} GiB"),
        ("kv_cache_utils.py:2327", f"GPU KV cache size: {memory.tokens:,} tokens, {concurrency}"),
    ]
    if not options.eager:
        findings.append(("gpu_model_runner.py:6120", "Graph capturing finished in 1 secs, took 0.58 GiB"))
    findings.append(("core.py:402", f"init engine (profile, create kv cache, warmup model) took {seconds:.2f} s"))
    return Plan(
        tensor_parallel=options.tensor_parallel,
        pipeline_parallel=options.pipeline_parallel,
        data_parallel=options.data_parallel,
        load_seconds=seconds,
        failure=failure,
        hello=f"Initializing a V1 LLM engine (v{version}, SIMULATED) with config: model={options.model!r}, "
        f"max_seq_len={options.max_model_len}, tensor_parallel_size={options.tensor_parallel}",
        findings=tuple(findings),
        before=tuple(findings[:2]) if memory.failure and not (faults().die or faults().die_text) else (),
        faults=faults,
    )
