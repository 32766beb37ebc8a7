"""Troubleshooting's verdicts on hosts that the laboratory's are not: users' units, limits, clocks, drivers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.worlds import known, wanted, world
from vmreconcile.core.checkup.engine import gpu_checks
from vmreconcile.core.checkup.ground import ground_checks
from vmreconcile.core.checkup.limits import limit_checks
from vmreconcile.core.checkup.others import other_checks
from vmreconcile.core.checkup.patient import Patient
from vmreconcile.core.checkup.servers import server_checks
from vmreconcile.model.checkup import Check, Clock, Health, HostFacts, Leftover, Limit, Limits, Times
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.observed import Phase


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


def test_gpus_that_are_passed_over_or_taken_last_are_told() -> None:
    """A split one is well, as are its instances, each by its number; what is closed, broken or suspect is a warning."""
    host = FakeHost("h1", gpus=5)
    host.kernel.gpus.split(0, [("3g.40gb", 39.0), ("3g.40gb", 39.0)])
    closed, broken, grave, counted = host.kernel.gpus.whole()[1:]
    closed.compute_mode, broken.remapping_failed, grave.xids, counted.ecc_errors = "prohibited", True, [13, 79], 2
    checks = [check for check in gpu_checks(patient(host=host)) if check.check == "gpu"]
    assert [check.status for check in checks] == [*[Health.OK] * 3, *[Health.WARN] * 4]
    assert checks[0].summary.endswith("; split into instances (MIG)")
    assert [check.summary.partition(":")[0] for check in checks[1:4]] == [
        "GPU 0 instance 0",
        "GPU 0 instance 1",
        "GPU 1",
    ]
    assert [check.summary.rpartition("; ")[2] for check in checks[3:]] == [
        "it is closed to programs (compute mode prohibited)",
        "it has memory that could not be remapped",
        "the driver's errors (Xid) 79",
        "2 uncorrected memory errors",
    ]
    assert all(check.remedy for check in checks[3:])
