"""After a start: what vLLM measured goes into the server's record on its host, beside what was predicted for it.

Placing then knows what the same model takes on the same kind of GPU. Only where a GPU is seen; and it never fails an
apply: the server is ready, whatever can or cannot be learned of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmreconcile.core.gpus.devices import devices_of
from vmreconcile.core.gpus.figures import completed, predicted_for, record_json
from vmreconcile.core.gpus.keys import memory_key
from vmreconcile.core.tuning import tuned
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.explaining import latest_start_of
from vmreconcile.flows.run import MOVED, Run, send_steps
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Figures, Measured
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.steps import NoteMeasured
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import from_argv
from vmreconcile.vllm.measured import figures_of
from vmreconcile.vllm.memory.arguments import Gpu
from vmreconcile.vllm.memory.defaults import default_utilization
from vmreconcile.vllm.memory.gpus import seen_gpu
from vmreconcile.vllm.memory.serving import requested_bytes

LOG_LINES = 4000
"""Of a start: with many workers, or in the debug log, the first figures come long before the last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A vLLM that runs: its settings by canonical name, its version, the least of its GPUs, what is seen of it."""

    settings: Mapping[str, JsonValue]
    version: str
    gpu: Gpu
    observed: ObservedServer

    @property
    def cache_config(self) -> Mapping[str, str]:
        """The labels of `vllm:cache_config_info`; none where it was not asked, or keeps its metrics to itself."""
        return self.observed.endpoint.cache_config if self.observed.endpoint else {}

    @property
    def utilization(self) -> float:
        """The share of the GPU that it takes: as it says, as it was told, or by its version's default."""
        for said in (self.cache_config.get("gpu_memory_utilization"), self.settings.get("gpu_memory_utilization")):
            try:
                share = float(str(said))
            except ValueError:
                continue
            if 0 < share <= 1:
                return share
        return default_utilization(self.version)


def learn(wanted: DesiredServer, run: Run) -> None:
    """Keep what a server that has just become ready measured at its start."""
    if run.stopping.is_set():
        return
    try:
        _learn(wanted, run)
    except VmreconcileError as error:
        if not (isinstance(error, AgentError) and error.kind == MOVED):
            run.reporter.says(wanted.id, f"what it measured could not be kept: {error}")
    except Exception as error:  # noqa: BLE001 - the server is ready: no bug in here may call that a failure
        run.reporter.says(wanted.id, f"what it measured could not be read ({type(error).__name__})")


def _learn(wanted: DesiredServer, run: Run) -> None:
    host = run.fleet.observe_host(wanted.id.host, wanted.id.slug, metrics=True, gpus=True)
    started = started_on(host, wanted)
    process = host.server(wanted.id.slug).process
    if started is None or process is None:
        return
    figures = _measured(wanted, started, run)
    if figures == Figures():
        run.reporter.says(wanted.id, "neither its log nor its metrics tell what it measured")
        return
    endpoint = started.observed.endpoint
    measured = Measured(
        key=memory_key(tuned(wanted, host, catalogue_for(started.version))[0]),
        gpu=started.gpu.name,
        gpu_memory=started.gpu.total,
        vllm_version=started.version,
        utilization=started.utilization,
        max_model_len=endpoint.max_model_len if endpoint else None,
        figures=figures,
        predicted=_predicted(wanted, started, run),
    )
    record = started.observed.record
    measured = completed(measured, record.measured if record else None)
    root = {"pid": process.pid, "start_ticks": process.start_ticks}
    send_steps(wanted.id, (NoteMeasured(slug=wanted.id.slug, measured=record_json(measured), **root),), run)


def started_on(host: HostView, wanted: DesiredServer) -> Started | None:
    """What runs of a server on a host that was seen with its GPUs; None without a process or a GPU that it is on."""
    observed = host.server(wanted.id.slug)
    devices = devices_of(observed, host)
    version = host.installed(wanted.executable).version or (observed.endpoint.version if observed.endpoint else None)
    if observed.process is None or not devices or not version:
        return None
    command = from_argv(observed.process.argv, catalogue_for(version))
    least = min((seen_gpu(gpu.name, gpu.memory_total) for gpu in devices), key=lambda gpu: gpu.total)
    return Started(settings=command.settings if command else {}, version=version, gpu=least, observed=observed)


def _measured(wanted: DesiredServer, started: Started, run: Run) -> Figures:
    engines = started.settings.get("data_parallel_size")
    return figures_of(
        latest_start_of(wanted.id, run.fleet, LOG_LINES),
        started.cache_config,
        requested=requested_bytes(started.gpu.total, started.utilization),
        engines=engines if isinstance(engines, int) else 1,
    )


def _predicted(wanted: DesiredServer, started: Started, run: Run) -> Figures | None:
    """For what was started, as it was started; None where nobody has read the model's files, or knows the model."""
    checkpoint = run.model_files(wanted.id)
    if checkpoint is None:
        return None
    return predicted_for(checkpoint, started.settings, started.gpu, started.version)
