"""`python -m vmreconcile.simulator install DIR`: writes a folder with a simulated `vllm`. Prints its path."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vmreconcile.errors import VmreconcileError
from vmreconcile.simulator.install import install


def main(words: list[str]) -> int:
    """Install, or say what is wrong; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vmreconcile.simulator", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("install", help="write DIR like a virtual environment with vLLM in it")
    verb.add_argument("folder", metavar="DIR", type=Path)
    verb.add_argument("--version", default="0.32.0", help="the version of vLLM to simulate (default: %(default)s)")
    verb.add_argument("--python", default=sys.executable, help="the interpreter that runs it (default: this one)")
    given = parser.parse_args(words)
    try:
        print(install(given.folder, version=given.version, python=given.python))
    except (VmreconcileError, OSError) as problem:
        remedy = problem.remedy if isinstance(problem, VmreconcileError) else ""
        print(f"cannot install the simulator: {problem}. {remedy}".rstrip(), file=sys.stderr)
        return problem.exit_code if isinstance(problem, VmreconcileError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
