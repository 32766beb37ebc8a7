"""What was launched, kept without a secret, and wanted again: the same launch comes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.applying import apply
from tests.lab.fake_host import FakeHost
from tests.lab.worlds import FILE, TOKEN, World, known, wanted, world
from tests.vllm.made import settings_of
from vmreconcile.core.access import Asker, question_of
from vmreconcile.core.diff import Subject, drift_of
from vmreconcile.core.planning import decision_of, subject_of
from vmreconcile.core.revisions import (
    changed_fields,
    is_running,
    kept_of,
    newest_good,
    running,
    seen_kept,
    tried_digest,
    why_not_kept,
)
from vmreconcile.core.reviving import CannotGoBackError, as_wanted, literal, other_version
from vmreconcile.model.access import Question
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.observed import HostView
from vmreconcile.model.plan import Action
from vmreconcile.model.revision import Author, Kept, Revision, from_json, to_json
from vmreconcile.model.steps import KEEP, Keep
from vmreconcile.model.values import Setting
from vmreconcile.vllm.catalogue import catalogue_for

SECRET = "s3cret-of-the-model-0001"  # made up
PROGRAM = "/usr/local/bin/vllm"
BOTH = pytest.mark.parametrize("runtime", ["systemd", "process"])
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
PLACED = st.builds(
    lambda devices, share: Placed(
        devices=devices, visible=devices, settings={"gpu_memory_utilization": share}, requested=(5,) * len(devices)
    ),
    st.lists(st.sampled_from(["GPU-a", "GPU-b"]), min_size=1, unique=True).map(tuple),
    st.floats(0.1, 1.0),
)
KEPT = st.builds(
    Kept,
    argv=st.lists(TEXTS, min_size=3, max_size=6).map(tuple),
    entries=st.lists(st.tuples(NAMES, st.one_of(TEXTS, st.just(KEEP)))).map(tuple),
    runtime=st.sampled_from(["systemd", "process"]),
    credential=st.booleans(),
    vllm_version=TEXTS,
    decided=st.dictionaries(TEXTS, st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))),
    placed=st.one_of(st.none(), PLACED),
)


def here(server: DesiredServer, there: World | None = None) -> tuple[Subject, HostView]:
    """A wanted server beside its host, on which the program of a revision was looked for too."""
    there = there or world(server)
    fleet = there.fleet()
    looks = {name: replace(look, executables=("", PROGRAM)) for name, look in fleet.looks.items()}
    host = replace(fleet, looks=looks).observe_host("h1")
    return subject_of(server, host, known()), host


def there_with(**fields: object) -> World:
    """A server that runs."""
    there = world(wanted(**fields))  # type: ignore[arg-type]
    apply(there)
    return there


@given(kept=KEPT, good=st.booleans(), when=st.floats(0, 4e9), who=TEXTS)
def test_revisions_survive_the_wire(kept: Kept, good: bool, when: float, who: str) -> None:  # noqa: FBT001 - drawn
    """Through JSON and back, with the host's number."""
    revision = Revision(kept=kept, good=good, when=when, author=Author(who=who, commit="a", tool="b"), note="n")
    data = json.loads(json.dumps(to_json(revision)))
    assert from_json({**data, "number": 7}) == replace(revision, number=7)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"number": True},
        {"launch": {"argv": ["a"]}},
        {"launch": {"argv": ["a", "b", 3]}},
        {"launch": {"argv": ["a", "b", "c\0"]}},
        {"launch": {"argv": ["a", "b", "c"], "env": [["HF_TOKEN", {"secret": "default"}]]}},
        {"launch": {"argv": ["a", "b", "c"], "env": [["A", 1]]}},
        {"launch": {"argv": ["a", "b", "c\ud800"]}},
        {"launch": {"argv": ["a", "b", "c"], "env": [["A", "\0"]]}},
        {"launch": {"argv": ["a", "b", "c"], "env": [["A", "\udfff"]]}},
        {"launch": {"argv": ["a", "b", "c"], "env": [["A=B", "x"]]}},
        {"launch": {"argv": ["a", "b", "c"], "env": [["A\nB", {"keep": True}]]}},
        {"launch": {"argv": ["a", "b", "c"], "placed": {"devices": ["x"], "visible": [], "requested": [1, 2]}}},
    ],
)
def test_a_host_cannot_make_up_what_it_likes(wrong: object) -> None:
    """Above all not a revision that names a secret of the controller."""
    data = (
        {**to_json(Revision(kept=Kept(argv=("a", "b", "c")))), **wrong} if isinstance(wrong, dict) and wrong else wrong
    )
    with pytest.raises(ValueError):  # noqa: PT011 - of from_json alone
        from_json(data)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(data=st.data())
def test_what_was_launched_is_launched_again(data: st.DataObject) -> None:
    """Any settings and variables: kept, read back, wanted again, they give the same command line and variables."""
    chosen = data.draw(settings_of(catalogue_for("0.32.0")))
    chosen = {name: value for name, value in chosen.items() if name not in {"port", "revision", "model", "config"}}
    names = st.sampled_from(["PLAIN", "VLLM_LOGGING_LEVEL", "MY_API_KEY", "ODD"])
    env = data.draw(st.dictionaries(names, TEXTS))
    server = wanted(env=env, revision=data.draw(st.sampled_from([None, "abc"])))
    server = replace(server, settings={name: Setting(value=value, origin=FILE) for name, value in chosen.items()})
    subject, _ = here(server)
    kept = kept_of(subject)
    revision = from_json({**json.loads(json.dumps(to_json(Revision(kept=kept)))), "number": 1})
    there = world(server)
    host_file = there.hosts["h1"]
    host_file.kernel.write(
        f"{host_file.config}/env/m.env", "".join(f'{name}="x"\n' for name in (*env, "HF_TOKEN")), 0o600
    )
    other = wanted(args={"max_model_len": 1}, env={"OTHER": "1"}, port=9)
    _, host = here(other, world(other, hosts=[host_file]))
    back = subject_of(as_wanted(revision, other, host), host, known())
    again = kept_of(back)
    assert again.argv == kept.argv
    assert dict(again.entries) == dict(kept.entries)
    assert not changed_fields(kept, again)
    assert literal(kept, back.launch.argv) == kept.argv


@given(env=st.dictionaries(st.sampled_from(["MY_API_KEY", "DB_PASSWORD", "HF_TOKEN_X"]), st.just(SECRET), min_size=1))
def test_no_secret_is_kept(env: dict[str, str]) -> None:
    """Neither by its name nor by its look; nor the token, of which the controller has only a fingerprint."""
    subject, _ = here(wanted(env={**env, "INNOCENT": TOKEN}))
    text = json.dumps(to_json(Revision(kept=kept_of(subject))))
    assert SECRET not in text
    assert TOKEN not in text
    assert set(env) | {"HF_TOKEN", "INNOCENT"} <= kept_of(subject).secrets


@pytest.mark.parametrize(
    "args", [{"api_key": ["abc"]}, {"otlp_traces_endpoint": "http://me:pass@host/x"}, {"served_model_name": [TOKEN]}]
)
def test_arguments_that_hold_a_secret_are_not_kept(args: dict[str, object]) -> None:
    """They are in the command line already; the history shall not be another place."""
    subject, _ = here(wanted(args=args))  # type: ignore[arg-type]
    assert why_not_kept(kept_of(subject))
    assert not why_not_kept(kept_of(here(wanted())[0]))


@BOTH
def test_what_runs_is_seen_as_it_was_launched(runtime: str) -> None:
    """From /proc and the env file alone, secrets aside; so it is known again."""
    env = {"PLAIN": "1", "MY_API_KEY": SECRET}
    there = there_with(args={"max_model_len": 4096}, env=env, runtime=runtime)
    subject, host = here(there.desired.servers[0], there)
    launched, seen = kept_of(subject), seen_kept(host.server("m"))
    assert seen is not None
    assert (seen.argv, dict(seen.entries), seen.runtime) == (launched.argv, dict(launched.entries), runtime)
    assert is_running(launched, host.server("m"))
    other = replace(launched, argv=(*launched.argv, "--enforce-eager"))
    assert not is_running(other, host.server("m"))
    assert not is_running(replace(launched, entries=(("PLAIN", "2"),)), host.server("m"))
    rows = [
        Revision(number=1, kept=launched),
        Revision(number=2, kept=other),
        Revision(number=3, kept=launched, good=False),
    ]
    assert running(rows, host.server("m")) == rows[0]
    assert newest_good(rows) == rows[1]
    assert newest_good(rows[2:]) is None


@BOTH
def test_a_server_that_went_back_is_in_sync_with_its_revision(runtime: str) -> None:
    """With a secret that only the host knows, and a token that this controller has another one of."""
    env = {"MY_API_KEY": SECRET}
    there = there_with(args={"max_model_len": 4096}, env=env, runtime=runtime)
    subject, host = here(there.desired.servers[0], there)
    todays = wanted(args={"max_model_len": 8192}, env={"MY_API_KEY": "another-secret-value"}, runtime=runtime)
    back = as_wanted(Revision(number=1, kept=kept_of(subject)), todays, host)
    found = subject_of(back, host, known({"default": "hf_AnotherTokenOfSomebodyElse000000000"}))
    assert decision_of(found, drift_of(found)).action is Action.NOOP
    assert set(back.keeps) == {"HF_TOKEN", "MY_API_KEY"}


def test_differences_are_named_as_in_a_plan() -> None:
    """Arguments, variables, token, program, port; with today's places."""
    one = kept_of(here(wanted(args={"max_model_len": 4096}, env={"A": "1", "MY_KEY": SECRET}, token=None))[0])
    after = wanted(args={"max_model_len": 8192}, env={"A": "2", "B": "3"}, port=8002, runtime="process")
    other = replace(kept_of(here(after)[0]), argv=("/opt/vllm", *kept_of(here(after)[0]).argv[1:]))
    found = {field.path: (field.before, field.after, field.origin) for field in changed_fields(one, other, after)}
    assert found == {
        "args.max_model_len": (4096, 8192, "models.d/m.yaml:9"),
        "port": (8001, 8002, "models.d/m.yaml:9"),
        "executable": (PROGRAM, "/opt/vllm", ""),
        "runtime": ("systemd", "process", ""),
        "env.A": ("1", "2", "models.d/m.yaml:9"),
        "env.B": (None, "3", "models.d/m.yaml:9"),
        "env.MY_KEY": ("(hidden)", None, ""),
        "hf_token": (None, "(hidden)", ""),
    }
    assert changed_fields(one, one) == ()


def test_a_launch_is_known_again_by_its_digest() -> None:
    """Whatever the number, the GPUs or the version; not with other arguments."""
    kept = kept_of(here(wanted())[0])
    placed = replace(kept, placed=Placed(devices=("GPU-a",)), vllm_version="9", decided={"x": 1})
    assert tried_digest(placed) == tried_digest(kept)
    assert tried_digest(replace(kept, argv=(*kept.argv, "-x"))) != tried_digest(kept)


def test_what_cannot_be_brought_back_says_why() -> None:
    """A program that is gone, a command line of another time, a secret that is nowhere."""
    there = there_with(env={"MY_API_KEY": SECRET})
    server = there.desired.servers[0]
    subject, host = here(server, there)
    revision = Revision(number=3, kept=kept_of(subject))
    gone = replace(revision, kept=replace(revision.kept, argv=("/nowhere/vllm", *revision.kept.argv[1:])))
    with pytest.raises(CannotGoBackError, match="/nowhere/vllm, which is not there any more"):
        as_wanted(gone, server, host)
    with pytest.raises(CannotGoBackError, match="cannot be read"):
        as_wanted(replace(revision, kept=replace(revision.kept, argv=(PROGRAM, "chat", "m"))), server, host)
    without = replace(host, servers=())
    with pytest.raises(CannotGoBackError, match="revision 3 of m@h1 had MY_API_KEY, which its env file has no more"):
        as_wanted(revision, wanted(), without)
    assert as_wanted(revision, server, without).env["MY_API_KEY"].value == SECRET


def asked_back(server: DesiredServer, host: HostView, *entries: tuple[str, str | Keep]) -> Question | None:
    """What the Hub is asked before a server goes back to a revision that its host made up."""
    kept = kept_of(subject_of(server, host, known()))
    revision = Revision(number=1, kept=replace(kept, entries=(*kept.entries, *entries)))
    asker = Asker(environ={}, sources={"default"})
    return question_of(as_wanted(revision, server, host), asker)


def test_a_host_does_not_choose_where_a_token_is_sent() -> None:
    """A Hub that only its revision names is not asked; one that today's files name, too, is."""
    there = there_with(env={"HF_ENDPOINT": "https://hub.example"})
    server = there.desired.servers[0]
    _, host = here(server, there)
    mine = ("HF_ENDPOINT", "https://hub.example")
    told = asked_back(server, host, mine)
    assert told is not None
    assert (told.endpoint, told.source) == ("https://hub.example", "default")
    assert asked_back(replace(server, env={}), host, mine) is None
    assert asked_back(server, host, ("HF_ENDPOINT", "https://thief.example")) is None


def test_a_server_without_a_token_gets_none_by_its_history() -> None:
    """What its host says that it had is the host's own, never this controller's, nor asked with."""
    there = there_with()
    server = replace(there.desired.servers[0], token=None)
    _, host = here(server, there)
    told = asked_back(server, host, ("HF_TOKEN", KEEP))
    assert told is not None
    assert told.source == ""


def test_another_version_in_place_is_named() -> None:
    """A local part of a version is none."""
    kept = kept_of(here(wanted())[0])
    _, host = here(wanted(), world(wanted(), hosts=[FakeHost("h1", installed={"": (PROGRAM, "0.31.0+cpu")})]))
    assert other_version(Revision(kept=kept), host) == "0.31.0+cpu"
    assert other_version(Revision(kept=replace(kept, vllm_version="0.31.0")), host) == ""


def test_gpus_come_back_by_number_where_they_are_there() -> None:
    """Else the arguments say how many."""
    server = wanted(args={"gpu_memory_utilization": 0.5})
    there = world(server, gpus=2)
    _, host = here(server, there)
    placed = Placed(devices=(host.gpus[1].uuid,), visible=(host.gpus[1].uuid,), requested=(5,))
    kept = kept_of(subject_of(server, host, known(), placed))
    assert kept.public["CUDA_VISIBLE_DEVICES"] == host.gpus[1].uuid
    there.hosts["h1"].kernel.write(f"{there.hosts['h1'].config}/env/m.env", 'HF_TOKEN="x"\n', 0o600)
    back = as_wanted(Revision(kept=kept), server, host)
    assert (back.gpus, back.visible, "CUDA_VISIBLE_DEVICES" in back.env) == ((1,), placed.visible, False)
    assert as_wanted(Revision(kept=kept), server, replace(host, gpus=())).gpus == "auto"
