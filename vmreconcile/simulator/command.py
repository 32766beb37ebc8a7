"""What the simulated `vllm` does with its command line: `serve`, `--version`, or the usage error.

Owns the dispatch and keeps tracebacks of the simulator's own away from the reader.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from vmreconcile.simulator.log import die, write, write_error

_USAGE = "usage: vllm [-h] [-v] {serve} ...\n"


def main(words: Sequence[str], environ: Mapping[str, str], *, version: str, folder: str) -> int:
    """Be `vllm WORDS`; return the exit code, or end the process."""
    match list(words):
        case ["-v" | "--version", *_]:
            write(f"{version}+simulator\n")
            return 0
        case ["serve", *rest]:
            return _serve(tuple(rest), environ, version=version, folder=folder)
        case ["-h" | "--help", *_] | []:
            write(_USAGE + "\nA SIMULATOR of vLLM: it knows `vllm serve` and `vllm --version`.\n")
            return 0
    write_error(_USAGE + f"vllm: error: argument subparser: invalid choice: {words[0]!r} (simulated: 'serve')\n")
    return 2


def _serve(words: tuple[str, ...], environ: Mapping[str, str], *, version: str, folder: str) -> int:
    """Serve; a wrong switch of the simulator's own ends the start with one line."""
    from vmreconcile.simulator.serve import serve  # noqa: PLC0415 - spares `--version` the import

    parent = os.getpid()
    try:
        serve(words, environ, version=f"{version}+simulator", folder=folder)
    except ValueError as problem:
        write_error(f"simulator of vLLM: {problem}\n")
    if os.getpid() != parent:
        die(70)
    return 1
