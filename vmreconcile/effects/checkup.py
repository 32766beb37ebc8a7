"""The agent's answer to `checkup`, parsed into values; trusts none of it."""

from __future__ import annotations

from vmreconcile.effects.facts import Facts
from vmreconcile.model.checkup import Cache, Disk, HostFacts, Leftover, Reached
from vmreconcile.model.values import JsonValue

LIMITS = ("nofile", "memlock", "nproc")


def host_facts(answer: dict[str, JsonValue]) -> HostFacts:
    """What a host's agent found."""
    seen = Facts(answer).part("checkup")
    limits = {name: seen.part("limits").integers(name) for name in LIMITS}
    return HostFacts(
        caches=seen.many("caches", _cache),
        disks=seen.many("disks", _disk),
        limits={name: (both[0], both[1]) for name, both in limits.items() if len(both) == 2},
        leftovers=seen.many("leftovers", _leftover),
        token_files=seen.many("token_files", lambda at: (at.text("variable"), at.text("path"), at.integer("line"))),
        hubs=seen.many("hubs", _reached),
    )


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
        device=facts.integer("device"),
        total=facts.integer("total"),
        free=facts.integer("free"),
        inodes_free=facts.maybe_integer("inodes_free"),
        read_only=facts.flag("read_only"),
    )


def _leftover(facts: Facts) -> Leftover:
    return Leftover(path=facts.text("path"), size=facts.integer("bytes"), age=facts.number("age_seconds"))


def _reached(facts: Facts) -> Reached:
    return Reached(endpoint=facts.text("endpoint"), problem=facts.text("problem"), seconds=facts.number("seconds"))
