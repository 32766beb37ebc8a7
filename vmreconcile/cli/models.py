"""add, list, remove: model files written, shown and deleted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmreconcile.cli.agreement import Agreement
from vmreconcile.cli.oneoff import hosts_in_reach
from vmreconcile.cli.output import inputs_of, note, print_json, reach_of, sources_of
from vmreconcile.cli.plans import carry_out
from vmreconcile.cli.render_errors import diagnostics_text
from vmreconcile.cli.terminal import printable, style_for
from vmreconcile.core.listing import Listed, list_json, listed
from vmreconcile.core.reports import FORMAT_VERSION
from vmreconcile.core.selection import named_servers, on_hosts, with_state
from vmreconcile.effects.model_files import delete
from vmreconcile.effects.save import save_state
from vmreconcile.errors import InputError, Severity
from vmreconcile.flows.adding import NewModel, Shelf
from vmreconcile.flows.inputs import Inputs, hosts_of
from vmreconcile.flows.prepare import prepared
from vmreconcile.flows.reconcile import Scope
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.plan import Action, Plan
from vmreconcile.model.tokens import Need

if TYPE_CHECKING:
    import argparse

HEAD = ("NAME", "MODEL", "PORT", "HOSTS", "STATE", "PRIORITY", "GPU MEMORY", "MAX LEN", "TP")


def add(arguments: argparse.Namespace) -> int:
    """Write the file of a new model, wanted stopped; no host is touched.

    Raises:
        InputError: the model would not be valid beside what is there.
    """
    shelf = Shelf(sources_of(arguments), arguments.new_host)
    args = {
        "gpu_memory_utilization": arguments.gpu_memory,
        "max_model_len": arguments.max_len,
        "tensor_parallel_size": arguments.tensor_parallel,
    }
    model = NewModel(
        name=arguments.name,
        model=arguments.model,
        hosts=arguments.hosts or shelf.only_host(),
        port=arguments.port,
        priority=arguments.priority,
        args={name: value for name, value in args.items() if value is not None},
    )
    path, problems = shelf.add(model)
    if any(problem.severity is Severity.ERROR for problem in problems):
        raise InputError(tuple(replace(each, why=_unwritten(each.why, each.place.file, path)) for each in problems))
    if problems:
        note(diagnostics_text(problems, style_for(sys.stderr, no_color=arguments.no_color)))
    if shelf.new_host:
        note(f"{shelf.new_host.name} is in {shelf.new_host.path}")
    if arguments.json:
        print_json({"format_version": FORMAT_VERSION, "written": [str(path)]})
    else:
        print(f"wrote {path}\nNext: {arguments.program} start {model.name}")
    return 0


def _unwritten(why: str, file: str, path: Path) -> str:
    """A line of a file that was not written needs saying so."""
    return f"{why} The file was not written.".lstrip() if file == str(path) and not path.exists() else why


def list_models(arguments: argparse.Namespace) -> int:
    """What the files hold for the hosts of --limit, without a look at any host."""
    inputs = inputs_of(arguments)
    documents, desired = inputs.documents, inputs.desired
    if arguments.limit is not None:
        desired = on_hosts(desired, hosts_of(inputs.inventory, arguments.limit))
        names = {server.id.model for server in desired.servers}
        documents = tuple(document for document in documents if document.get("name") in names)
    models = listed(documents, desired)
    if arguments.json:
        print_json(list_json(models))
    elif models:
        print(_table(models))
    elif inputs.documents:
        note(f"no model is on the hosts of {arguments.limit}")
    else:
        note(f"no model in {arguments.models}; add one: {arguments.program} add NAME MODEL --port P")
    return 0


def _table(models: tuple[Listed, ...]) -> str:
    rows = [HEAD, *(_row(each) for each in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(each: Listed) -> tuple[str, ...]:
    hosts = each.hosts[0] if len(each.hosts) == 1 else f"{len(each.hosts)} hosts"
    cells = (each.name, each.model, each.port, hosts, each.state, each.priority, each.gpu_memory_utilization)
    return tuple(printable(str(cell)) for cell in (*cells, each.max_model_len or "model's", each.tensor_parallel_size))


def remove(arguments: argparse.Namespace) -> int:
    """Stop servers, remove what is ours of them from their hosts, and then the files of models named as a whole.

    `state: absent` is written before anything is done: whatever happens, the next apply goes on with it. A file is
    deleted only when nothing of its model is left anywhere.
    """
    inputs = inputs_of(arguments)
    idle = _without_servers(arguments.names, inputs)
    names = [name for name in arguments.names if name not in idle]
    code = 0
    if names:
        servers = named_servers(names, inputs.desired, wanted=None)
        hosts = hosts_in_reach(servers, inputs, arguments.limit)
        absent = replace(inputs, desired=with_state(inputs.desired, servers, DesiredState.ABSENT))
        with prepared(absent, reach_of(arguments, hosts, Need.NONE)) as ready:
            agreed = _Saving(Agreement(arguments, ready), names, inputs)
            code = carry_out(arguments, ready, Scope(only=servers, actions=frozenset({Action.REMOVE})), agreed)
    if code == 0:
        whole = {server.id.model for server in inputs.desired.servers} & set(names) | idle
        for document in inputs.documents:
            if document.get("name") in whole:
                delete(Path(document.path))
                note(f"deleted {document.file}")
    elif names and agreed.said_yes:
        note("state: absent stays in the model's file: apply goes on from there")
    return code


def _without_servers(names: list[str], inputs: Inputs) -> set[str]:
    """The models named whose files want no server anywhere."""
    models = {str(document.get("name")) for document in inputs.documents}
    return {name for name in names if name in models - {server.id.model for server in inputs.desired.servers}}


class _Saving:
    """Writes `state: absent` as soon as the removal is agreed to."""

    def __init__(self, agreement: Agreement, names: list[str], inputs: Inputs) -> None:
        self._agreement = agreement
        self._names = names
        self._inputs = inputs
        self.said_yes = False

    def __call__(self, plan: Plan) -> Plan | None:
        approved = self._agreement(plan)
        if approved is not None:
            self.said_yes = True
            for path in save_state(self._inputs.documents, self._names, self._inputs.desired, DesiredState.ABSENT):
                note(f"wrote state: absent to {path}")
        return approved
