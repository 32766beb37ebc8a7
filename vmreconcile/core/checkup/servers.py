"""Each server that is wanted: its port, its env file, the token that it gets, and whether it runs."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checkup.patient import Patient, judged, well
from vmreconcile.core.diff import OTHERS, drift_of, other_tokens
from vmreconcile.core.planning import subject_of
from vmreconcile.core.shadows import shadow_of, winning_tokens
from vmreconcile.model.checkup import Check, Health
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.observed import Phase


def server_checks(patient: Patient) -> Iterator[Check]:
    """One that is to go needs none of this."""
    for wanted in patient.wanted:
        if wanted.state is not DesiredState.ABSENT:
            yield _port(wanted, patient)
            yield _env_file(wanted, patient)
            yield from _token(wanted, patient)
            yield _server(wanted, patient)


def _port(wanted: DesiredServer, patient: Patient) -> Check:
    """Its own, free, or another's."""
    server = str(wanted.id)
    for holder in patient.host.ports:
        if holder.port == wanted.port and holder.slug != wanted.id.slug:
            whose = f"our server {holder.slug}" if holder.slug else "not ours"
            summary = f"port {holder.port} is held by pid {holder.pid or '?'}, {whose}: {holder.what}"
            remedy = "end it there, or give this server another port"
            return judged("port", good=False, summary=summary, remedy=remedy, server=server)
    own = any(holder.port == wanted.port for holder in patient.host.ports)
    return well("port", f"port {wanted.port} is {'its own' if own else 'free'}", server=server)


def _env_file(wanted: DesiredServer, patient: Patient) -> Check:
    """Nobody else's to read."""
    file, server = patient.host.server(wanted.id.slug).env_file, str(wanted.id)
    if file is None:
        return well("env file", "none yet: its first start writes it", server=server)
    if file.mode & OTHERS or file.uid != patient.host.uid:
        summary = f"{file.path} has mode {file.mode:04o} and owner {file.uid}: others may read its token"
        remedy = "vmreconcile apply writes it anew; renew the token if others were logged in"
        return judged("env file", good=False, summary=summary, remedy=remedy, server=server)
    summary = file.problem or f"{file.path}, mode {file.mode:04o}"
    return judged("env file", not file.problem, summary, "vmreconcile apply writes it anew", server=server)


def _token(wanted: DesiredServer, patient: Patient) -> Iterator[Check]:
    """Just what a plan says: another token in a unit or a drop-in, or a variable that comes from nowhere seen."""
    subject, server = subject_of(wanted, patient.host, patient.known), str(wanted.id)
    places, winning = other_tokens(subject), winning_tokens(subject)
    shadow = shadow_of(subject, drift_of(subject))
    if shadow is not None and not winning:
        yield judged("token", good=False, summary=shadow.note, remedy=shadow.remedy, server=server)
    for place in places:
        wins = place in winning
        what = "wins over the env file" if wins else "names another token than the env file, which wins"
        yield judged(
            "token",
            good=False,
            summary=f"{place} {what}",
            remedy=f"delete it in {place.path}, then systemctl daemon-reload and vmreconcile apply",
            bad=Health.FAIL if wins else Health.WARN,
            server=server,
        )
    if shadow is None and not places:
        summary = (
            "it is to have none, and nothing gives it one" if wanted.token is None else "nothing shadows its token"
        )
        yield well("token", summary, server=server)


def _server(wanted: DesiredServer, patient: Patient) -> Check:
    """Running, as wanted, or else why not."""
    server, phase, why = str(wanted.id), patient.phases.get(wanted.id, Phase.UNKNOWN), patient.why.get(wanted.id)
    remedy = f"vmreconcile plan, vmreconcile logs {wanted.id}"
    if wanted.state is not DesiredState.RUNNING:
        good = phase not in {Phase.READY, Phase.STARTING, Phase.UNHEALTHY}
        summary = f"{phase}, and to be {wanted.state}"
        return judged("server", good, summary, "vmreconcile plan", bad=Health.WARN, server=server)
    if why is not None:
        whence = "its log" if why.line else "seen"
        summary = f"{phase}: {why.summary} ({why.kind}); {whence}: {why.evidence}"
        return judged("server", good=False, summary=summary, remedy=why.remedy, server=server)
    bad = Health.WARN if phase in {Phase.ABSENT, Phase.STOPPED} else Health.FAIL
    return judged("server", phase in {Phase.READY, Phase.STARTING}, str(phase), remedy, bad=bad, server=server)
