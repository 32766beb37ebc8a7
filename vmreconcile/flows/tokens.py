"""The token sources that servers have, each read at most once a run, and only where the run needs tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmreconcile.core.selection import on_hosts
from vmreconcile.core.token_sources import token_sources
from vmreconcile.effects.token import TokenFound
from vmreconcile.effects.token_sources import Surroundings, read_source
from vmreconcile.errors import Diagnostic, InputError
from vmreconcile.flows.inputs import Inputs, refuse
from vmreconcile.model.desired import DesiredFleet, DesiredState
from vmreconcile.model.secret import Secret
from vmreconcile.model.tokens import DEFAULT_SOURCE, Need, TokenSource

NONE_HERE = "no Hugging Face token on this controller: tokens that hosts have are left as they are"


@dataclass(slots=True)
class TokenReader:
    """Reads sources in one person's surroundings, each once; one that failed has failed for the whole run."""

    environ: Mapping[str, str]
    home: Path
    ask: Callable[[str], str] | None = None
    _found: dict[TokenSource, TokenFound | InputError | None] = field(default_factory=dict, repr=False)

    def read(self, source: TokenSource) -> TokenFound | None:
        """The token of a source; None where the Hub's own places hold none.

        Raises:
            InputError: the source gives no token.
        """
        if source not in self._found:
            try:
                self._found[source] = read_source(
                    source, Surroundings(environ=self.environ, home=self.home, ask=self.ask)
                )
            except InputError as error:
                self._found[source] = error
        found = self._found[source]
        if isinstance(found, InputError):
            raise found
        return found


def sources_in_use(desired: DesiredFleet, hosts: Iterable[str]) -> tuple[str, ...]:
    """The names of the sources that servers on these hosts have; a server that is to go needs none."""
    wanted = (server for server in on_hosts(desired, hosts).servers if server.state is not DesiredState.ABSENT)
    return tuple(sorted({server.token for server in wanted if server.token}))


def read_tokens(
    inputs: Inputs, names: Iterable[str], reader: TokenReader
) -> tuple[dict[str, TokenFound | None], tuple[Diagnostic, ...]]:
    """What each source gives, without those that fail; and why these do."""
    sources = token_sources(inputs.inventory)
    found: dict[str, TokenFound | None] = {}
    problems: list[Diagnostic] = []
    for name in names:
        try:
            found[name] = reader.read(sources[name])
        except InputError as error:
            problems += error.diagnostics
    return found, tuple(problems)


def find_tokens(inputs: Inputs, names: Iterable[str], reader: TokenReader) -> dict[str, TokenFound | None]:
    """What each source gives; None where the Hub's own places hold no token.

    Raises:
        InputError: with every source that fails.
    """
    found, problems = read_tokens(inputs, names, reader)
    refuse(problems)
    return found


def secrets_for(
    inputs: Inputs, hosts: Iterable[str], reader: TokenReader, need: Need
) -> tuple[dict[str, Secret], tuple[str, ...]]:
    """The token of each source that some server on these hosts has, and what the person should know about them.

    Raises:
        InputError: a source fails, and the run needs its token.
    """
    if need is Need.NONE:
        return {}, ()
    found, problems = read_tokens(inputs, sources_in_use(inputs.desired, hosts), reader)
    secrets = {name: token.secret for name, token in found.items() if token}
    if need is Need.COMPARED:
        notes = [f"{problem.summary} ({problem.place}): what hosts have of it is not compared" for problem in problems]
        return secrets, tuple(notes)
    refuse(problems)
    notes = [text for token in found.values() if token for text in token.warnings]
    if found.get(DEFAULT_SOURCE, True) is None:
        notes.append(NONE_HERE)
    return secrets, tuple(notes)
