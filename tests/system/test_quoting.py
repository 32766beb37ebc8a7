"""Every byte of arguments and environment reaches the program, whatever it is: through a real systemd, and without."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.space import wait_until
from tests.system.test_agent import agent_on
from vmreconcile.agent import masks
from vmreconcile.model.launch import Launch
from vmreconcile.model.names import ServerId
from vmreconcile.model.steps import SecretRef, to_json
from vmreconcile.runtimes.registry import RUNTIMES

if TYPE_CHECKING:
    from tests.agent.driver import Agent
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

SERVER = ServerId(host="gpu1", model="quoting")
PROGRAM = f"""#!{sys.executable} -I
import json, os, sys, time
data = {{"argv": [os.fsencode(word).hex() for word in sys.argv],
        "env": {{os.fsencode(k).hex(): os.fsencode(v).hex() for k, v in os.environ.items()}}}}
with open("dump.new", "w") as file:
    json.dump(data, file)
os.rename("dump.new", "dump.json")
time.sleep(600)
"""
HOSTILE_FOLDER = 'it\'s [5] 100% $HOME ${X} "q" *? a\\b #;ü漢'

WORDS = (
    *("", " ", "  two  spaces  ", "\t", "a\tb", "\n", "a\nb\n", "\r\n", "\x01\x1b[31m\x7f", "\x0b\x0c\x85\u2028"),
    *("'", '"', "'\"'", "it's", '"quoted"', "'single'", "`date`", "$(date)", "\\", "\\\\", "\\n", "\\x41", "\\$", "\\"),
    *("$", "$$", "$$$", "$X", "${X}", "$HOME", "${HOME}", "$HOME/x", "a$", "a$b", "${", "$}", "${}", "$1", "${X:-y}"),
    *("%", "%%", "%%%", "%n", "%i", "%H", "%u", "%h", "100%", "%s\\n", "%(x)s", "{x}", "%%n", "$%$%"),
    *("-", "--", "-x", "--x=y", "@", "@x", "-@x", ":", ":x", "!", "!x", "!!", "+", "+x", "|x"),
    *(
        ";",
        "; ;",
        ";x",
        "a;b",
        "#",
        "#x",
        "a #b",
        "=",
        "a=b",
        "&",
        "&&",
        "|",
        ">",
        "<",
        ">x",
        "*",
        "?",
        "[a]",
        "~",
        "~x",
    ),
    *("{", "}", '{"a": {"b": [1, null, "x y"]}}', "[1, 2]", "a,b", "!reset", "null", "true", "0", "None"),
    *("ü", "漢字", "🚀", "e\u0301", "\u00a0", "\u200b", "\ufeff", "\u202e", "\U0010fffd"),
    *(
        "ExecStart=/bin/false",
        "[Service]",
        "\nExecStart=/bin/false",
        "\\\n",
        "x\\",
        'x"',
        "x'",
        "x\\\\",
        " x",
        "x ",
        "\\ ",
    ),
    *("http://u:p@h/x?a=b&c=d#e", "/a b/c", "C:\\x\\y", "\\\\server\\share", "a\\tb", "\\u00e4", "\\101", "\\s", "\\e"),
    "long " + "x\"'$%\\ü\n" * 11000,
)
VALUES = {f"V{number}": word for number, word in enumerate(WORDS)}


def hostile_launch(agent: Agent, program: str, log: str) -> Launch:
    """All of it, on the agent's host and in its folders."""
    seen = agent.observe()
    folders, scope = seen["folders"], seen["systemd"]["scope"]
    entries = tuple((name, SecretRef(name=name) if name == "V3" else value) for name, value in VALUES.items())
    return Launch(
        id=SERVER,
        argv=(program, "serve", *WORDS),
        entries=entries,
        env_path=f"{folders['config']}/env/{SERVER.slug}.env",
        log_path=log or f"{folders['state']}/log/{SERVER.slug}.log",
        cwd=folders["state"],
        scope=scope,
        unit_dir="/etc/systemd/system" if scope == "system" else f"{seen['host']['home']}/.config/systemd/user",
        record={"env_names": sorted(VALUES)},
    )


def dumped(host: Host, folder: str) -> dict[str, Any]:
    """What the program saw, as bytes."""
    path = f"{folder}/dump.json"
    wait_until(lambda: host.exists(path), 20, "the program to start", pause=0.1)
    found = json.loads(host.read(path))
    env = {bytes.fromhex(name).decode(): bytes.fromhex(value) for name, value in found["env"].items()}
    return {"argv": [bytes.fromhex(word) for word in found["argv"]], "env": env}


@pytest.mark.parametrize("folder", ["", HOSTILE_FOLDER])
@pytest.mark.parametrize("runtime", ["systemd", "process"])
@pytest.mark.parametrize("user", ["root", "plain"])
def test_every_byte_arrives(lab: Lab, hosts: list[Host], user: str, runtime: str, folder: str) -> None:
    """150 hostile arguments and as many hostile values, in plain folders and in one with a hostile name."""
    host = hosts[0]
    home = "/root" if user == "root" else "/home/plain"
    base = f"{home}/state{folder and '/'}{folder}"
    host.shell('rm -rf "$1"/state; mkdir -p "$2"', home, base, user=user)
    program = f"{base}/dump program" if runtime == "process" else f"{home}/state/[5] 100% $HOME ${{X}} *? #;ü漢"
    host.write(program, PROGRAM, 0o755, user=user)
    with agent_on(host, user) as agent:
        agent.folders = {"config": f"{base}/config", "state": f"{base}/state"}
        launch = hostile_launch(agent, program, "")
        steps = [to_json(step) for step in RUNTIMES[runtime].start(launch)]
        try:
            agent.steps(*steps, slug=SERVER.slug, secrets={"V3": VALUES["V3"]})
            seen = dumped(host, launch.cwd)
            shown = agent.server(SERVER.slug)["process"]["argv"][-len(WORDS) :]
            assert shown == masks.mask_argv(WORDS)
        finally:
            if runtime == "systemd":
                stop = {"step": "stop-unit", "unit": SERVER.unit, "scope": launch.scope, "grace_s": 1}
                agent.steps(stop, slug=SERVER.slug)
    assert seen["argv"] == [word.encode() for word in (program, "serve", *WORDS)]
    assert {name: seen["env"].get(name) for name in VALUES} == {name: word.encode() for name, word in VALUES.items()}
    assert seen["env"]["VMRECONCILE_SERVER"] == SERVER.slug.encode()
