"""`python -m vmreconcile` and the console script."""

from __future__ import annotations

import importlib
import signal
import sys

INTERRUPTED_EXIT = 130
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(module: str = "vmreconcile.cli.main") -> None:
    """Run the command line of `module` and leave with its exit code."""
    try:
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


def _end_orderly() -> None:
    """A scheduler's SIGTERM and a terminal that was closed mean what Ctrl-C means; what is ignored (nohup) stays so."""
    for number in ENDINGS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    run()
