"""A plan as a file: what it holds, what it refuses, and when it may still be carried out."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.worlds import TOKEN, World, only, wanted, world
from vmreconcile.core.planfile import confirm, parse, render, wanted_digest
from vmreconcile.errors import UsageError
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.gpus import Figures, Placed
from vmreconcile.model.plan import Action, Change, Plan, Reason
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting


def saved(there: World) -> str:
    """The file of a plan made now."""
    return render(there.plan(), there.desired, version="0.1.0", inventory="abc")


def confirmed(there: World, text: str) -> Plan:
    """The plan as it may be carried out now."""
    return confirm(parse(text, "plan.json"), there.plan(), there.desired)


def retuned() -> tuple[World, str]:
    """A running server whose model is to change, and the plan of that."""
    there = world(wanted()).settle().change(lambda server: replace(server, model="org/other"))
    return there, saved(there)


def refused(there: World, text: str) -> Change:
    """The one change, which must be refused and do nothing."""
    change = only(confirmed(there, text))
    assert (change.action, change.stops, change.steps, change.early) == (Action.BLOCKED, (), (), False)
    assert not change.disruptive
    return change


def test_a_plan_read_back_is_the_same() -> None:
    """Every part that is carried out or shown; where a value was said is not kept."""
    there, text = retuned()
    (change,) = there.plan().pending
    plain = tuple(replace(field, origin="") for field in change.fields)
    assert confirmed(there, text).pending == (replace(change, fields=plain),)


def test_what_was_decided_about_gpus_is_read_back() -> None:
    """Devices, numbers with their reasons, and what the order of the steps depends on."""
    there, _ = retuned()
    settings: dict[str, JsonValue] = {"gpu_memory_utilization": 0.45}
    placed = Placed(devices=("GPU-b",), visible=("1",), settings=settings, requested=(7,), reasons=("it moves",))
    placed = replace(placed, least=Figures(beside=5, kv_bytes=2))
    (change,) = there.plan().pending
    change = replace(change, fields=(), placed=placed, frees=True)
    plan = replace(there.plan(), changes=(change,))
    text = render(plan, there.desired, version="0", inventory="i")
    assert parse(text, "p.json").changes == (change,)
    document = json.loads(text)
    document["changes"][0]["placed"]["requested"] = [7, 7]
    with pytest.raises(UsageError, match="is damaged: a server's devices and its memory do not match"):
        parse(json.dumps(document), "p.json")


@pytest.mark.parametrize(
    "edited",
    [
        {"settings": {"gpu_memory_utilization": "0.5"}},
        {"settings": {"max_model_len": True}},
        {"settings": {"api_key": ["x"]}},
        {"least": {"beside": "5"}},
        {"least": {"other": 5}},
        {"requested": ["1.5"]},
    ],
)
def test_a_decision_that_somebody_edited_is_refused(edited: dict[str, JsonValue]) -> None:
    """Numbers are reckoned with where a start fails: text in their place would end an apply half way."""
    there, _ = retuned()
    (change,) = there.plan().pending
    change = replace(change, placed=Placed(devices=("GPU-b",), visible=("1",), requested=(7,)))
    document = json.loads(render(replace(there.plan(), changes=(change,)), there.desired, version="0", inventory="i"))
    document["changes"][0]["placed"].update(edited)
    with pytest.raises(UsageError, match="damaged"):
        parse(json.dumps(document), "p.json")


def test_the_file_is_for_scripts_too() -> None:
    """Versioned JSON with `plan --json` in it; pending changes only, with literal steps."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002, state=DesiredState.ABSENT))
    document = json.loads(saved(there))
    assert (document["kind"], document["format_version"], document["inventory"]) == ("vmreconcile-plan", 2, "abc")
    assert document["plan"]["summary"]["start"] == 1
    assert [change["server"] for change in document["changes"]] == ["a@h1"]
    assert document["changes"][0]["steps"][0]["step"] == "write-record"


def test_the_same_plan_is_the_same_file() -> None:
    """Byte for byte, so that it can be compared and signed."""
    there, text = retuned()
    assert saved(there) == text
    assert text.isascii()
    assert text.endswith("}\n")


def test_the_file_holds_no_secret() -> None:
    """Neither the token nor a secret of the model's environment."""
    there = world(wanted(env={"VLLM_API_KEY": "a-secret-word"}))
    assert TOKEN not in saved(there)
    assert "a-secret-word" not in saved(there)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("name: chat\nport: 8001\n", "not a plan"),
        ('{"kind": ', "damaged"),
        pytest.param('{"kind": ' + "[" * 100_000, "damaged", id="deep"),
        ("[]", "not a plan"),
        ('{"kind": "something"}', "not a plan"),
        ('{"kind": "vmreconcile-plan", "format_version": 3, "made_by": "vmreconcile 9"}', "vmreconcile 9"),
        ('{"kind": "vmreconcile-plan", "format_version": 2}', "damaged"),
        ('{"kind": "vmreconcile-plan", "format_version": 2, "changes": [7], "inventory": ""}', "damaged"),
        ('{"kind": "vmreconcile-plan", "format_version": 2, "changes": {}, "inventory": ""}', None),
    ],
)
def test_what_is_no_plan_is_refused_by_name(text: str, words: str | None) -> None:
    """With the file, why, and what to do; an empty list of changes is a plan."""
    if words is None:
        assert parse(text, "p.json").changes == ()
        return
    with pytest.raises(UsageError, match=words) as caught:
        parse(text, "p.json")
    assert "p.json" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("stop-unit", {"unit": "vmreconcile-other.service"}),
        ("stop-unit", {"unit": "sshd.service"}),
        ("stop-unit", {"grace_s": "9"}),
        ("stop-unit", {"grace_s": 1e300}),
        ("stop-unit", {"grace_s": float("nan")}),
        ("systemctl", {"unit": "vmreconcile-m_1.service"}),
        ("systemctl", {"verb": 5}),
        ("write-file", {"path": "/etc/systemd/system/vmreconcile-other.service"}),
        ("write-file", {"mode": "0777"}),
        ("write-env", {"path": "/etc/vmreconcile/env/other.env"}),
        ("write-env", {"entries": {"HF_TOKEN": "x"}}),
        ("write-record", {"slug": "other"}),
        ("write-record", {"record": []}),
    ],
)
def test_a_step_about_something_else_is_refused(kind: str, edit: dict[str, JsonValue]) -> None:
    """What was agreed to for one server is done to no other; fields are of their kind."""
    document = json.loads(TEXT)
    (change,) = document["changes"]
    step = next(step for step in [*change["stops"], *change["steps"]] if step["step"] == kind)
    step.update(edit)
    with pytest.raises(UsageError, match=r"p\.json is damaged"):
        parse(json.dumps(document), "p.json")


@pytest.mark.parametrize("edit", [{"port": "8001"}, {"timeout": None}, {"address": 7}, {"other": 1}])
def test_a_gate_that_is_none_is_refused(edit: dict[str, JsonValue]) -> None:
    """Address, port and seconds are of their kind."""
    document = json.loads(TEXT)
    document["changes"][0]["gate"].update(edit)
    with pytest.raises(UsageError, match=r"p\.json is damaged"):
        parse(json.dumps(document), "p.json")


@given(data=st.data())
def test_a_damaged_file_is_an_error_of_ours(data: st.DataObject) -> None:
    """Whatever is missing or replaced in it, nothing else is raised, and no step that there is not is read."""
    document = json.loads(TEXT)
    node = document
    for _ in range(data.draw(st.integers(0, 4))):
        children = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        if not children or not isinstance(node[key := data.draw(st.sampled_from(children))], dict | list):
            break
        node = node[key]
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    if keys:
        key = data.draw(st.sampled_from(keys))
        node[key] = data.draw(
            st.none() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([1])
        )
    with contextlib.suppress(UsageError):
        parse(json.dumps(document), "p.json")


TEXT = retuned()[1]


def test_a_moved_server_is_refused_with_the_field() -> None:
    """Restarted since: another pid and start time."""
    there, text = retuned()
    there.hosts["h1"].systemd.call("restart", "vmreconcile-m.service")
    change = refused(there, text)
    assert change.reason is Reason.PLAN_STALE
    assert change.note == "changed since the plan was made: process.pid, process.start_ticks"
    assert change.remedy == "make the plan again"


def test_what_the_file_does_not_tell_has_moved() -> None:
    """A plan from which somebody took what it was made from is no plan for any host."""
    there, text = retuned()
    document = json.loads(text)
    document["changes"][0]["observed"] = {}
    assert "process.pid" in refused(there, json.dumps(document)).note


def test_an_edited_unit_and_a_reboot_are_noticed() -> None:
    """Each by its own field."""
    there, text = retuned()
    there.hosts["h1"].kernel.files["/etc/systemd/system/vmreconcile-m.service"].content += "# edited\n"
    assert "unit.text" in refused(there, text).note
    there, text = retuned()
    there.hosts["h1"].reboot()
    assert "boot_id" in refused(there, text).note


def test_another_server_that_moved_does_not_matter() -> None:
    """Only the server itself."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002)).settle()
    there.change(lambda server: replace(server, model="org/other") if server.id.model == "a" else server)
    text = saved(there)
    there.hosts["h1"].systemd.call("restart", "vmreconcile-b.service")
    assert only(confirmed(there, text)).action is Action.RETUNE


def test_changed_files_are_noticed() -> None:
    """The plan is no longer what the files ask for."""
    there, text = retuned()
    there.change(lambda server: replace(server, model="org/third"))
    assert refused(there, text).note.endswith("what the files ask for")
    there.want()
    assert refused(there, text).note.endswith("what the files ask for")


def test_a_new_obstacle_is_noticed() -> None:
    """Somebody else took the port meanwhile."""
    there = world(wanted())
    text = saved(there)
    there.hosts["h1"].stranger(8001)
    change = refused(there, text)
    assert change.reason is Reason.PORT_HELD
    assert "8001" in change.note


def test_an_unreachable_host_is_no_stale_plan() -> None:
    """Its servers are unreachable, the others are carried out."""
    there = world(wanted("m@h1"), wanted("m@h2"))
    text = saved(there)
    there.hosts["h1"].unreachable = "no route"
    plan = confirmed(there, text)
    assert [str(server) for server in plan.unreachable_servers] == ["m@h1"]
    assert [str(change.server) for change in plan.changes] == ["m@h2"]


def test_what_the_plan_did_not_hold_is_not_done() -> None:
    """A server that came to need something later waits for the next plan."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002)).settle()
    text = saved(there)
    there.hosts["h1"].kill_root("b")
    assert confirmed(there, text).pending == ()


def test_a_prune_in_a_plan_file_is_carried_out() -> None:
    """The plan held it, so it was asked for."""
    there = world(wanted()).settle().want()
    text = render(there.plan(prune=True), there.desired, version="0", inventory="")
    assert only(confirmed(there, text)).action is Action.REMOVE


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 1},
        {"model": "x"},
        {"token": None},
        {"gpus": (0,)},
        {"state": DesiredState.STOPPED},
        {"runtime": "process"},
    ],
)
def test_wanted_digest_is_of_everything(fields: dict[str, object]) -> None:
    """Any field that is asked for differently."""
    assert wanted_digest(wanted()) == wanted_digest(wanted())
    assert wanted_digest(wanted()) != wanted_digest(replace(wanted(), **fields))  # type: ignore[arg-type]


def test_wanted_digest_tells_nothing_of_secrets() -> None:
    """A short API key could be guessed from a digest of it; any other value of the environment counts."""
    origin = Origin(kind=OriginKind.MODEL)

    def digest(name: str, value: str) -> str:
        return wanted_digest(replace(wanted(), env={name: Setting(value=value, origin=origin)}))

    assert digest("VLLM_API_KEY", "a") == digest("VLLM_API_KEY", "b")
    assert digest("VLLM_LOGGING_LEVEL", "a") != digest("VLLM_LOGGING_LEVEL", "b")


def test_an_edited_units_secret_is_in_no_plan_file() -> None:
    """Neither itself nor in a digest that it could be guessed from: another secret gives the same file."""
    texts = []
    for secret in ("Sh0rt!", "0ther?"):
        there = world(wanted()).settle()
        unit = there.hosts["h1"].kernel.files["/etc/systemd/system/vmreconcile-m.service"]
        unit.content = unit.content.replace("Restart=", f"ExecStartPre=/bin/x --api-key {secret}\nRestart=")
        texts.append(saved(there))
        assert "unit.ExecStartPre" in texts[-1]
        assert secret not in texts[-1]
    assert texts[0] == texts[1]


def test_what_stops_a_server_that_serves_is_disruptive_whatever_the_file_says() -> None:
    """So it counts against --max-changes and against the budgets of its model."""
    there, text = retuned()
    document = json.loads(text)
    document["changes"][0] |= {"disruptive": False, "phase": "absent"}
    (change,) = confirmed(there, json.dumps(document)).pending
    assert (change.disruptive, change.phase.value) == (True, "ready")
