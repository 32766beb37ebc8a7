"""The inventory's `vllm_*` variables, by the same rules as a model's keys, each variable once. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from vmreconcile.core.checks.arguments import check_arguments
from vmreconcile.core.checks.environment import check_environment
from vmreconcile.core.checks.shape import Shape
from vmreconcile.core.checks.source import Finding, Variable
from vmreconcile.core.checks.text import check_texts
from vmreconcile.core.checks.tokens import check_conflicts, check_name, check_sources
from vmreconcile.core.connection import connection_of, unusable
from vmreconcile.core.token_sources import VARIABLE, source_names
from vmreconcile.errors import Diagnostic, InputError, Severity
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.showing import shown
from vmreconcile.model.values import Setting
from vmreconcile.vllm.catalogue import Catalogue

OURS = (
    "vllm_args",
    "vllm_env",
    "vllm_cordon",
    "vllm_cordoned_gpus",
    "vllm_executable",
    "vllm_hf_token",
    "vllm_max_unavailable",
    "vllm_runtime",
    "vllm_state_dir",
    "vllm_token_delivery",
    "vllm_token_sources",
)
_PREFIX = "vllm_"


def check_variables(inventory: Inventory, shape: Shape, catalogue: Catalogue) -> Iterator[Diagnostic]:
    """Everything wrong with variables that we use, of every host, what hosts share once."""
    seen: set[int] = set()
    names = source_names(inventory)
    yield from check_conflicts(inventory)
    for host in inventory.hosts.values():
        for name, setting in host.variables.items():
            if name.startswith(_PREFIX) and id(setting) not in seen:
                seen.add(id(setting))
                if name == "vllm_hf_token":
                    source = Variable(setting=setting)
                    yield from (found.located(source) for found in check_name(setting.value, (name,), names))
                yield from _check_variable(name, setting, shape, catalogue)
        try:
            connection_of(host)
        except InputError as error:
            yield from error.diagnostics


def _check_variable(name: str, setting: Setting, shape: Shape, catalogue: Catalogue) -> Iterator[Diagnostic]:
    source = Variable(setting=setting)
    if name not in OURS:
        near = difflib.get_close_matches(name, OURS, n=1, cutoff=0.8)
        if near:
            yield Finding(
                path=(name,),
                code="unknown-variable",
                summary=f"{shown(name)} is no variable of vmreconcile.",
                why="It begins like one, and has no effect.",
                remedy="Correct it, if it was meant for vmreconcile.",
                suggestion=near[0],
                severity=Severity.WARNING,
            ).located(source)
        return
    problem = unusable(name, setting)
    if problem is not None:
        yield problem
        return
    findings = [*shape.check({name: setting.value}), *check_texts(setting.value, (name,), verbatim=name in OURS[:2])]
    if isinstance(setting.value, dict):
        if name == "vllm_args":
            findings += check_arguments(setting.value, (name,), catalogue)
        elif name == "vllm_env":
            findings += check_environment(setting.value, (name,))
        elif name == VARIABLE:
            findings += check_sources(setting.value, (name,))
    for finding in findings:
        yield finding.located(source)
