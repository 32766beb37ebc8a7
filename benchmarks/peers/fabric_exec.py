"""Baseline: one bare Fabric exec of `python3 -c pass` on each host of a list, with as many threads as ours.

    python fabric_exec.py HOSTS_FILE KEY FORKS COMMAND

Fabric as its documentation has it: a `Connection` a host, `run`. It looks for no further keys and checks no host key.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fabric


def main(hosts: str, key: str, forks: str, command: str) -> None:
    """Run `command` everywhere; a host that fails ends the program."""
    keys = {"key_filename": key, "look_for_keys": False, "allow_agent": False}

    def run(host: str) -> None:
        with fabric.Connection(host, user="root", connect_kwargs=keys) as connection:
            connection.run(command, hide=True, in_stream=False)

    with ThreadPoolExecutor(int(forks)) as pool:
        list(pool.map(run, Path(hosts).read_text().split()))


main(*sys.argv[1:])
