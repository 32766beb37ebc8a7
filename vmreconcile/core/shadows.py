"""Variables that a server gets from elsewhere than its env file: a restart would not cure that. Pure."""

from __future__ import annotations

from vmreconcile.core.diff import Drift, Subject, is_env_file_right, other_tokens
from vmreconcile.model.observed import TokenPlace
from vmreconcile.model.plan import Block, Field, Reason

CLOCK_S = 2.0
"""Start times of processes are known to a second or so (btime in /proc/stat), so a file must be older than this."""


def shadow_of(subject: Subject, drift: Drift, *, requested: bool = False) -> Block | None:
    """Why a new process would not get the environment that its env file says, or None.

    Either a place is seen that wins over the env file, or the unit has a drop-in, and the process began after the right
    env file was written and has something else all the same; then a restart that was `requested` is tried.
    """
    winning = winning_tokens(subject)
    if winning:
        place = winning[0]
        return _block(
            f"{place} wins over the env file",
            f"delete it in {place.path}, then systemctl daemon-reload and vmreconcile apply",
        )
    if not requested:
        return _unseen(subject, drift)
    return None


def winning_tokens(subject: Subject) -> tuple[TokenPlace, ...]:
    """Where another token is named than the server is to have, and is what it gets."""
    return tuple(place for place in other_tokens(subject) if place.wins and _counts(place, subject))


def _unseen(subject: Subject, drift: Drift) -> Block | None:
    """A drop-in that changes the environment in a way that is not looked into (`ExecStart=env …`, a reset)."""
    process, env_file, unit = subject.observed.process, subject.observed.env_file, subject.observed.unit
    if unit is None or not unit.drop_ins:
        return None
    differing = (*drift.environment, *drift.token)
    if process is None or env_file is None or not differing or not is_env_file_right(subject):
        return None
    if process.started_at < env_file.mtime + CLOCK_S:
        return None
    return _block(
        f"{_name(differing[0])} does not come from its env file, though that is right and older than the process",
        f"look at: systemctl cat {unit.name}; once that is mended: vmreconcile restart {subject.wanted.id}",
    )


def _counts(place: TokenPlace, subject: Subject) -> bool:
    """Whether the Hub's client would take that token: the second variable only where the first is not given."""
    return place.variable == "HF_TOKEN" or subject.wanted.token is None


def _name(field: Field) -> str:
    return "HF_TOKEN" if field.path == "hf_token" else field.path.removeprefix("env.")


def _block(note: str, remedy: str) -> Block:
    return Block(reason=Reason.ENV_SHADOWED, note=note, remedy=remedy)


def idle_note(subject: Subject) -> tuple[str, str]:
    """What to say of tokens that are named elsewhere and do not count: note and remedy; nothing where there is none."""
    places = other_tokens(subject)
    if not places:
        return "", ""
    return f"another token is named beside its env file, which wins: {places[0]}", f"delete it in {places[0].path}"
