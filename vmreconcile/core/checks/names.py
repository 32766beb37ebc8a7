"""Names of models: no two files use one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmreconcile.core.checks.source import Finding
from vmreconcile.errors import Diagnostic
from vmreconcile.model.document import Document
from vmreconcile.model.showing import shown


def check_names(documents: Sequence[Document]) -> Iterator[Diagnostic]:
    """Each file whose name an earlier file has. What a file is called is free."""
    first: dict[str, Document] = {}
    for document in documents:
        name = document.get("name")
        if not isinstance(name, str):
            continue
        known = first.setdefault(name, document)
        if known is not document:
            yield Finding(
                path=("name",),
                code="name-taken",
                summary=f"Two models are called {shown(name)}.",
                why=f"The other one: {known.place('name')}. A name says which server is whose.",
                remedy="Rename one of them; renaming a model that runs replaces its servers.",
            ).located(document)
