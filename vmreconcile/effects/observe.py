"""The agent's answer to `observe`, parsed into values. Owns the JSON shape of docs/wire.md; trusts none of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vmreconcile.effects.facts import Facts
from vmreconcile.errors import UnreachableError
from vmreconcile.model.gpus import Figures, Gpu, Measured
from vmreconcile.model.observed import (
    Endpoint,
    EnvFile,
    EnvValue,
    HostView,
    InstalledVllm,
    LastFailure,
    ObservedServer,
    Orphan,
    PortHolder,
    Process,
    Record,
    Stranger,
    Systemd,
    TokenPlace,
    Unit,
    Worker,
)
from vmreconcile.model.values import JsonValue

FORMAT = 1
MOST_GPUS = 512
"""Of one host, instances counted: sixteen split into seven each are 112. Who places servers compares them all."""

MOST_BYTES = MOST_TOKENS = 1 << 50
"""No GPU has more memory, and no KV cache more tokens."""

SLUG = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}(_[0-9]{1,4})?")


def host_view(host: str, salt: str, answer: Mapping[str, JsonValue]) -> HostView:
    """The view of `host` that its agent answered with.

    Raises:
        UnreachableError: where the agent speaks another format.
    """
    seen = Facts(answer.get("observation"))
    if seen.integer("format") != FORMAT:
        raise UnreachableError("the agent answered in a format that this version does not know")
    servers = tuple(server for server in seen.many("servers", _server) if SLUG.fullmatch(server.slug))
    about, folders, gpus = seen.part("host"), seen.part("folders"), seen.part("gpus")
    return HostView(
        host=host,
        hostname=about.text("hostname"),
        now=about.moment("now"),
        boot_id=about.word("boot_id"),
        uid=about.integer("uid"),
        user=about.text("user"),
        home=about.text("home"),
        python=about.word("python"),
        config_dir=folders.text("config"),
        state_dir=folders.text("state"),
        folder_problem=folders.maybe_text("problem"),
        salt=salt,
        systemd=_systemd(seen.part("systemd")),
        servers=servers,
        strangers=seen.many("strangers", lambda facts: _stranger(host, facts)),
        orphans=_orphans(host, seen, servers),
        ports=seen.many("ports", _port),
        vllm=seen.many("vllm", _vllm),
        architectures=dict(seen.many("architectures", lambda facts: (facts.text("slug"), facts.texts("names")))),
        gpus=gpus.many("devices", _gpu)[:MOST_GPUS],
        programs=_programs(gpus),
        gpu_problem=gpus.maybe_text("problem"),
        gpu_driver=gpus.word("driver") or None,
        gpu_cuda=gpus.word("cuda") or None,
    )


def _systemd(facts: Facts) -> Systemd:
    return Systemd(
        version=facts.maybe_integer("version"),
        scope="user" if facts.text("scope") == "user" else "system",
        lingering=facts.maybe_flag("lingering"),
        problem=facts.maybe_text("problem"),
    )


def _server(facts: Facts) -> ObservedServer:
    return ObservedServer(
        slug=facts.text("slug"),
        runtime=facts.word("runtime"),
        record=facts.one("record", _record),
        process=facts.one("process", _process),
        orphans=facts.many("orphans", _worker),
        unit=facts.one("unit", _unit),
        env_file=facts.one("env_file", _env_file),
        endpoint=facts.one("endpoint", _endpoint),
        log_path=facts.part("log").text("path"),
        log_written_at=facts.part("log").maybe_number("written_at"),
        problems=facts.texts("problems"),
    )


def _record(facts: Facts) -> Record:
    return Record(
        server=facts.text("server"),
        runtime=facts.word("runtime"),
        pid=facts.maybe_integer("pid"),
        start_ticks=facts.maybe_integer("start_ticks"),
        boot_id=facts.word("boot_id"),
        state=facts.word("state"),
        env_names=facts.texts("env_names"),
        decided=_decided(facts.part("decided")),
        measured=facts.one("measured", _measured),
        failed=facts.one("failed", _failed),
    )


def _failed(facts: Facts) -> LastFailure:
    return LastFailure(
        launch=facts.digits("launch"),
        kind=facts.word("kind"),
        when=facts.moment("when"),
        revision=facts.maybe_integer("revision"),
    )


def _decided(facts: Facts) -> dict[str, JsonValue]:
    """The numbers that a record says were chosen: only those that the tool ever chooses."""
    share, length = facts.maybe_number("gpu_memory_utilization"), facts.maybe_integer("max_model_len")
    found: dict[str, JsonValue] = {}
    if share is not None and 0 < share <= 1:
        found["gpu_memory_utilization"] = share
    if length is not None and length > 0:
        found["max_model_len"] = length
    return found


def _measured(facts: Facts) -> Measured:
    """A measurement as a record has it; a figure that no start on such a GPU has is left out."""
    memory = facts.integer("gpu_memory")
    length = facts.maybe_integer("max_model_len")
    return Measured(
        key=facts.digits("key"),
        gpu=facts.text("gpu"),
        gpu_memory=memory,
        vllm_version=facts.text("vllm_version"),
        utilization=facts.maybe_number("utilization") or 0.0,
        max_model_len=length if length and 0 < length < MOST_TOKENS else None,
        figures=_figures(facts.part("figures"), least=0, most=memory),
        predicted=facts.one("predicted", lambda part: _figures(part, least=-MOST_BYTES, most=MOST_BYTES)),
    )


def _figures(facts: Facts, *, least: int, most: int) -> Figures:
    """Figures within bounds in bytes; what is predicted may leave less than nothing for the KV cache."""

    def within(name: str, low: int = least, high: int = most) -> int | None:
        value = facts.maybe_integer(name)
        return value if value is not None and low <= value <= high else None

    sizes = {name: within(name) for name in ("weights", "beside", "graphs", "kv_bytes")}
    return Figures(kv_tokens=within("kv_tokens", 0, MOST_TOKENS), **sizes)


def _process(facts: Facts) -> Process:
    return Process(
        pid=facts.integer("pid"),
        start_ticks=facts.integer("start_ticks"),
        started_at=facts.moment("started_at"),
        argv=facts.texts("argv"),
        ports=facts.integers("ports"),
        env=facts.table("env", _env_value),
        children=facts.many("children", _worker),
    )


def _worker(facts: Facts) -> Worker:
    return Worker(
        pid=facts.integer("pid"),
        start_ticks=facts.integer("start_ticks"),
        title=facts.text("title"),
        gpu_memory_bytes=facts.maybe_integer("gpu_memory_bytes"),
    )


def _env_value(facts: Facts) -> EnvValue:
    return EnvValue(fingerprint=facts.digits("fingerprint"), value=facts.maybe_text("value"))


def _unit(facts: Facts) -> Unit:
    return Unit(
        name=facts.text("name"),
        path=facts.text("path"),
        load=facts.word("load"),
        active=facts.word("active"),
        sub=facts.word("sub"),
        result=facts.word("result"),
        enabled=facts.word("enabled"),
        restarts=facts.integer("restarts"),
        exit_code=facts.maybe_integer("exit_code"),
        text=facts.maybe_text("text"),
        drop_ins=facts.texts("drop_ins"),
        needs_reload=facts.flag("needs_reload"),
        token_places=facts.many("token_places", _token_place),
    )


def _token_place(facts: Facts) -> TokenPlace:
    return TokenPlace(
        variable=facts.word("variable"),
        path=facts.text("path"),
        line=facts.integer("line"),
        fingerprint=facts.digits("fingerprint"),
        wins=facts.flag("wins"),
    )


def _env_file(facts: Facts) -> EnvFile:
    return EnvFile(
        path=facts.text("path"),
        mode=facts.integer("mode"),
        uid=facts.integer("uid"),
        mtime=facts.moment("mtime"),
        problem=facts.maybe_text("problem"),
        env=facts.table("env", _env_value),
    )


def _endpoint(facts: Facts) -> Endpoint:
    metrics = facts.part("metrics")
    models = facts.many("models", lambda model: (model.text("id"), model.maybe_integer("max_model_len")))
    return Endpoint(
        address=facts.text("address"),
        port=facts.integer("port"),
        health=facts.maybe_integer("health"),
        problem=facts.maybe_text("problem"),
        version=facts.maybe_text("version"),
        models=tuple(name for name, _ in models),
        max_model_len=models[0][1] if models else None,
        requests_running=metrics.maybe_number("requests_running"),
        requests_waiting=metrics.maybe_number("requests_waiting"),
        cache_config=metrics.strings("cache_config"),
        stalled_s=facts.maybe_number("stalled_s"),
    )


def _stranger(host: str, facts: Facts) -> Stranger:
    return Stranger(
        host=host,
        pid=facts.integer("pid"),
        port=facts.maybe_integer("port"),
        what=facts.text("what"),
        user=facts.text("user"),
        why=facts.text("why"),
        gpu_memory_bytes=facts.maybe_integer("gpu_memory_bytes"),
    )


def _orphans(host: str, seen: Facts, servers: tuple[ObservedServer, ...]) -> tuple[Orphan, ...]:
    """Workers without a root: those of nobody, and those of our servers with the server named."""
    found = [_orphan(host, "", worker) for worker in seen.many("orphans", _worker)]
    for server in servers:
        found += [_orphan(host, server.slug, worker) for worker in server.orphans]
    return tuple(sorted(found, key=lambda orphan: orphan.pid))


def _orphan(host: str, slug: str, worker: Worker) -> Orphan:
    return Orphan(host=host, pid=worker.pid, title=worker.title, server=slug, gpu_memory_bytes=worker.gpu_memory_bytes)


def _port(facts: Facts) -> PortHolder:
    return PortHolder(
        port=facts.integer("port"),
        pid=facts.maybe_integer("pid"),
        what=facts.text("what"),
        user=facts.text("user"),
        slug=facts.maybe_text("slug"),
    )


def _vllm(facts: Facts) -> InstalledVllm:
    return InstalledVllm(
        asked=facts.text("asked"),
        path=facts.maybe_text("path"),
        version=facts.maybe_text("version"),
        problem=facts.maybe_text("problem"),
    )


def _programs(gpus: Facts) -> dict[int, str]:
    """What the processes are that hold memory of GPUs, by pid."""
    rows = gpus.many("devices", lambda gpu: gpu.many("processes", lambda one: (one.integer("pid"), one.text("what"))))
    return {pid: what for row in rows for pid, what in row if what}


def _gpu(facts: Facts) -> Gpu:
    return Gpu(
        index=facts.integer("index"),
        uuid=facts.text("uuid"),
        name=facts.text("name"),
        memory_total=facts.integer("memory_total"),
        memory_used=facts.integer("memory_used"),
        memory_free=facts.integer("memory_free"),
        processes=facts.many("processes", lambda one: (one.integer("pid"), one.maybe_integer("memory_bytes"))),
        pci=facts.text("pci"),
        split=facts.flag("split"),
        parent=facts.text("parent"),
        instance=facts.maybe_integer("instance"),
        compute_mode=facts.word("compute_mode"),
        ecc_errors=facts.maybe_integer("ecc_errors"),
        remapping_failed=facts.flag("remapping_failed"),
        xids=facts.integers("xids"),
    )
