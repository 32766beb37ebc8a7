"""Asks the real Ansible, in one process that imports it once and forks for each question.

Run as `python oracle.py`, with a question a line on standard input: `{"sources": […], "cwd": …, "patterns": […]}`.
Prints an answer a line: `{"list": …, "hosts": {NAME: …}, "patterns": {PATTERN: [names] | null}, "failed": bool}`.
`failed` says whether Ansible left out a source; null is a pattern that Ansible refuses.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

os.environ["ANSIBLE_CONFIG"] = str(Path(__file__).with_name("oracle.cfg"))
os.environ["ANSIBLE_NOCOLOR"] = "1"
os.environ["ANSIBLE_DEPRECATION_WARNINGS"] = "false"

from ansible import constants
from ansible.cli.inventory import InventoryCLI
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.plugins.loader import init_plugin_loader, inventory_loader
from ansible.utils.display import Display


class _Cli(InventoryCLI):
    """`ansible-inventory --list`, keeping what it has read for further questions."""

    def _play_prereqs(self) -> tuple[object, InventoryManager, object]:
        self.read = super()._play_prereqs()
        return self.read


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    os.chdir(question["cwd"])
    sources = [word for source in question["sources"] for word in ("-i", source)]
    cli = _Cli(["ansible-inventory", *sources, "--list"])
    cli.parse()
    warnings: list[str] = []
    Display().warning = lambda msg, *_, **__: warnings.append(str(msg))  # type: ignore[method-assign]
    printed = io.StringIO()
    Display().display = lambda msg, *_, stderr=False, **__: stderr or printed.write(str(msg))  # type: ignore[method-assign]
    with suppress(SystemExit):
        cli.run()
    inventory = cli.read[1]
    hosts = {}
    for name in inventory.hosts:
        host = cli._get_host_variables(inventory.hosts[name])
        hosts[name] = json.loads(cli.dump(host))
    return {
        "list": json.loads(printed.getvalue()),
        "hosts": hosts,
        "patterns": {pattern: _hosts(inventory, pattern) for pattern in question["patterns"]},
        "failed": any("Unable to parse" in warning for warning in warnings),
    }


def _hosts(inventory: InventoryManager, pattern: str) -> list[str] | None:
    """What `ansible PATTERN --list-hosts` lists; '@FILE' as what `--limit @FILE` leaves."""
    try:
        if pattern.startswith("@"):
            inventory.subset(pattern)
            found = inventory.list_hosts("all")
        else:
            found = inventory.list_hosts(pattern)
        return [str(getattr(host, "name", host)) for host in found if not getattr(host, "implicit", False)]
    except AnsibleError:
        return None
    finally:
        inventory.subset(None)


def _in_child(question: dict[str, Any]) -> dict[str, Any]:
    """Answer in a fork: Ansible keeps state for the length of a process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            with redirect_stdout(sys.stderr):
                answer = _answer(question)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is told
            answer = {"failed": True, "error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    return answer


if __name__ == "__main__":
    assert constants.DEFAULT_HASH_BEHAVIOUR == "replace"
    init_plugin_loader()  # before forking, since it takes most of the time
    for plugin in constants.INVENTORY_ENABLED:
        inventory_loader.get(plugin)
    for line in sys.stdin:
        print(json.dumps(_in_child(json.loads(line))), flush=True)
