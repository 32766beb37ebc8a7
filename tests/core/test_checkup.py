"""Troubleshooting's verdicts on hosts that the laboratory's are not: users' units, limits, clocks, drivers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.gpu_views import card, seen
from tests.lab.worlds import known, wanted, world
from vmreconcile.core.checkup.gpus import gpu_checks
from vmreconcile.core.checkup.ground import ground_checks
from vmreconcile.core.checkup.limits import limit_checks
from vmreconcile.core.checkup.others import other_checks
from vmreconcile.core.checkup.patient import Patient
from vmreconcile.core.checkup.servers import server_checks
from vmreconcile.core.gpus.ground import GRAVE_XIDS
from vmreconcile.model.checkup import Check, Clock, Health, HostFacts, Leftover, Limit, Limits, Times
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.gpus import Gpu
from vmreconcile.model.observed import Phase
from vmreconcile.vllm.memory.sizes import GIB


def patient(
    *servers: DesiredServer, host: FakeHost | None = None, facts: HostFacts | None = None, clock: Clock | None = None
) -> Patient:
    """A host as it is seen, and what is wanted there."""
    (view,) = world(*servers, hosts=[host or FakeHost("h1")]).observe().hosts
    return Patient(host=view, facts=facts or HostFacts(), known=known(), wanted=servers, clock=clock)


def called(name: str, checks: tuple[Check, ...]) -> Check:
    """The one check of a name."""
    (check,) = [check for check in checks if check.check == name]
    return check


def ground(patient: Patient) -> tuple[Check, ...]:
    """What vmreconcile stands on."""
    return tuple(ground_checks(patient))


def limits(patient: Patient) -> tuple[Check, ...]:
    """Open files and processes."""
    return tuple(limit_checks(patient))


def test_lingering_matters_for_the_units_of_a_user() -> None:
    """Root's need none, nor does runtime process."""
    user = FakeHost("h1", uid=1000)
    ends = called("lingering", ground(patient(host=user)))
    assert (ends.status, "enable-linger op" in ends.remedy) == (Health.WARN, True)
    user.lingering = True
    stays = called("lingering", ground(patient(host=user)))
    assert (stays.status, stays.summary, stays.remedy) == (Health.OK, "units of op outlive the login", "")
    user.lingering = False
    for well in (patient(wanted(runtime="process"), host=user), patient()):
        assert called("lingering", ground(well)).status is Health.OK


def test_a_runtime_that_a_host_has_not() -> None:
    """Fails where a server asks for it; a host that may choose takes another."""
    bare = FakeHost("h1", systemd=None)
    asked = called("runtime", ground(patient(wanted(runtime="systemd"), host=bare)))
    assert (asked.status, asked.summary) == (Health.FAIL, "runtime systemd: systemd does not run this host")
    assert "vllm_runtime: process" in asked.remedy
    assert called("runtime", ground(patient(wanted(), host=bare))).summary == "runtime process"


@pytest.mark.parametrize(
    ("clock", "status", "words"),
    [
        (Clock(offset=0.01, tolerance=0.02), Health.OK, "the clock agrees with the one here (± 0.02 s)"),
        (Clock(offset=-12.5, tolerance=0.02), Health.OK, "12.50 s behind the clock here (± 0.02 s)"),
        (Clock(offset=31, tolerance=0.5), Health.WARN, "31.00 s ahead of the clock here (± 0.50 s)"),
        (Clock(offset=31, tolerance=2), Health.OK, "31.00 s ahead of the clock here (± 2.00 s)"),
    ],
)
def test_a_clock_is_off_only_where_that_is_certain(clock: Clock, status: Health, words: str) -> None:
    """What the question's way may hide is no fault."""
    check = called("clock", ground(patient(clock=clock)))
    assert (check.status, check.summary) == (status, words)


@pytest.mark.parametrize("off", [-90.0, 0.0, 90.0])
@pytest.mark.parametrize(("there", "busy", "back"), [(0.1, 0.0, 0.1), (0.1, 20.0, 0.1), (3.0, 5.0, 0.0)])
def test_measuring_a_clock(off: float, there: float, busy: float, back: float) -> None:
    """However long the host is busy, and however lopsided the way is, the truth is within the tolerance."""
    received = 1000.0 + there + off
    clock = Clock.measured(1000.0, 1000.0 + there + busy + back, Times(received=received, answered=received + busy))
    assert abs(clock.offset - off) <= clock.tolerance + 1e-6
    assert clock.tolerance == pytest.approx((there + back) / 2)


def few(soft: int, hard: int, processes: int = 100_000) -> Limits:
    """What a process hands on."""
    return Limits(open_files=Limit(soft=soft, hard=hard), processes=Limit(soft=processes, hard=processes))


def test_a_unit_gets_what_it_asks_for_whatever_the_login_has() -> None:
    """Root's units of systemd's; a container's systemd may not give it."""
    facts = HostFacts(login=few(256, 256), systemd=few(1024, 1 << 30))
    well = called("open files", limits(patient(facts=facts)))
    assert (well.status, well.summary) == (Health.OK, "systemd: 1048576 open files of 1048576 that a unit asks for")
    short = called("open files", limits(patient(facts=replace(facts, systemd=few(1024, 4096)))))
    assert (short.status, "systemd may give no more" in short.summary) == (Health.WARN, True)
    assert called("open files", limits(patient(facts=replace(facts, systemd=few(1024, -1))))).status is Health.OK


def test_a_users_units_get_what_their_manager_has() -> None:
    """Where it does not run, nothing is claimed."""
    user = FakeHost("h1", uid=1000)
    facts = HostFacts(login=few(-1, -1), systemd=few(1024, 20_000, processes=1000))
    files, processes = limits(patient(host=user, facts=facts))
    assert (files.status, processes.status) == (Health.WARN, Health.WARN)
    assert "user@.service" in files.remedy
    assert "LimitNPROC=4096" in processes.remedy
    (unseen,) = limits(patient(host=user, facts=replace(facts, systemd=None)))
    assert (unseen.status, "cannot be seen" in unseen.summary) == (Health.SKIPPED, True)


def test_a_process_gets_what_the_login_has() -> None:
    """As far as it may raise it: vLLM does so itself."""
    user, server = FakeHost("h1", uid=1000), wanted(runtime="process")
    for login, status in ((few(1024, 65_535), Health.OK), (few(1024, -1), Health.OK), (few(4096, 20_000), Health.WARN)):
        check = called("open files", limits(patient(server, host=user, facts=HostFacts(login=login))))
        assert check.status is status
        assert ("limits.conf" in check.remedy) == (status is Health.WARN)
    short = called("processes", limits(patient(server, host=user, facts=HostFacts(login=few(-1, -1, processes=500)))))
    assert (short.status, short.summary) == (Health.WARN, "process: 500 processes and threads of op")
    root = called("processes", limits(patient(server, facts=HostFacts(login=few(-1, -1, processes=500)))))
    assert root.status is Health.OK


def test_ports_and_env_files_have_their_line() -> None:
    """Free, and not there yet; a server that is to go has none."""
    told = {
        check.check: check for check in server_checks(patient(wanted(), wanted("gone@h1", state=DesiredState.ABSENT)))
    }
    assert {name: check.status for name, check in told.items()} == {
        "port": Health.OK,
        "env file": Health.OK,
        "token": Health.OK,
        "server": Health.FAIL,
    }
    assert told["port"].summary == "port 8001 is free"
    assert told["env file"].summary == "none yet: its first start writes it"
    assert {check.server for check in told.values()} == {"m@h1"}


@pytest.mark.parametrize(
    ("phase", "status"), [(Phase.STOPPED, Health.OK), (Phase.ABSENT, Health.OK), (Phase.READY, Health.WARN)]
)
def test_a_server_that_is_to_be_stopped(phase: Phase, status: Health) -> None:
    """Is well where it does not run."""
    server = wanted(state=DesiredState.STOPPED)
    seen = replace(patient(server), phases={server.id: phase})
    check = called("server", tuple(server_checks(seen)))
    assert (check.status, check.summary) == (status, f"{phase}, and to be stopped")


def test_leftovers_are_told_by_folder() -> None:
    """With how much, how old, and four names."""
    left = tuple(Leftover(path=f"/dev/shm/psm_{n}", size=1 << 20, age=n * 3600.0) for n in range(1, 6))
    facts = HostFacts(leftovers=(*left, Leftover(path="/tmp/vllm_dist_a", size=0, age=3 * 86_400.0)))
    shared, temporary = [check for check in other_checks(patient(facts=facts)) if check.check == "leftover"]
    assert shared.summary == (
        "/dev/shm: 5 MiB that no process uses: psm_1, psm_2, psm_3, psm_4 and 1 more; up to 5 h old"
    )
    assert temporary.summary == "/tmp: 0 MiB that no process uses: vllm_dist_a; up to 3 d old"


def cards(*gpus: Gpu, problem: str | None = None, **fields: object) -> tuple[Check, ...]:
    """What is said of a host with these GPUs."""
    view = replace(patient().host, gpus=gpus, gpu_problem=problem, gpu_driver="595.71", gpu_cuda="13.2")
    return tuple(gpu_checks(replace(patient(), host=replace(view, **fields))))  # type: ignore[arg-type]


def told(checks: tuple[Check, ...], status: Health = Health.WARN) -> list[tuple[str, str]]:
    """Summaries and remedies of one outcome."""
    return [(check.summary, check.remedy) for check in checks if check.status is status]


def test_sound_gpus_have_one_line_each() -> None:
    """With what is free, and the driver; errors of programs (Xid 31) are none of the GPU's."""
    checks = cards(card(0), replace(card(1), xids=(13, 31), ecc_errors=0, compute_mode="exclusive_process"))
    assert [(check.status, check.summary) for check in checks] == [
        (Health.OK, f"GPU {index}: NVIDIA H100 80GB HBM3, 79.6 of 79.6 GiB free, driver 595.71 (CUDA 13.2)")
        for index in (0, 1)
    ]


def test_memory_that_is_not_told_is_not_told_as_none() -> None:
    """The whole of a split GPU, by an agent that is not root."""
    whole = replace(card(0), split=True, memory_total=0, memory_used=0, memory_free=0)
    line, *_ = cards(whole)
    assert line.summary == "GPU 0: NVIDIA H100 80GB HBM3, its memory is not told, driver 595.71 (CUDA 13.2)"


def test_a_lost_gpu_fails_beside_the_sound() -> None:
    """Its line first; a host without a driver is not ill, one whose driver is broken is."""
    checks = cards(card(0), problem="GPU 1 does not answer: GPU is lost")
    ((summary, remedy),) = told(checks, Health.FAIL)
    assert (summary, "reboot" in remedy) == ("GPU 1 does not answer: GPU is lost", True)
    assert len(told(checks, Health.OK)) == 1
    assert told(cards(problem="no NVIDIA driver on this host"), Health.OK)
    assert told(cards(problem="NVML: Driver/library version mismatch"), Health.FAIL)


def test_a_split_gpu_is_told_with_its_instances() -> None:
    """That it is split is well; that it has none is not. What ails it is said once."""
    whole = replace(card(0), split=True, xids=(79,))
    parts = [replace(card(0), uuid=f"MIG-{n}", parent=whole.uuid, instance=n, xids=(79,)) for n in range(2)]
    checks = cards(whole, *parts)
    well = [summary for summary, _ in told(checks, Health.OK)]
    assert well[1] == "GPU 0 is split (MIG): servers get its instances, 2 of them, never the whole"
    assert [line.split(":")[0] for line in well] == [
        "GPU 0",
        "GPU 0 is split (MIG)",
        "GPU 0 instance 0",
        "GPU 0 instance 1",
    ]
    assert len(told(checks)) == 1
    ((summary, remedy),) = told(cards(replace(card(0), split=True)))
    assert (summary, "-mig 0" in remedy) == ("GPU 0 is split (MIG): without instances", True)


@pytest.mark.parametrize(
    ("ill", "status", "words", "remedy"),
    [
        ({"compute_mode": "prohibited"}, Health.WARN, "closed to programs", "nvidia-smi -i 0 -c DEFAULT"),
        ({"remapping_failed": True}, Health.FAIL, "could not be remapped", "replaced"),
        ({"ecc_errors": 1200}, Health.WARN, "1,200 uncorrected memory errors", "--gpu-reset"),
        ({"xids": (31, 79, 48)}, Health.WARN, "Xid 79 (the GPU fell off the bus), Xid 48 (memory", "reset"),
    ],
)
def test_an_ill_gpu_has_a_line_and_a_remedy(ill: dict[str, object], status: Health, words: str, remedy: str) -> None:
    """Beside the one that it is there."""
    first, second = cards(replace(card(0), **ill))  # type: ignore[arg-type]
    assert (first.status, first.remedy, second.status) == (Health.OK, "", status)
    assert words in second.summary
    assert remedy in second.remedy


@pytest.mark.parametrize("number", sorted(GRAVE_XIDS))
def test_every_grave_error_has_words(number: int) -> None:
    """Its own, beside its number."""
    _, second = cards(replace(card(0), xids=(number,)))
    assert GRAVE_XIDS[number]
    assert f"Xid {number} ({GRAVE_XIDS[number]}) since boot" in second.summary


def test_memory_of_others_is_told_and_that_of_ours_is_not() -> None:
    """Whoever holds it is named; our server, its workers, and what a display holds are no trouble."""
    ours = seen("m", 812)
    lines = told(
        cards(
            replace(card(0, held={812: 60.0, 900: 4.0, 901: 2.0, 902: 1.0, 903: 0.5})),
            card(1, held={904: 0.1}),
            servers=(ours,),
            programs={900: "python train.py"},
        )
    )
    ((summary, remedy),) = lines
    assert summary == (
        "GPU 0: 7.5 GiB held by what is not ours: 4.0 GiB by pid 900 (not ours: python train.py); "
        "2.0 GiB by pid 901 (not ours); 1.0 GiB by pid 902 (not ours); 1 more"
    )
    assert "ask whose it is" in remedy
    hidden = replace(card(0), memory_used=8 * GIB, memory_free=card(0).memory_total - 8 * GIB)
    assert "processes that cannot be seen from here" in told(cards(hidden))[0][0]
