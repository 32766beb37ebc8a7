"""The agent's answer, parsed: the page's own example in full, and anything else without a fault."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.worlds import known, wanted, world
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.effects.facts import Facts
from vmreconcile.effects.observe import FORMAT, host_view
from vmreconcile.errors import UnreachableError
from vmreconcile.model.desired import DesiredFleet
from vmreconcile.model.gpus import Gpu
from vmreconcile.model.observed import (
    Endpoint,
    EnvValue,
    FleetView,
    HostView,
    InstalledVllm,
    Orphan,
    PortHolder,
    Record,
    Stranger,
    Systemd,
    Worker,
)
from vmreconcile.model.values import JsonValue

WIRE = (Path(__file__).parents[2] / "docs/wire.md").read_text(encoding="utf-8")
RECORD = '{"server": "qwen2.5-7b", "runtime": "systemd", "state": "running", "env_names": ["A"], "pid": 812}'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def example() -> dict[str, JsonValue]:
    """The observation that docs/wire.md shows."""
    (block,) = re.findall(r"```json\n(\{\"format\".*?)```", WIRE, re.DOTALL)
    found: dict[str, JsonValue] = json.loads(block.replace("{…}", RECORD))
    return found


def view(observation: JsonValue) -> HostView:
    """The parsed view."""
    return host_view("gpu1", "ab", {"observation": observation})


def test_the_pages_example_of_a_host() -> None:
    """Every fact of the host itself."""
    host = view(example())
    assert (host.host, host.hostname, host.now, host.uid, host.user, host.home, host.python, host.salt) == (
        *("gpu1", "gpu1", 1795386000.0, 0, "root", "/root", "3.11.2", "ab"),
    )
    assert (host.config_dir, host.state_dir, host.folder_problem) == ("/etc/vmreconcile", "/var/lib/vmreconcile", None)
    assert host.systemd == Systemd(version=252, scope="system")
    assert host.ports == (PortHolder(port=8001, pid=812, user="root", what="vllm serve …", slug="qwen2.5-7b"),)
    assert host.vllm == (InstalledVllm(asked="", path="/usr/local/bin/vllm", version="0.32.0"),)
    assert host.gpus == (
        Gpu(
            index=0,
            uuid="GPU-…",
            name="NVIDIA H100",
            memory_total=0,
            memory_used=0,
            memory_free=0,
            processes=((1, 0),),
            pci="0000:c1:00.0",
            compute_mode="default",
            ecc_errors=0,
            xids=(31,),
        ),
    )
    assert (host.gpu_driver, host.gpu_cuda, host.gpu_problem) == ("595.71", "13.2", None)
    assert host.strangers == (
        Stranger(host="gpu1", pid=4711, port=9000, what="vllm serve …", user="alice", why="no marker of ours"),
    )


def test_orphans_of_ours_are_named() -> None:
    """Those of nobody beside those of a server."""
    assert view(example()).orphans == (
        Orphan(host="gpu1", pid=900, title="VLLM::EngineCore", server="qwen2.5-7b"),
        Orphan(host="gpu1", pid=4712, title="VLLM::EngineCore", gpu_memory_bytes=78978744320),
    )


def test_the_pages_example_of_a_server() -> None:
    """Every part of it."""
    server = view(example()).server("qwen2.5-7b")
    process, unit, env_file = server.process, server.unit, server.env_file
    assert process is not None
    assert (process.pid, process.start_ticks, process.started_at, process.ports) == (812, 8231, 1795380000.1, (8001,))
    assert process.argv == ("/opt/vllm/bin/python", "/opt/vllm/bin/vllm", "serve", "…")
    assert process.env["VLLM_LOGGING_LEVEL"] == EnvValue(fingerprint="9f3a5c0e7d1b2468", value="INFO")
    assert process.env["HF_TOKEN"].value is None
    worker = Worker(pid=900, start_ticks=8300, title="VLLM::EngineCore")
    assert (process.children, server.orphans) == ((worker,), (worker,))
    assert unit is not None
    assert (unit.active, unit.sub, unit.enabled, unit.restarts, unit.exit_code, unit.needs_reload) == (
        *("active", "running", "enabled", 0, None, False),
    )
    assert unit.drop_ins == ("/etc/systemd/system/….d/x.conf",)
    assert env_file is not None
    assert (env_file.mode, env_file.uid, env_file.env["KEY"].fingerprint) == (0o600, 0, "c4e81f09a7b6d532")
    assert server.endpoint == Endpoint(
        port=8001,
        health=200,
        version="0.32.0",
        models=("…",),
        max_model_len=8192,
        requests_running=0.0,
        requests_waiting=0.0,
        cache_config={"gpu_memory_utilization": "0.92"},
    )
    assert server.record == Record(server="qwen2.5-7b", runtime="systemd", pid=812, state="running", env_names=("A",))
    assert server.problems == ("/var/lib/vmreconcile/servers/….json: not JSON",)
    assert (server.runtime, server.log_path) == ("systemd", "/var/lib/vmreconcile/log/….log")


def test_what_is_not_there_is_nothing() -> None:
    """A format alone is a host of which nothing is known."""
    host = view({"format": FORMAT})
    assert (host.servers, host.strangers, host.gpus, host.systemd.version) == ((), (), (), None)
    assert host.server("m").process is None
    assert host.installed("").path is None


@pytest.mark.parametrize("observation", [None, {}, [], "x", {"format": 2}, {"format": "1"}, {"format": True}])
def test_another_format_is_an_unreachable_host(observation: JsonValue) -> None:
    """Said so, rather than taken for an empty host."""
    with pytest.raises(UnreachableError, match="format"):
        view(observation)


@given(data=st.data())
def test_anything_else_is_no_fault(data: st.DataObject) -> None:
    """Any value at any place of an answer: a view, and a plan from it; the agent is believed in nothing."""
    node: JsonValue = (whole := example())
    for _ in range(data.draw(st.integers(0, 5))):
        keys: list[str] | list[int] = list(node) if isinstance(node, dict) else list(range(len(node)))  # type: ignore[arg-type]
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        deeper = node[key]  # type: ignore[index,call-overload]
        if not isinstance(deeper, dict | list) or data.draw(st.booleans()):
            node[key] = data.draw(json_values)  # type: ignore[index,call-overload]
            break
        node = deeper
    try:
        host = view(whole)
    except UnreachableError:
        return
    there = world(wanted("qwen2.5-7b@gpu1"))
    for desired in (there.desired, DesiredFleet()):
        make_plan(desired, FleetView(hosts=(host,)), Options(known=known(), prune=True))


@given(value=json_values)
def test_facts_are_of_their_kind(value: JsonValue) -> None:
    """Each reader gives its own type, whatever is there."""
    facts = Facts({"x": value})
    assert isinstance(facts.text("x"), str)
    assert isinstance(facts.integer("x"), int)
    assert isinstance(facts.number("x"), float)
    assert isinstance(facts.flag("x"), bool)
    assert all(type(item) is int for item in facts.integers("x"))
    assert all(isinstance(item, str) for item in (*facts.texts("x"), *facts.strings("x").values()))
    assert facts.maybe_text("x") is None or isinstance(value, str)
