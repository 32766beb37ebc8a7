"""What starting a server on a host takes: argv, env file, paths; and that no secret is in it."""

from __future__ import annotations

from dataclasses import replace

from tests.lab.fake_host import FakeHost
from tests.lab.worlds import World, wanted, world
from vmreconcile.core.gpus.applied import with_placed
from vmreconcile.core.launching import launch_settings, make_launch, public_env
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.launch import Launch
from vmreconcile.model.steps import KEEP, SecretRef
from vmreconcile.vllm.catalogue import catalogue_for


def launch(server: DesiredServer, *, token_known: bool = True, there: World | None = None) -> Launch:
    """The launch of a server on its host."""
    view = (there or world(server)).observe().hosts[0]
    return make_launch(server, view, catalogue_for(None), token_known=token_known)


def test_argv_is_the_settings_with_port_and_revision() -> None:
    """The executable as found on the host, the model first."""
    made = launch(wanted(args={"max_model_len": 4096}, revision="abc"))
    assert made.argv == (
        *("/usr/local/bin/vllm", "serve", "org/model", "--max-model-len", "4096"),
        *("--port", "8001", "--revision", "abc"),
    )


def test_no_revision_is_no_argument() -> None:
    """The default branch is vLLM's own choice."""
    assert "revision" not in launch_settings(wanted())


def test_an_executable_that_was_not_found_is_named_as_asked() -> None:
    """The plan is blocked then, but can be shown."""
    nothing = FakeHost("h1", installed={})
    assert launch(wanted(), there=world(wanted(), hosts=[nothing])).argv[0] == "vllm"
    asked = wanted(executable="/opt/v/bin/vllm")
    assert launch(asked, there=world(asked, hosts=[nothing])).argv[0] == "/opt/v/bin/vllm"


def test_paths_are_below_our_folders() -> None:
    """By the slug, for root and for another user."""
    made = launch(wanted("m/2@h1"))
    assert (made.env_path, made.log_path, made.cwd, made.unit_path) == (
        "/etc/vmreconcile/env/m_2.env",
        "/var/lib/vmreconcile/log/m_2.log",
        "/var/lib/vmreconcile",
        "/etc/systemd/system/vmreconcile-m_2.service",
    )
    user = launch(wanted(), there=world(wanted(), uid=1000))
    assert user.unit_path == "/home/op/.config/systemd/user/vmreconcile-m.service"
    assert (user.scope, user.linger) == ("user", True)


def test_lingering_is_asked_for_once() -> None:
    """A user that has it, and root, need not."""
    host = FakeHost("h1", uid=1000)
    host.lingering = True
    assert not launch(wanted(), there=world(wanted(), hosts=[host])).linger
    assert not launch(wanted()).linger


def test_entries_are_sorted_and_hold_no_secret() -> None:
    """The token, and what looks like a secret in the model's own environment, by name only."""
    server = wanted(env={"Z": "1", "VLLM_API_KEY": "word", "PROXY": "http://user:word@p", "B": ""}, visible=("1", "3"))
    assert launch(server).entries == (
        ("B", ""),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("CUDA_VISIBLE_DEVICES", "1,3"),
        ("HF_TOKEN", SecretRef(name="default")),
        ("PROXY", SecretRef(name="env.PROXY")),
        ("VLLM_API_KEY", SecretRef(name="env.VLLM_API_KEY")),
        ("VMRECONCILE_SERVER", "m"),
        ("Z", "1"),
    )


def test_gpus_by_uuid_need_no_order() -> None:
    """An index means the same GPU to CUDA and the driver only by bus; a UUID always does."""
    entries = dict(launch(wanted(visible=("GPU-1", "GPU-2"))).entries)
    assert entries["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert "CUDA_DEVICE_ORDER" not in entries
    assert not [name for name in dict(launch(wanted(gpus=(1, 3))).entries) if name.startswith("CUDA")]


def test_what_the_tool_chose_is_recorded() -> None:
    """So that it can stay; what somebody wrote is not the tool's."""
    placed = Placed(settings={"gpu_memory_utilization": 0.4})
    record = launch(with_placed(wanted(args={"max_model_len": 8192}), placed)).record
    assert record["decided"] == {"gpu_memory_utilization": 0.4}


def test_a_token_that_is_not_known_is_kept() -> None:
    """What the host has stays; a server that gets none has no entry."""
    assert ("HF_TOKEN", KEEP) in launch(wanted(), token_known=False).entries
    assert not [name for name, _ in launch(wanted(token=None)).entries if name == "HF_TOKEN"]


def test_record_names_what_we_wrote() -> None:
    """So that later a variable of ours that is too many is known from one that is not ours."""
    record = launch(wanted("m/1@h1", env={"A": "1"})).record
    assert record == {"server": "m/1", "port": 8001, "env_names": ["A", "HF_TOKEN", "VMRECONCILE_SERVER"]}


def test_the_marker_cannot_be_overridden() -> None:
    """It is what makes the process ours."""
    server = wanted(env={"VMRECONCILE_SERVER": "other"})
    assert public_env(replace(server, env=server.env))["VMRECONCILE_SERVER"] == "m"
