"""The agent's answer to `checkup`, parsed into values; trusts none of it."""

from __future__ import annotations

from vmreconcile.effects.facts import Facts
from vmreconcile.model.checkup import Cache, Disk, HostFacts, Leftover, Limit, Limits, Reached, Times
from vmreconcile.model.values import JsonValue


def host_facts(answer: dict[str, JsonValue]) -> HostFacts:
    """What a host's agent found."""
    seen = Facts(answer).part("checkup")
    limits = seen.part("limits")
    return HostFacts(
        caches=seen.many("caches", _cache),
        disks=seen.many("disks", _disk),
        login=_limits(limits.part("login")),
        systemd=limits.one("systemd", _limits),
        leftovers=seen.many("leftovers", _leftover),
        token_files=seen.many("token_files", lambda at: (at.text("variable"), at.text("path"), at.integer("line"))),
        hubs=seen.many("hubs", _reached),
        times=seen.one("clock", _times),
    )


def _times(facts: Facts) -> Times:
    return Times(received=facts.number("received"), answered=facts.number("answered"))


def _limits(facts: Facts) -> Limits:
    return Limits(open_files=_limit(facts.integers("nofile")), processes=_limit(facts.integers("nproc")))


def _limit(both: tuple[int, ...]) -> Limit | None:
    return Limit(soft=both[0], hard=both[1]) if len(both) == 2 else None


def _cache(facts: Facts) -> Cache:
    return Cache(
        slug=facts.text("slug"),
        path=facts.text("path"),
        size=facts.maybe_integer("bytes"),
        partial=facts.integer("partial"),
    )


def _disk(facts: Facts) -> Disk:
    return Disk(
        path=facts.text("path"),
        total=facts.integer("total"),
        free=facts.integer("free"),
        inodes_free=facts.maybe_integer("inodes_free"),
        read_only=facts.flag("read_only"),
    )


def _leftover(facts: Facts) -> Leftover:
    return Leftover(path=facts.text("path"), size=facts.integer("bytes"), age=facts.number("age_seconds"))


def _reached(facts: Facts) -> Reached:
    return Reached(endpoint=facts.text("endpoint"), problem=facts.text("problem"), seconds=facts.number("seconds"))
