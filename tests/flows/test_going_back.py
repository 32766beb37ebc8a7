"""A change that does not become ready: the last good settings come back, and where not, it is told why."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour, Refusal
from tests.lab.worlds import TOKEN, World, wanted, world
from vmreconcile.flows.execute import execute
from vmreconcile.model.names import ServerId
from vmreconcile.model.outcome import Failure, Outcome
from vmreconcile.model.plan import Action, Reason

pytestmark = pytest.mark.slow  # starts many processes, or waits

BOTH = pytest.mark.parametrize("runtime", ["systemd", "process"])
M = ServerId(host="h1", model="m")
SECRET = "s3cret-of-the-model-0001"  # made up
TWO = {path: (path, version) for path, version in (("/opt/old/vllm", "0.31.0"), ("/opt/new/vllm", "0.32.0"))}
DIES = Behaviour(exit_code=1, log=("ValueError: No available memory for the cache blocks.",))


def failure(outcome: Outcome) -> Failure:
    """Why the one server failed."""
    (found,) = [result.failure for result in outcome.results]
    assert found is not None
    return found


def ready(**fields: Any) -> World:  # noqa: ANN401 - a server's
    """A server that was started and is ready, with 4096 tokens."""
    there = world(wanted(**{"args": {"max_model_len": 4096}, **fields}))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    return there


def dies_with(host: FakeHost, *words: str, behaviour: Behaviour = DIES) -> None:
    """Let a start end by itself if these words stand in its arguments one after the other."""
    start = host.kernel._behaviour

    def behave(slug: str, argv: tuple[str, ...], version: str) -> Behaviour:
        told = words[0] in argv if len(words) == 1 else words in itertools.pairwise(argv)
        return behaviour if told else start(slug, argv, version)

    host.kernel._behaviour = behave  # type: ignore[method-assign]


def retuned(there: World, length: int = 8192, **fields: Any) -> World:  # noqa: ANN401 - a server's
    """Ask for another context, which does not start."""
    dies_with(there.hosts["h1"], "--max-model-len", str(length))
    return there.want(wanted(**{"args": {"max_model_len": length}, **fields}))


def history(there: World) -> list[dict[str, Any]]:
    """What the host keeps, oldest first."""
    return there.hosts["h1"].history("m")


def length(there: World) -> str:
    """The context of what runs."""
    argv = there.argv(M)
    return argv[argv.index("--max-model-len") + 1]


@BOTH
def test_what_is_ready_is_kept(runtime: str) -> None:
    """Once, however often it is applied or restarted; a change is another revision; nobody's token is in it."""
    there = ready(runtime=runtime, env={"MY_API_KEY": SECRET, "PLAIN": "1"})
    apply(there)
    apply(there, restart=frozenset({M}))
    (first,) = history(there)
    assert (first["number"], first["good"]) == (1, True)
    assert first["launch"]["env"] == [
        ["HF_TOKEN", {"keep": True}],
        ["MY_API_KEY", {"keep": True}],
        ["PLAIN", "1"],
        ["VMRECONCILE_SERVER", "m"],
    ]
    there.want(wanted(args={"max_model_len": 2048}, runtime=runtime))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert [row["number"] for row in history(there)] == [1, 2]
    assert "2048" in history(there)[1]["launch"]["argv"]


@BOTH
def test_a_retune_that_cannot_start_is_rolled_back(runtime: str) -> None:
    """The old settings run again and are ready; the report names setting, place, evidence and remedy."""
    there = retuned(ready(runtime=runtime), runtime=runtime)
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    found = failure(outcome)
    assert found.kind == "no_kv_memory"
    assert "args.max_model_len 4096 → 8192 (models.d/m.yaml:9)" in found.summary
    assert found.summary.endswith("; it is back on revision 1, ready")
    assert "No available memory" in found.evidence
    assert "models.d/m.yaml" in found.remedy
    assert length(there) == "4096"
    assert [(row["number"], row["good"], row["kind"]) for row in history(there)] == [
        (1, True, ""),
        (2, False, "no_kv_memory"),
    ]
    (change,) = there.plan().changes
    assert (change.action, change.reason) == (Action.RETUNE, Reason.ARGS_CHANGED)
    there.want(wanted(args={"max_model_len": 4096}, runtime=runtime))
    assert not there.plan().pending


@BOTH
def test_the_next_plan_says_that_it_was_tried(runtime: str) -> None:
    """As long as the very same is wanted, and until it becomes ready."""
    there = retuned(ready(runtime=runtime), runtime=runtime)
    assert not there.plan().changes[0].note
    apply(there)
    (change,) = there.plan().pending
    assert change.note.startswith("tried 20")
    assert change.note.endswith(": no_kv_memory; it went back to revision 1")
    there.want(wanted(args={"max_model_len": 6000}, runtime=runtime))
    assert not there.plan().changes[0].note
    assert statuses(apply(there)) == {"m@h1": "changed"}
    retuned(there, runtime=runtime)
    assert not there.plan().changes[0].note


@BOTH
def test_a_restart_that_fails_is_rolled_back(runtime: str) -> None:
    """Another environment kills it: the old one comes back."""
    there = ready(runtime=runtime, env={"VLLM_LOGGING_LEVEL": "INFO"})
    host = there.hosts["h1"]
    there.want(wanted(args={"max_model_len": 4096}, runtime=runtime, env={"VLLM_LOGGING_LEVEL": "NOISY"}))
    plan = there.plan()
    assert plan.changes[0].action is Action.RESTART
    host.kernel.behaviours["m"] = DIES
    mended_at_second_start(host)
    outcome = apply(there, plan)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert "env.VLLM_LOGGING_LEVEL INFO → NOISY" in failure(outcome).summary
    root = host.root("m")
    assert root is not None
    assert root.env["VLLM_LOGGING_LEVEL"] == "INFO"


def mended_at_second_start(host: FakeHost) -> None:
    """Let the next start die, and those after it live."""
    start = host.kernel.start

    def once(*words: Any, **fields: Any) -> object:  # noqa: ANN401 - passed on
        try:
            return start(*words, **fields)
        finally:
            host.kernel.behaviours.pop("m", None)

    host.kernel.start = once  # type: ignore[method-assign,assignment]


@BOTH
def test_secrets_come_back_and_are_nowhere_else(runtime: str) -> None:
    """A secret variable and the token are those of the env file; no file, request or answer beside it has them."""
    env = {"MY_API_KEY": SECRET}
    there = retuned(ready(runtime=runtime, env=env), runtime=runtime, env=env)
    assert statuses(apply(there)) == {"m@h1": "rolled_back"}
    host = there.hosts["h1"]
    root = host.root("m")
    assert root is not None
    assert (root.env["MY_API_KEY"], root.env["HF_TOKEN"]) == (SECRET, TOKEN)
    for secret in (SECRET, TOKEN):
        holders = {path for path, file in host.kernel.files.items() if secret in file.content}
        assert holders == {f"{host.config}/env/m.env"}
        assert secret not in json.dumps([host.requests, host.answers, host.done])


def test_an_argument_that_looks_like_a_secret_is_not_kept() -> None:
    """Its server is ready all the same, and the person hears why there is nothing to go back to."""
    there, witness = world(wanted(args={"served_model_name": "sk-abcdefghijklmnopqrstuvwx"})), Witness()
    outcome = execute(there.plan(), run_of(there, witness))
    assert statuses(outcome) == {"m@h1": "changed"}
    assert [line for _, line in witness.waited if "nothing is kept" in line] == [
        "nothing is kept for going back to it: one of its arguments looks like a secret"
    ]
    assert not history(there)


def test_a_secret_that_is_gone_is_not_gone_back_without() -> None:
    """The new settings took the key away: a server must not come up without what guarded it."""
    there = retuned(ready(env={"VLLM_API_KEY": SECRET}))
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "failed"}
    found = failure(outcome)
    assert "had VLLM_API_KEY, which its env file has no more" in found.summary
    assert found.summary.endswith("; it is left stopped")
    assert there.pids() == {}


@BOTH
def test_a_first_start_that_fails_is_left_stopped(runtime: str) -> None:
    """There is nothing to go back to, and nothing is started again."""
    there = retuned(world(wanted(runtime=runtime)), runtime=runtime)
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "failed"}
    assert there.pids() == {}
    assert "back" not in failure(outcome).summary
    (change,) = there.plan().pending
    assert "no_kv_memory" in change.note


@BOTH
def test_a_crash_with_new_settings_goes_back(runtime: str) -> None:
    """It served, its process ended, and what is wanted by now does not start."""
    there = ready(runtime=runtime)
    host = there.hosts["h1"]
    root = host.root("m")
    assert root is not None
    if runtime == "systemd":
        host.systemd.call("stop", "vmreconcile-m.service")
    else:
        host.kernel.end(root, family=True)
    retuned(there, runtime=runtime)
    (change,) = there.plan().pending
    assert change.action is Action.START
    assert statuses(apply(there)) == {"m@h1": "rolled_back"}
    assert length(there) == "4096"


@BOTH
def test_going_back_can_fail_too(runtime: str) -> None:
    """Both failures are told, and the server is left stopped."""
    there = retuned(ready(runtime=runtime), runtime=runtime)
    dies_with(there.hosts["h1"], "4096", behaviour=Behaviour(exit_code=1, log=("OSError: [Errno 28] No space left",)))
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "failed"}
    found = failure(outcome)
    assert "going back to revision 1 failed too, and it is left stopped" in found.summary
    assert "No available memory" in found.evidence
    assert there.pids() == {}
    host = there.hosts["h1"]
    assert runtime == "process" or host.systemd.unit("vmreconcile-m.service").enabled is False


def test_the_same_settings_are_nothing_to_go_back_to() -> None:
    """A restart with what was good fails: that is said, and nothing is tried."""
    there = ready()
    dies_with(there.hosts["h1"], "4096")
    outcome = apply(there, restart=frozenset({M}))
    assert statuses(outcome) == {"m@h1": "failed"}
    assert "its settings are those of revision 1, the last good one" in failure(outcome).summary
    assert there.pids() == {}


def test_a_vllm_that_was_upgraded_in_place_is_named() -> None:
    """The settings are the same, the program under them is not."""
    there = ready()
    host = there.hosts["h1"]
    host.kernel.installed[""] = ("/usr/local/bin/vllm", "0.31.0")
    dies_with(host, "4096")
    outcome = apply(there)
    assert "good with vLLM 0.32.0, and 0.31.0 is there now" in failure(outcome).summary
    assert there.pids() == {}


def test_a_program_that_is_gone_is_told() -> None:
    """The revision's vLLM was removed from the host: there is no way back, and the failure says so."""
    host = FakeHost("h1", installed=TWO)
    there = world(wanted(args={"max_model_len": 4096}, executable="/opt/old/vllm"), hosts=[host])
    apply(there)
    del host.kernel.installed["/opt/old/vllm"]
    retuned(there, executable="/opt/new/vllm")
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "failed"}
    found = failure(outcome)
    assert "was started with vLLM 0.31.0 at /opt/old/vllm, which is not there any more" in found.summary
    assert there.pids() == {}


def test_another_program_goes_back_to_the_old_one() -> None:
    """Which is still there, though no file names it any more."""
    host = FakeHost("h1", installed=TWO)
    there = world(wanted(executable="/opt/old/vllm"), hosts=[host])
    apply(there)
    dies_with(host, "/opt/new/vllm")
    there.want(wanted(executable="/opt/new/vllm"))
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert "executable /opt/old/vllm → /opt/new/vllm" in failure(outcome).summary
    assert there.argv(M)[0] == "/opt/old/vllm"


def test_another_runtime_goes_back_to_the_old_one() -> None:
    """No unit of the new one stays behind."""
    there = ready(runtime="process")
    retuned(there, runtime="systemd")
    assert statuses(apply(there)) == {"m@h1": "rolled_back"}
    host = there.hosts["h1"]
    assert host.systemd.names() == []
    assert length(there) == "4096"


def test_steps_that_fail_before_the_stop_leave_what_runs() -> None:
    """A full disk: the server was never taken down, so nothing is brought back."""
    there = ready()
    pids = there.pids()
    retuned(there).hosts["h1"].failing["write-file"] = Refusal("disk-full", "No space left on device", "/x")
    outcome = apply(there)
    assert (statuses(outcome), failure(outcome).kind) == ({"m@h1": "failed"}, "disk_full")
    assert there.pids() == pids
    assert len(history(there)) == 1


def test_a_start_that_the_host_refuses_is_rolled_back() -> None:
    """The step that starts it fails once the old one is stopped; the one that brings it back does not."""
    there = ready(runtime="process")
    host = there.hosts["h1"]
    there.want(wanted(args={"max_model_len": 8192}, runtime="process"))
    plan, request = there.plan(), host.request
    host.failing["spawn"] = Refusal("spawn-failed", "it would not")

    def mended(payload: dict[str, Any], **options: Any) -> object:  # noqa: ANN401 - passed on
        if payload["do"] == "revisions" and not there.pids():
            host.failing.clear()
        return request(payload, **options)

    host.request = mended  # type: ignore[method-assign,assignment]
    outcome = apply(there, plan)
    assert (statuses(outcome), failure(outcome).kind) == ({"m@h1": "rolled_back"}, "spawn_failed")
    assert length(there) == "4096"


def test_a_disk_that_is_full_for_the_history_fails_nothing() -> None:
    """The server is ready; that it cannot be brought back is a note."""
    there = world(wanted())
    there.hosts["h1"].failing["keep-revision"] = Refusal("disk-full", "No space left on device", "/h")
    witness = Witness()
    outcome = execute(there.plan(), run_of(there, witness))
    assert statuses(outcome) == {"m@h1": "changed"}
    assert any("could not be kept for going back to it: No space left" in line for _, line in witness.waited)


def test_what_ran_before_anything_was_kept_is_brought_back() -> None:
    """A server of an older version: seen as it runs, before it is taken down."""
    there = ready(env={"MY_API_KEY": SECRET, "PLAIN": "x"})
    host = there.hosts["h1"]
    host.kernel.remove(f"{host.state}/history/m.json")
    retuned(there, env={"MY_API_KEY": SECRET, "PLAIN": "y"})
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert "env.PLAIN x → y" in failure(outcome).summary
    root = host.root("m")
    assert root is not None
    assert (length(there), root.env["PLAIN"], root.env["MY_API_KEY"]) == ("4096", "x", SECRET)
    assert history(there)[0]["note"] == "seen before it was changed"


def test_the_first_interrupt_lets_it_finish_going_back() -> None:
    """Availability first: nothing more begins, but the server is ready again."""
    there = retuned(ready())
    host, witness = there.hosts["h1"], Witness()
    run = run_of(there, witness)
    host.kernel.behaviours["m"] = Behaviour(ready_after=3.0)
    witness.on_wait = run.stopping.set
    outcome = execute(there.plan(), run)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert length(there) == "4096"


def test_too_slow_a_start_goes_back() -> None:
    """It never answers within its time: it is stopped, and the old settings come back."""
    there = ready()
    dies_with(there.hosts["h1"], "8192", behaviour=Behaviour(ready_after=10_000))
    base = wanted(args={"max_model_len": 8192})
    there.want(replace(base, health=replace(base.health, startup_timeout=0.01)))
    outcome = apply(there)
    assert (statuses(outcome), failure(outcome).kind) == ({"m@h1": "rolled_back"}, "startup_timeout")
    assert length(there) == "4096"


def test_a_removed_server_leaves_no_history() -> None:
    """Nothing is left on the host."""
    there = ready()
    there.want()
    apply(there, prune=True)
    assert there.hosts["h1"].kernel.files == {}


@BOTH
def test_on_gpus_the_chosen_number_comes_back(runtime: str) -> None:
    """The memory of the failed start is seen free first; the number stays the tool's, so nothing differs afterwards."""
    share = {"gpu_memory_utilization": 0.7}
    there = world(wanted(args=share, runtime=runtime), gpus=2)
    host, plan = there.hosts["h1"], there.plan()
    (change,) = plan.changes
    assert change.placed is not None
    decided = replace(change, placed=replace(change.placed, settings=share))
    apply(there.want(wanted(runtime=runtime)), replace(plan, changes=(decided,)))
    before = there.argv(M)
    (row,) = history(there)
    assert row["launch"]["decided"] == share
    assert row["launch"]["placed"]["devices"]
    host.gpus_freed_after = 40.0
    there.want(wanted(args={"gpu_memory_utilization": 0.03}, runtime=runtime))
    witness = Witness()
    outcome = execute(there.plan(), run_of(there, witness))
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert failure(outcome).kind == "no_kv_memory"
    assert there.argv(M) == before
    assert any("are free" in line for _, line in witness.waited)
    there.want(wanted(runtime=runtime))
    assert not there.plan().pending


def test_on_gpus_that_nobody_chose_memory_is_waited_for_too() -> None:
    """A launch that was only seen says no bytes: the GPUs of the failed start settle first."""
    there = world(wanted(args={"gpu_memory_utilization": 0.6}), gpus=1)
    host = there.hosts["h1"]
    apply(there)
    host.kernel.remove(f"{host.state}/history/m.json")
    host.gpus_freed_after = 4.0
    there.want(wanted(args={"gpu_memory_utilization": 0.6, "max_model_len": 10_000_000}))
    assert statuses(apply(there)) == {"m@h1": "rolled_back"}
    assert "--max-model-len" not in there.argv(M)


def test_a_port_that_is_somebody_elses_by_now_is_not_taken_back() -> None:
    """Two swap their ports, and one does not start: the other has its port already, or both go back."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    apply(there)
    host = there.hosts["h1"]
    start = host.kernel._behaviour

    def behave(slug: str, argv: tuple[str, ...], version: str) -> Behaviour:
        return DIES if slug == "b" and "8001" in argv else start(slug, argv, version)

    host.kernel._behaviour = behave  # type: ignore[method-assign]
    there.want(wanted("a@h1", port=8002), wanted("b@h1", port=8001))
    outcome = apply(there)
    assert statuses(outcome)["b@h1"] in {"failed", "rolled_back"}
    ports = [root.port for slug in "ab" if (root := host.root(slug))]
    assert len(set(ports)) == len(ports) >= 1


def test_what_ran_is_kept_before_an_early_stop_too() -> None:
    """A swap of ports takes both down before either starts."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    apply(there)
    host = there.hosts["h1"]
    for slug in "ab":
        host.kernel.remove(f"{host.state}/history/{slug}.json")
    there.want(wanted("a@h1", port=8002), wanted("b@h1", port=8001))
    assert set(statuses(apply(there)).values()) == {"changed"}
    assert [row["note"] for row in host.history("a")] == ["seen before it was changed", ""]
