"""`python -m vmreconcile` and the console script."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys

INTERRUPTED_EXIT = 130
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(module: str = "vmreconcile.cli.main") -> None:
    """Run the command line of `module` and leave with its exit code."""
    try:
        _open_streams()
        _end_orderly()
        main = importlib.import_module(module).main  # Ctrl-C may come while this is loaded
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED_EXIT
    for number in ENDINGS:  # what was to be done is done: nothing is left to interrupt
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run_vm() -> None:
    """The console script `vm`."""
    run("vmreconcile.cli.vm")


def _open_streams() -> None:
    """A stream that was closed leads nowhere; a letter that the output's encoding lacks becomes `?`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # so that each gets its own number back
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - for the whole run
        elif isinstance(stream, io.TextIOWrapper) and name == "stdout":
            stream.reconfigure(errors="replace")


def _end_orderly() -> None:
    """A scheduler's SIGTERM and a terminal that was closed mean what Ctrl-C means; what is ignored (nohup) stays so."""
    for number in ENDINGS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    run()
