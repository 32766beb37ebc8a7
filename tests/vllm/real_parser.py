"""The argument parser of an installed vLLM as a line-by-line service; run by vLLM's own interpreter, not by pytest.

Each line in is a JSON list of words after `vllm`; each line out is `{"error": TEXT}` or `{"settings": {…}}` with what
differs from the parse of no arguments at all. Building the parser is scripts/vllm-catalogue's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from types import ModuleType


def generator() -> ModuleType:
    """Load the script that writes the catalogues."""
    path = str(Path(__file__).parents[2] / "scripts" / "vllm-catalogue")
    loader = importlib.machinery.SourceFileLoader("vllm_catalogue", path)
    spec = importlib.util.spec_from_loader("vllm_catalogue", loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["vllm_catalogue"] = module
    loader.exec_module(module)
    return module


def plain(value: object, script: ModuleType) -> object:
    """The value as JSON; what has no JSON form is told apart by its text."""
    try:
        return script.plain(value)
    except TypeError:
        return {"text": repr(value)}


def answer(words: list[str], parser: argparse.ArgumentParser, script: ModuleType) -> dict[str, object]:
    """Parse one command line."""
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(heard):
            namespace = parser.parse_args(words)
    except SystemExit:
        return {"error": heard.getvalue().rpartition("error: ")[2].strip()}
    except Exception as error:  # noqa: BLE001 - vLLM's own parser raises all sorts; the test wants to see them
        return {"error": f"{type(error).__name__}: {error}"}
    return {"settings": {name: plain(value, script) for name, value in vars(namespace).items()}}


def main() -> None:
    """Serve until the input ends."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    out = os.dup(1)
    os.dup2(2, 1)  # vLLM's own chatter must not mix with the answers
    script = generator()
    main_parser = None
    serve, parsing = script.build_parser()
    main_parser = parsing.FlexibleArgumentParser(prog="vllm")
    main_parser.add_argument("-v", "--version", action="version", version="0")
    commands = main_parser.add_subparsers(dest="subparser")
    commands._name_parser_map["serve"] = serve
    commands.choices = commands._name_parser_map
    sys.argv = ["vllm", "serve"]
    with os.fdopen(out, "w", buffering=1, encoding="utf-8") as answers:
        import vllm  # noqa: PLC0415 - only vLLM's interpreter has it

        answers.write(json.dumps({"version": vllm.__version__.partition("+")[0]}) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line), main_parser, script)) + "\n")


if __name__ == "__main__":
    main()
