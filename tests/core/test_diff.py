"""What differs between wanted and observed, field by field: settled fake hosts, then one thing changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.gpu_views import card, machine, seen, uuids
from tests.lab.worlds import FILE, TOKEN, World, known, only, wanted, world
from vmreconcile.core.diff import Drift, drift_of
from vmreconcile.core.planning import subject_of
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Gpu, Placed
from vmreconcile.model.observed import ObservedServer
from vmreconcile.model.plan import Field
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.values import JsonValue, Setting

ARGS: dict[str, JsonValue] = {"max_model_len": 4096, "enable_prefix_caching": True}


def settled(**options: object) -> World:
    """A running server with some settings."""
    return world(wanted(args=ARGS, env={"VLLM_LOGGING_LEVEL": "INFO"}), **options).settle()


def drift(there: World) -> Drift:
    """What differs for the only server."""
    (server,) = there.desired.servers
    view = there.observe()
    return drift_of(subject_of(server, view.hosts[0], known(there.tokens)))


def setting(server: DesiredServer, name: str, value: JsonValue) -> DesiredServer:
    """The server with one argument said anew."""
    return replace(server, settings={**server.settings, name: Setting(value=value, origin=FILE)})


def env(server: DesiredServer, **values: str) -> DesiredServer:
    """The server with just these variables."""
    return replace(server, env={name: Setting(value=value, origin=FILE) for name, value in values.items()})


@pytest.mark.parametrize("systemd", [252, None])
def test_nothing_differs_after_a_start(systemd: int | None) -> None:
    """Both runtimes."""
    assert drift(settled(systemd=systemd)) == Drift()


def test_a_changed_argument_is_one_field_with_its_origin() -> None:
    """Before as observed, after as wanted, and where that was said."""
    there = settled().change(lambda server: setting(server, "max_model_len", 8192))
    expected = Field(path="args.max_model_len", before=4096, after=8192, origin="models.d/m.yaml:9")
    assert drift(there).settings == (expected,)


def test_the_same_change_shows_in_the_unit_too() -> None:
    """The unit is a file of ours that will be written anew."""
    there = settled().change(lambda server: setting(server, "max_model_len", 8192))
    assert [field.path for field in drift(there).files] == ["unit.ExecStart"]


def test_an_argument_taken_away_falls_back_to_the_default() -> None:
    """After is what vLLM does without it."""
    there = settled().change(lambda server: replace(server, settings={}))
    fields = {field.path: (field.before, field.after) for field in drift(there).settings}
    assert fields["args.max_model_len"] == (4096, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_model_len", "4096"),
        ("max_model_len", 4096.0),
        ("gpu_memory_utilization", 0.92),
        ("kv_cache_dtype", "auto"),
        ("served_model_name", None),
    ],
)
def test_spellings_and_defaults_are_no_drift(name: str, value: JsonValue) -> None:
    """Equal settings compare equal, whoever spelled them how; a default said aloud is the default."""
    there = settled().change(lambda server: setting(server, name, value))
    assert drift(there).settings == ()


@pytest.mark.parametrize(
    "words",
    [
        ("--max_model_len=4096", "--enable-prefix-caching", "--port", "8001"),
        ("--port=8001", "--max-model-l", "4096", "--enable_prefix_caching"),
        ("--max-model-len", "1", "--max-model-len", "4096", "--enable-prefix-caching", "--port", "8001"),
    ],
)
def test_argv_spelled_otherwise_is_no_drift(words: tuple[str, ...]) -> None:
    """Order, prefixes, repeated options, both kinds of dashes."""
    there = settled()
    root = there.hosts["h1"].root("m")
    assert root is not None
    root.argv = (*root.argv[:4], *words)
    assert drift(there).settings == ()


def test_model_port_and_revision_have_paths_of_their_own() -> None:
    """They stand beside `args` in a model file."""
    there = settled().change(lambda server: replace(server, model="org/other", port=8002, revision="abc"))
    assert {field.path for field in drift(there).settings} == {"model", "port", "revision"}


def test_a_command_line_that_is_no_vllm_is_one_field() -> None:
    """What cannot be read is said to be so."""
    there = settled()
    root = there.hosts["h1"].root("m")
    assert root is not None
    root.argv = ("/bin/sleep", "1000")
    assert [field.path for field in drift(there).settings] == ["argv"]


def test_stars_of_the_agent_are_no_drift() -> None:
    """Something in an argument looks like a secret: the agent shows stars, and they match what would be started."""
    value = "hf_a-name-that-looks-like-a-token"
    there = world(wanted(args={"served_model_name": [value]})).settle()
    root = there.hosts["h1"].root("m")
    assert root is not None
    assert value in root.argv
    root.argv = tuple(word.replace(value, "***") for word in root.argv)
    assert drift(there) == Drift()
    assert drift(there.change(lambda server: setting(server, "max_model_len", 5))).settings != ()


def test_another_executable_and_runtime_are_program_drift() -> None:
    """Where vLLM lies, and what keeps it running."""
    there = settled(installed={"": ("/usr/local/bin/vllm", "0.32.0"), "/opt/v/bin/vllm": ("/opt/v/bin/vllm", "0.32.0")})
    there.change(lambda server: replace(server, executable="/opt/v/bin/vllm", runtime="process"))
    found = {field.path: (field.before, field.after) for field in drift(there).program}
    assert found == {
        "executable": ("/usr/local/bin/vllm", "/opt/v/bin/vllm"),
        "runtime": ("systemd", "process"),
    }


@pytest.mark.parametrize(
    ("installed", "differs"), [("0.33.0", True), ("0.32.0+cpu", False), ("0.32.0", False), ("0.32.1", True)]
)
def test_an_upgrade_below_a_running_server_is_version_drift(installed: str, *, differs: bool) -> None:
    """The version installed against the one that runs; a local part is no other release."""
    there = settled()
    there.hosts["h1"].kernel.installed[""] = ("/usr/local/bin/vllm", installed)
    assert [(field.before, field.after) for field in drift(there).version] == (
        [("0.32.0", installed)] if differs else []
    )


def test_environment_drift_is_by_fingerprint() -> None:
    """Changed, added and taken away; each once for the process and once for the file."""
    there = settled().change(lambda server: env(server, VLLM_LOGGING_LEVEL="DEBUG", EXTRA="1"))
    found = {field.path: (field.before, field.after) for field in drift(there).environment}
    assert found == {"env.VLLM_LOGGING_LEVEL": ("INFO", "DEBUG"), "env.EXTRA": (None, "1")}
    gone = settled().change(env)
    assert [(each.path, each.before, each.after) for each in drift(gone).environment] == [
        ("env.VLLM_LOGGING_LEVEL", "INFO", None)
    ]


def test_variables_that_are_not_ours_are_left_alone() -> None:
    """What a drop-in or the base environment adds is not missed by us."""
    there = settled()
    root = there.hosts["h1"].root("m")
    assert root is not None
    root.env = {**root.env, "VLLM_FROM_ELSEWHERE": "1", "HF_HOME": "/x"}
    assert drift(there) == Drift()


def test_secret_values_do_not_show() -> None:
    """A variable named like a secret differs without either value being told."""
    there = world(wanted(env={"VLLM_API_KEY": "one-secret-word"})).settle()
    there.change(lambda server: env(server, VLLM_API_KEY="another-word"))
    found = drift(there)
    assert [(field.path, field.before, field.after) for field in found.environment] == [
        ("env.VLLM_API_KEY", HIDDEN, HIDDEN)
    ]


def gpu_drift(process: ObservedServer, visible: tuple[str, ...], gpus: int | tuple[Gpu, ...] = 4) -> tuple[Field, ...]:
    """What differs of the GPUs of a server that is to have these."""
    placed = Placed(devices=visible, visible=visible)
    return drift_of(subject_of(wanted("a@h1"), machine(gpus, process), known(), placed)).gpus


def test_gpus_are_compared_by_what_they_are() -> None:
    """An index and a UUID may mean the same; other GPUs are told by their numbers."""
    assert gpu_drift(seen("a", 10, visible=",".join(uuids(0, 1))), uuids(0, 1)) == ()
    assert gpu_drift(seen("a", 10, visible="1,0"), uuids(0, 1)) == ()
    (field,) = gpu_drift(seen("a", 10, visible="0"), uuids(2, 3))
    assert (field.path, field.before, field.after) == ("gpus", "0", "2, 3")
    (field,) = gpu_drift(seen("a", 10, visible="GPU-gone"), uuids(2))
    assert (field.before, field.after) == ("GPU-gone", "2")


def test_one_that_was_told_nothing_is_where_it_holds_memory() -> None:
    """A server from before GPUs were named is not restarted for that, as long as it is on the right ones."""
    there = (card(0), card(1, held={10: 70.0}))
    assert gpu_drift(seen("a", 10), uuids(1), there) == ()
    (field,) = gpu_drift(seen("a", 10), uuids(0), there)
    assert (field.before, field.after) == ("1", "0")
    assert gpu_drift(seen("a", 10), uuids(0)) == ()  # it holds nothing yet


def test_gpus_are_not_compared_where_nobody_looked() -> None:
    """While a server is waited for, its host is not asked for GPUs."""
    process = seen("a", 10, visible="0")
    subject = subject_of(wanted("a@h1"), machine(4, process), known(), Placed(visible=uuids(2)))
    blind = replace(subject, host=replace(subject.host, gpus=(), gpu_problem=None))
    assert drift_of(blind).gpus == ()
    assert drift_of(subject).gpus != ()


def test_a_rotated_token_is_token_drift_alone() -> None:
    """Neither token shows; nothing but the token and its file differ."""
    there = settled()
    there.tokens = {"default": TOKEN + "rotated"}
    found = drift(there)
    assert [(field.path, field.before, field.after) for field in found.token] == [
        ("hf_token", "another token", "the token of 'default'")
    ]
    assert [field.path for field in found.files] == ["env_file.hf_token"]
    assert TOKEN not in repr(found)
    assert found.environment == ()


def test_an_unknown_token_leaves_the_hosts_alone() -> None:
    """This controller has none: what the host has may be a colleague's."""
    there = settled()
    there.tokens = {}
    assert drift(there) == Drift()


def test_a_token_no_longer_wanted_is_drift() -> None:
    """hf_token: null takes it away."""
    there = settled().change(lambda server: replace(server, token=None))
    assert [(field.path, field.before, field.after) for field in drift(there).token] == [("hf_token", HIDDEN, None)]


ENV_PATH = "/etc/vmreconcile/env/m.env"
UNIT_PATH = "/etc/systemd/system/vmreconcile-m.service"


def edit_unit(host: FakeHost) -> None:
    """Change a line by hand."""
    file = host.kernel.files[UNIT_PATH]
    file.content = file.content.replace("RestartSec=5", "RestartSec=50")


def edit_env(host: FakeHost) -> None:
    """Change a value by hand."""
    file = host.kernel.files[ENV_PATH]
    file.content = file.content.replace("INFO", "DEBUG")


def add_env(host: FakeHost) -> None:
    """Add a line by hand."""
    host.kernel.files[ENV_PATH].content += "MORE=1\n"


def open_env(host: FakeHost) -> None:
    """Let others read it."""
    host.kernel.files[ENV_PATH].mode = 0o644


def give_env(host: FakeHost) -> None:
    """Give it to another user."""
    host.kernel.files[ENV_PATH].uid = 1000


def disable(host: FakeHost) -> None:
    """Keep the unit from starting at boot."""
    host.systemd.call("disable", "vmreconcile-m.service")


@pytest.mark.parametrize(
    ("edit", "paths"),
    [
        (edit_unit, {"unit.RestartSec", "unit.needs_reload"}),
        (lambda host: host.kernel.files.pop(UNIT_PATH), {"unit"}),
        (disable, {"unit.enabled"}),
        (edit_env, {"env_file.VLLM_LOGGING_LEVEL"}),
        (add_env, {"env_file.MORE"}),
        (open_env, {"env_file.mode"}),
        (give_env, {"env_file.owner"}),
        (lambda host: host.kernel.files.pop(ENV_PATH), {"env_file"}),
        (lambda host: host.kernel.files.pop("/var/lib/vmreconcile/servers/m.json"), {"record"}),
    ],
)
def test_edited_files_are_file_drift_alone(edit: object, paths: set[str]) -> None:
    """What was edited by hand is named, and needs no new process."""
    there = settled()
    assert callable(edit)
    edit(there.hosts["h1"])
    found = drift(there)
    assert {field.path for field in found.files} == paths
    assert found == Drift(files=found.files)
    assert not only(there.plan()).disruptive


def test_a_comment_in_a_unit_is_drift_in_its_text() -> None:
    """Layout only: said as such."""
    there = settled()
    there.hosts["h1"].kernel.files[UNIT_PATH].content += "# mine\n"
    assert {field.path for field in drift(there).files} == {"unit.text", "unit.needs_reload"}


def test_without_a_process_only_files_can_differ() -> None:
    """A stopped server has no settings."""
    there = settled()
    there.hosts["h1"].systemd.call("stop", "vmreconcile-m.service")
    found = drift(there.change(lambda server: setting(server, "max_model_len", 1)))
    assert found == Drift(files=found.files)
    assert {field.path for field in found.files} == {"unit.ExecStart"}
