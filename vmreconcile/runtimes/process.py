"""Runtime `process`: no supervisor; a session of its own, a log file, a record with pid and start time."""

from __future__ import annotations

from vmreconcile.model.launch import Launch, token_beside
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.plan import Field
from vmreconcile.model.steps import (
    EndOrphans,
    RemoveFile,
    RemoveServer,
    Spawn,
    Step,
    StopProcess,
    WriteEnv,
    WriteRecord,
)
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.draining import shutdown_timeout_of

GRACE_S = 15.0
"""Seconds between the signals of a stop: an EngineCore ends in about 6 s, a second TERM in 2-8 s (measured, 0.32.0)."""


def grace_of(server: ObservedServer) -> float:
    """How long the first TERM of a stop may take: what runs may go on with its requests first."""
    return GRACE_S + (shutdown_timeout_of(server.process.argv) if server.process else 0)


class ProcessRuntime:
    """Servers as plain processes, for hosts without systemd."""

    name = "process"
    open_files: int | None = None

    def problem(self, host: HostView) -> str:
        """Needs nothing but a POSIX host."""
        del host
        return ""

    def refusal(self, launch: Launch) -> str:
        """Arguments and environment go to the kernel as they are."""
        del launch
        return ""

    def crashed(self, server: ObservedServer) -> bool:
        """The record says running, but its root is gone."""
        return server.record is not None and server.record.state == "running"

    def drift(self, launch: Launch, server: ObservedServer) -> tuple[Field, ...]:
        """There are no files besides the env file, which every runtime shares."""
        del launch, server
        return ()

    def start(self, launch: Launch) -> tuple[Step, ...]:
        """Env file first, then the process, which writes its own record before it becomes vLLM."""
        return (*self.refresh(launch), *self.begin(launch))

    def begin(self, launch: Launch) -> tuple[Step, ...]:
        """The process, with a record of itself."""
        return (
            Spawn(
                slug=launch.id.slug,
                argv=launch.argv,
                cwd=launch.cwd,
                env_path=launch.env_path,
                log_path=launch.log_path,
                record={**launch.record, "runtime": self.name, "state": "running"},
            ),
        )

    def refresh(self, launch: Launch) -> tuple[Step, ...]:
        """Write the env file, the token in it."""
        return (WriteEnv(path=launch.env_path, entries=launch.entries), RemoveFile(path=token_beside(launch.env_path)))

    def stop(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Stop it, and note that it is meant to be stopped."""
        steps = [*self.halt(host, server)]
        record = server.record
        if record:
            stopped: dict[str, JsonValue] = {
                "server": record.server,
                "runtime": self.name,
                "state": "stopped",
                "env_names": list(record.env_names),
            }
            steps.append(WriteRecord(slug=server.slug, record=stopped))
        return tuple(steps)

    def halt(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Stop the root with its session, or what is left of it."""
        steps: list[Step] = []
        if server.process:
            steps.append(
                StopProcess(
                    slug=server.slug,
                    pid=server.process.pid,
                    start_ticks=server.process.start_ticks,
                    boot_id=host.boot_id,
                    grace_s=grace_of(server),
                )
            )
        if server.orphans:
            steps.append(end_orphans(server))
        return tuple(steps)

    def remove(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Record, env file and log."""
        del host
        return (RemoveServer(slug=server.slug),)


def end_orphans(server: ObservedServer) -> EndOrphans:
    """The step that ends the workers of a server whose root is gone."""
    return EndOrphans(
        slug=server.slug,
        processes=tuple(sorted((worker.pid, worker.start_ticks) for worker in server.orphans)),
        grace_s=GRACE_S,
    )
