"""Asks the Hub, in parallel, each question once: what was allowed within the hour is not asked again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vmreconcile.core.access import Asker, offline
from vmreconcile.effects.access_cache import AccessCache, cache_folder
from vmreconcile.effects.hub import Asking, ask
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.errors import VmreconcileError
from vmreconcile.model.access import Access, Question, Verdict
from vmreconcile.model.secret import Secret
from vmreconcile.vllm.memory.stored import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """The Hub as this run asks it: with these tokens by source, in this environment."""

    options: TransportOptions
    secrets: Mapping[str, Secret] = field(default_factory=dict, repr=False)
    asking: Asking = ask
    forks: int = 20
    """Questions at a time."""
    files: dict[Question, Checkpoint | VmreconcileError] = field(default_factory=dict, repr=False, compare=False)
    """What came of asking for a model's files in this run."""

    @property
    def asker(self) -> Asker:
        """What decides which questions there are."""
        return Asker(environ=self.options.environ, sources=frozenset(self.secrets))

    @property
    def offline(self) -> bool:
        """Whether the controller's environment forbids asking."""
        return offline(self.options.environ)

    def verdicts(self, questions: Iterable[Question], *, fresh: bool = False) -> dict[Question, Verdict]:
        """Every question with its verdict; `fresh` asks also what was allowed within the hour.

        The first question to each endpoint goes alone: where it cannot be reached, the others are not asked.
        """
        cache = AccessCache(cache_folder(self.options.environ, self.options.home))
        found: dict[Question, Verdict] = {}
        waiting: dict[str, list[Question]] = {}
        for question in sorted(set(questions)):
            kept = None if fresh else cache.allowed(question, self._token(question))
            if kept is not None:
                found[question] = kept
            else:
                waiting.setdefault(question.endpoint, []).append(question)
        asked = self._asked([row[0] for row in waiting.values()])
        rest: list[Question] = []
        for row in waiting.values():
            first = asked[row[0]]
            if first.access is Access.HUB_UNREACHABLE:
                found.update(dict.fromkeys(row, first))
            else:
                rest += row[1:]
        asked |= self._asked(rest)
        for question, verdict in asked.items():
            found[question] = verdict
            if verdict.access is Access.OK:
                cache.keep(question, self._token(question), verdict)
        if asked:
            cache.save()
        return found

    def _asked(self, questions: list[Question]) -> dict[Question, Verdict]:
        found: dict[Question, Verdict] = {}
        for question, verdict in for_each(questions, lambda each: self.asking(each, self._token(each)), self.forks):
            if isinstance(verdict, Exception):
                raise verdict
            found[question] = verdict
        return found

    def _token(self, question: Question) -> Secret | None:
        return self.secrets.get(question.source)
