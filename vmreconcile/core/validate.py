"""Every problem of a set of models over an inventory, at once and in order. Pure: reads no file and no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vmreconcile.core.checks.arguments import check_arguments
from vmreconcile.core.checks.environment import check_environment
from vmreconcile.core.checks.gpus import ASKED
from vmreconcile.core.checks.hosts import check_hosts
from vmreconcile.core.checks.names import check_names
from vmreconcile.core.checks.ports import check_ports
from vmreconcile.core.checks.sense import check_sense
from vmreconcile.core.checks.shape import Shape
from vmreconcile.core.checks.source import Finding
from vmreconcile.core.checks.stacks import Stacks
from vmreconcile.core.checks.text import check_texts
from vmreconcile.core.checks.tokens import check_name
from vmreconcile.core.checks.variables import check_variables
from vmreconcile.core.placement import Placement
from vmreconcile.core.token_sources import source_names
from vmreconcile.errors import Diagnostic, Place, Severity
from vmreconcile.model.document import Document
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import Catalogue

MODEL_SCHEMA = "model.schema.json"
VARIABLES_SCHEMA = "host-vars.schema.json"

Schemas = Mapping[str, Mapping[str, JsonValue]]


def validate(
    documents: Sequence[Document], inventory: Inventory, *, schemas: Schemas, catalogue: Catalogue
) -> tuple[Diagnostic, ...]:
    """Check everything, the documents' own problems included, sorted by place.

    `schemas` holds model.schema.json and host-vars.schema.json by file name. Raises nothing, whatever the files hold.
    """
    read = [document for document in documents if document.content is not None]
    placement = Placement(inventory)
    shape = Shape(schemas[MODEL_SCHEMA])
    found: list[Diagnostic] = [problem for document in documents for problem in document.problems]
    told = {problem.place for problem in found if problem.severity is Severity.ERROR}
    names = source_names(inventory)
    stacks = Stacks(placement, catalogue, ASKED)
    for document in read:
        checked = (
            *_check_document(document, shape, placement, catalogue),
            *check_sense(document, stacks),
            *_check_tokens(document, names),
        )
        located = [finding.located(document) for finding in checked]
        found += _without_echoes(located, told)
    found += check_names(read)
    found += check_ports(read, placement)
    found += check_variables(inventory, Shape(schemas[VARIABLES_SCHEMA]), catalogue)
    return tuple(sorted(dict.fromkeys(found), key=_order))


def _check_document(document: Document, shape: Shape, placement: Placement, catalogue: Catalogue) -> Iterator[Finding]:
    content = document.get()
    if not isinstance(content, dict):
        return
    yield from shape.check(content)
    yield from check_texts(content, ())
    yield from check_hosts(document, placement)
    layers: list[tuple[tuple[str, ...], JsonValue]] = [((), content)]
    overrides = content.get("overrides")
    if isinstance(overrides, dict):
        layers += [(("overrides", key), layer) for key, layer in overrides.items()]
    for path, layer in layers:
        if isinstance(layer, dict):
            args, env = layer.get("args"), layer.get("env")
            if isinstance(args, dict):
                yield from check_arguments(args, (*path, "args"), catalogue)
            if isinstance(env, dict):
                yield from check_environment(env, (*path, "env"))


def _check_tokens(document: Document, names: frozenset[str]) -> Iterator[Finding]:
    yield from check_name(document.get("hf_token"), ("hf_token",), names)
    overrides = document.get("overrides")
    for key, layer in overrides.items() if isinstance(overrides, dict) else ():
        if isinstance(layer, dict):
            path = ("overrides", key, "hf_token")
            yield from check_name(layer.get("hf_token"), path, names)


def _without_echoes(found: Iterable[Diagnostic], told: set[Place]) -> Iterator[Diagnostic]:
    """Leave out what follows from a value that could not even be read, and the same sentence from two checks."""
    said: set[tuple[Place, str]] = set()
    for diagnostic in found:
        once = (diagnostic.place, diagnostic.summary)
        if diagnostic.place not in told and once not in said:
            said.add(once)
            yield diagnostic


def _order(diagnostic: Diagnostic) -> tuple[Place, str, str]:
    return (diagnostic.place, diagnostic.code, diagnostic.summary)
