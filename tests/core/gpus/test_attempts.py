"""A failed start as it is looked at for mending: what its GPUs still give, and what was left to the tool."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.worlds import wanted
from vmreconcile.core.gpus.attempts import attempt_of, is_about_given_bytes, left_to_us, mended
from vmreconcile.core.gpus.mending import Mend
from vmreconcile.core.placing import tenant_on
from vmreconcile.model.gpus import Figures, Gpu, Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, InstalledVllm, ObservedServer, Phase, Process
from vmreconcile.model.plan import Action, Change, Gate, Reason
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.shortage import Lack

GIB = 1 << 30
MIB = 1 << 20
H100, L40S = 81559 * MIB, 46068 * MIB
LARGE, SMALL = ("GPU-0", "NVIDIA H100 80GB HBM3", H100), ("GPU-1", "NVIDIA L40S", L40S)


def host(free: tuple[float, float] = (70.0, 40.0), **fields: object) -> HostView:
    """A host with a large and a small GPU, so many GiB of each free."""
    gpus = tuple(
        Gpu(
            index=at,
            uuid=uuid,
            name=name,
            memory_total=total,
            memory_used=total - round(gib * GIB),
            memory_free=round(gib * GIB),
        )
        for at, ((uuid, name, total), gib) in enumerate(zip((LARGE, SMALL), free, strict=True))
    )
    seen = HostView(
        host="h1", now=0.0, boot_id="b", uid=0, user="root", config_dir="/etc/v", state_dir="/var/v", gpus=gpus,
        vllm=(InstalledVllm(asked="", path="/opt/vllm", version="0.32.0"),),
    )  # fmt: skip
    return replace(seen, **fields)  # type: ignore[arg-type]  # fields of HostView


def later(name: str, uuid: str, gib: float, action: Action = Action.START) -> Change:
    """A change that is still to be carried out."""
    return Change(
        server=ServerId.parse(f"{name}@h1"),
        action=action,
        reason=Reason.ABSENT,
        phase=Phase.ABSENT,
        disruptive=action is Action.RETUNE,
        gate=Gate(address="127.0.0.1", port=1, timeout=1.0, completion=True),
        placed=Placed(devices=("GPU-9", uuid), requested=(1, round(gib * GIB))),
    )


def test_the_tightest_gpu_counts() -> None:
    """Of a group over two kinds: the total of the smaller, the room of the fuller, CUDA's own share taken off."""
    settings: dict[str, JsonValue] = {"gpu_memory_utilization": 0.3}
    least = Figures(beside=1, kv_bytes=2)
    placed = Placed(devices=("GPU-0", "GPU-1"), settings=settings, least=least)
    found = attempt_of(tenant_on(wanted(), host()), placed, host((20.0, 40.0)), ())
    assert found is not None
    assert (found.share, found.least) == (0.3, least)
    assert found.room == round(19.5 * GIB)
    assert found.total < L40S
    alone = attempt_of(tenant_on(wanted(), host()), Placed(devices=("GPU-0",)), host(), ())
    assert alone is not None
    assert (alone.share, alone.total > L40S) == (0.92, True)


def test_what_others_are_still_to_get_is_not_free() -> None:
    """Those on the same GPU that are to start; what one of them holds now, it gives up first."""
    placed, tenant = Placed(devices=("GPU-0",)), tenant_on(wanted(), host())

    def room(seen: HostView, *changes: Change) -> float:
        found = attempt_of(tenant, placed, seen, changes)
        assert found is not None
        return found.room / GIB

    assert room(host(), later("n", "GPU-0", 20.0)) == pytest.approx(70.0 - 0.5 - 20.5)
    assert room(host(), later("n", "GPU-1", 20.0)) == pytest.approx(69.5)
    assert room(host(), later("n", "GPU-0", 20.0, Action.NOOP)) == pytest.approx(69.5)
    seen = host()
    holding = replace(seen.gpus[0], processes=((7, 15 * GIB),))
    process = Process(pid=7, start_ticks=1, started_at=0.0, argv=())
    seen = replace(seen, gpus=(holding, seen.gpus[1]), servers=(ObservedServer(slug="n", process=process),))
    assert room(seen, later("n", "GPU-0", 20.0, Action.RETUNE)) == pytest.approx(70.0 - 0.5 - 5.5)


def test_a_gpu_that_is_not_seen_tells_nothing() -> None:
    """Nor does a server without one."""
    tenant = tenant_on(wanted(), host())
    assert attempt_of(tenant, Placed(devices=("GPU-0", "GPU-7")), host(), ()) is None
    assert attempt_of(tenant, Placed(), host(), ()) is None


@pytest.mark.parametrize(
    ("args", "open_numbers"),
    [
        ({}, {"gpu_memory_utilization"}),
        ({"gpu_memory_utilization": 0.5}, set()),
        ({"max_model_len": "auto"}, {"gpu_memory_utilization", "max_model_len"}),
        ({"max_model_len": 4096, "gpu_memory_utilization": 0.5}, set()),
    ],
)
def test_what_was_left_to_the_tool(args: dict[str, JsonValue], open_numbers: set[str]) -> None:
    """What nobody wrote; a context only where `auto` was."""
    assert left_to_us(tenant_on(wanted(args=args), host())) == open_numbers


def test_a_written_size_of_the_kv_cache() -> None:
    """No share changes that; what vLLM asks for at first is another matter."""
    tenant = tenant_on(wanted(args={"kv_cache_memory_bytes": GIB}), host())
    assert is_about_given_bytes(tenant, Lack.NO_KV)
    assert not is_about_given_bytes(tenant, Lack.USED)
    assert not is_about_given_bytes(tenant_on(wanted(), host()), Lack.NO_KV)


def test_what_is_decided_then() -> None:
    """The number, what it asks of each GPU, and why, in the place of the former reason."""
    settings: dict[str, JsonValue] = {"gpu_memory_utilization": 0.2, "max_model_len": 4096}
    placed = Placed(
        devices=("GPU-0", "GPU-1"),
        settings=settings,
        requested=(1, 1),
        reasons=("GPU 0, alone: free", "gpu_memory_utilization 0.2: shared", "max_model_len 4096: the longest"),
    )
    found = mended(placed, Mend(settings={"gpu_memory_utilization": 0.5}, why="more"), host())
    assert found.settings == {"gpu_memory_utilization": 0.5, "max_model_len": 4096}
    assert found.requested[0] > found.requested[1] > 20 * GIB
    assert found.reasons == (
        "GPU 0, alone: free", "max_model_len 4096: the longest", "gpu_memory_utilization 0.5: more",
    )  # fmt: skip
    shorter = mended(placed, Mend(settings={"max_model_len": 2048}, why="less"), host())
    assert shorter.requested == placed.requested
    assert mended(placed, Mend(), host()) is placed
