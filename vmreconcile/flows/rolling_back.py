"""`rollback`: a kept revision becomes what is wanted for one run, which then goes the way of every apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vmreconcile.core.planning import subject_of
from vmreconcile.core.revisions import changed_fields, is_running, kept_of
from vmreconcile.core.reviving import as_wanted, executable_of, other_version
from vmreconcile.effects.looks import Look
from vmreconcile.errors import UnreachableError, UsageError, VmreconcileError
from vmreconcile.flows.histories import History
from vmreconcile.flows.prepare import Prepared
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView
from vmreconcile.model.plan import Field
from vmreconcile.model.revision import Revision

DECIDED_BY_FILES = frozenset({"gpus"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, the revision that it is to go back to, and how that differs from what the files say today.

    `fields` have the files' value as `before`, with its origin, and the revision's as `after`.
    """

    wanted: DesiredServer
    revision: Revision
    fields: tuple[Field, ...] = ()
    version: str = ""
    """The vLLM that is installed now, where it is another than the revision's own."""


def chosen(history: History, number: int | None) -> Revision:
    """The revision to go back to: that `number`, or the newest good one that is not what runs.

    Raises:
        UsageError: there is no such revision, or it was no good.
        VmreconcileError: there is none at all, or they cannot be read.
    """
    remedy = f"vmreconcile history {history.server} lists what there is"
    if history.problem:
        raise VmreconcileError(f"the history of {history.server} cannot be read: {history.problem}", remedy=remedy)
    if number is None:
        for each in reversed(history.revisions):
            if each.good and not is_running(each.kept, history.observed):
                return each
        raise VmreconcileError(f"no good revision of {history.server} is kept but what runs", remedy=remedy)
    found = next((each for each in history.revisions if each.number == number), None)
    if found is None:
        raise UsageError(f"{history.server} has no revision {number}", remedy=remedy)
    if not found.good:
        raise UsageError(f"revision {number} of {history.server} never was ready ({found.kind})", remedy=remedy)
    return found


def wanted_back(revisions: Mapping[ServerId, Revision], prepared: Prepared) -> tuple[Prepared, tuple[Target, ...]]:
    """The run in which these servers are wanted as they were then. A host that was lost keeps what the files say.

    Raises:
        CannotGoBackError: one cannot be brought back.
    """
    prepared = _looking_for(revisions, prepared)
    wanted = {server.id: server for server in prepared.inputs.desired.servers}
    targets = []
    for server, revision in sorted(revisions.items()):
        try:
            host = prepared.fleet.observe_host(server.host, server.slug, gpus=True)
        except UnreachableError:
            continue
        target = Target(
            wanted=as_wanted(revision, wanted[server], host),
            revision=revision,
            fields=_unlike_files(revision, wanted[server], host, prepared),
            version=other_version(revision, host),
        )
        targets.append(target)
    wanted |= {target.wanted.id: target.wanted for target in targets}
    desired = replace(prepared.inputs.desired, servers=tuple(wanted.values()))
    return replace(prepared, inputs=replace(prepared.inputs, desired=desired)), tuple(targets)


def _looking_for(revisions: Mapping[ServerId, Revision], prepared: Prepared) -> Prepared:
    """With the programs and ports of the revisions looked for; the sessions stay those that are open."""
    looks = dict(prepared.fleet.looks)
    for server, revision in revisions.items():
        look = looks.get(server.host, Look())
        looks[server.host] = replace(look, executables=tuple(sorted({*look.executables, executable_of(revision)})))
    return replace(prepared, fleet=replace(prepared.fleet, looks=looks))


def _unlike_files(revision: Revision, server: DesiredServer, host: HostView, prepared: Prepared) -> tuple[Field, ...]:
    """How the revision differs from what the files say; what they leave to the tool is no difference."""
    kept = kept_of(subject_of(server, host, prepared.known))
    left = {f"args.{name}" for name in revision.kept.decided if name not in server.settings}
    if revision.kept.placed is not None:
        left |= DECIDED_BY_FILES
    fields = changed_fields(revision.kept, kept, server)
    return tuple(replace(each, before=each.after, after=each.before) for each in fields if each.path not in left)
