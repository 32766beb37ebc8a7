"""Would it fit? The files of a model read where they are, the GPU's memory found, and the prediction made of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmreconcile.core.access import endpoint_of, offline
from vmreconcile.core.fitting import Fit, Unpredicted
from vmreconcile.core.tuning import tuned
from vmreconcile.effects.checkpoint import local_folder, read_cached, read_folder
from vmreconcile.effects.local_gpus import read_local_gpus
from vmreconcile.errors import Diagnostic, InputError, Place, UnreachableError, UsageError, VmreconcileError
from vmreconcile.flows.model_files import NotGivenError, hub_files, local_cache, read_model_files
from vmreconcile.flows.prepare import Prepared
from vmreconcile.model.access import Question
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Gpu as SeenGpu
from vmreconcile.model.observed import HostView, InstalledVllm
from vmreconcile.model.secret import Secret
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.memory.arguments import Gpu, UnfitArgumentsError, planned
from vmreconcile.vllm.memory.gpus import UnknownGpuError, gpu_of, seen_gpu
from vmreconcile.vllm.memory.kv import UnevenPagesError
from vmreconcile.vllm.memory.predict import Prediction, predict
from vmreconcile.vllm.memory.reading import UnknownShapeError, read_shape
from vmreconcile.vllm.memory.stored import Checkpoint, total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model to fit: a folder here or an id on the Hub, its vLLM arguments by canonical name, and how to read it.

    `source` names the token's source, "" for none. `version` "" is the newest vLLM known.
    """

    model: str
    arguments: Mapping[str, JsonValue]
    environ: Mapping[str, str]
    home: Path
    version: str = ""
    source: str = ""
    token: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the command line says over a desired server's own settings."""

    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    gpu: Gpu | None = None
    version: str = ""


def fit(wanted: Wanted, gpu: Gpu) -> Fit:
    """Predict.

    Raises:
        InputError: the model's files, or the arguments, cannot be used.
        VmreconcileError: the model cannot be read.
    """
    served = _Served(model=wanted.model, arguments=wanted.arguments, version=wanted.version)
    return _fitted(served, read_model(wanted), gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What is served, by the name that it was asked for by, and how."""

    model: str
    arguments: Mapping[str, JsonValue]
    version: str


def _fitted(served: _Served, checkpoint: Checkpoint, gpu: Gpu) -> Fit:
    version = served.version or catalogue_for(None).version
    return Fit(
        model=served.model,
        source=checkpoint.source,
        gpu=gpu.name,
        gpu_memory=gpu.total,
        vllm_version=version,
        answer=_answer(replace(served, version=version), checkpoint, gpu),
    )


def _answer(served: _Served, checkpoint: Checkpoint, gpu: Gpu) -> Prediction | Unpredicted:
    try:
        shape = read_shape(checkpoint.config)
    except UnknownShapeError as error:
        held = total_bytes(checkpoint.tensors) if checkpoint.tensors else None
        return Unpredicted(reason=f"this model is not known here: {error}", weights=held)
    try:
        return predict(planned(shape, served.arguments, gpu, served.version), checkpoint.tensors)
    except UnevenPagesError as error:
        return Unpredicted(reason=f"the layers of this model have caches of different sizes ({error})")
    except UnfitArgumentsError as error:
        place = Place(file=served.model)
        problem = Diagnostic(
            place=place, code="fit-arguments", summary=f"vLLM does not start so: {error}", remedy="change that argument"
        )
        raise InputError((problem,)) from None


def read_model(wanted: Wanted) -> Checkpoint:
    """A folder where one is named; else what the cache has in full; else the Hub; else what the cache has.

    Raises:
        InputError: the files cannot be used.
        VmreconcileError: nobody has the model.
    """
    if folder := local_folder(wanted.model):
        return read_folder(folder)
    cache = local_cache(wanted.environ, wanted.home)
    cached = read_cached(wanted.model, "", cache)
    if cached is not None and (cached.tensors is not None or offline(wanted.environ)):
        return cached
    if offline(wanted.environ):
        raise VmreconcileError(
            f"{wanted.model} is neither a folder nor in {cache}, and HF_HUB_OFFLINE is set",
            remedy="unset HF_HUB_OFFLINE, or name a folder that holds its config.json",
        )
    question = Question(model=wanted.model, endpoint=endpoint_of(wanted.environ), source=wanted.source)
    try:
        return hub_files(question, wanted.token, cache)
    except NotGivenError:
        if cached is not None:
            return cached
        raise


def local_gpu() -> Gpu:
    """This machine's own GPU, the smallest of several.

    Raises:
        UsageError: it has none.
    """
    found = [seen_gpu(name, total) for name, total in read_local_gpus()]
    if not found:
        raise UsageError(
            "which GPU? there is none on this machine", remedy="give one, as in --gpu-memory H100 or --gpu-memory 80GiB"
        )
    return min(found, key=lambda gpu: gpu.total)


def given_gpu(text: str) -> Gpu:
    """The GPU that `--gpu-memory` names.

    Raises:
        UsageError: it names none.
    """
    try:
        return gpu_of(text)
    except UnknownGpuError as error:
        near = f"; did you mean {error.near!r}?" if error.near else ""
        raise UsageError(
            f"--gpu-memory: {error}{near}", remedy="give bytes, a size such as 80GiB, or a name such as H100"
        ) from None


def fit_server(server: DesiredServer, prepared: Prepared, changes: Changes) -> Fit:
    """Predict for a desired server, on its host's GPUs and with its host's vLLM unless `changes` name others.

    Its model's files are the host's own where it is a path, or where this machine has not all of them.

    Raises:
        InputError: as `fit`.
        UnreachableError: the host must be looked at or asked for files, and cannot be.
        VmreconcileError: as `fit`; the host has no GPU for it.
    """
    host = _pretended(server, changes) if changes.gpu else _seen(server, prepared)
    version = changes.version or host.installed(server.executable).version or ""
    gpu = changes.gpu or host_gpu(server, host)
    server = tuned(server, host, catalogue_for(version or None))[0]
    files = read_model_files([server], prepared.fleet, prepared.hub)
    if server.id in files.problems:
        raise files.problems[server.id]
    arguments = {name: setting.value for name, setting in server.settings.items()} | dict(changes.arguments)
    served = _Served(model=server.model, arguments=arguments, version=version)
    return _fitted(served, files.checkpoints[server.id], gpu)


def _seen(server: DesiredServer, prepared: Prepared) -> HostView:
    view = prepared.fleet.observe([server.id.host], once=True)
    if view.unreachable:
        lost = view.unreachable[0]
        raise UnreachableError(f"{lost.host}: {lost.reason}", remedy=lost.remedy or "give the GPU with --gpu-memory")
    return view.hosts[0]


def _pretended(server: DesiredServer, changes: Changes) -> HostView:
    """A host that is not looked at, for the tuning rules: the GPU given, and the vLLM given."""
    gpu = changes.gpu or Gpu(total=0)
    card = SeenGpu(index=0, uuid="", name=gpu.name, memory_total=gpu.total, memory_used=0, memory_free=gpu.total)
    vllm = InstalledVllm(asked=server.executable, path=None, version=changes.version or None)
    return HostView(
        host=server.id.host,
        now=0.0,
        boot_id="",
        uid=0,
        user="",
        config_dir="",
        state_dir="",
        gpus=(card,),
        vllm=(vllm,),
    )


def host_gpu(server: DesiredServer, host: HostView) -> Gpu:
    """The smallest GPU that the server may get.

    Raises:
        VmreconcileError: the host has none that it may get.
    """
    wanted = server.gpus if isinstance(server.gpus, tuple) else tuple(gpu.index for gpu in host.gpus)
    found = [gpu for gpu in host.gpus if gpu.index in wanted and gpu.memory_total]
    missing = [str(index) for index in wanted if index not in {gpu.index for gpu in found}]
    if not found or missing:
        why = f"it has no GPU {', '.join(missing)}" if missing else host.gpu_problem or "it has no GPU"
        raise VmreconcileError(f"{host.host}: {why}", remedy="give the GPU with --gpu-memory, as in --gpu-memory H100")
    least = min(found, key=lambda gpu: gpu.memory_total)
    return seen_gpu(least.name, least.memory_total)
