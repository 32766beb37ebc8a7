"""ui: the servers on the terminal, live, with a key for each thing that can be done to one.

What a key asks for is done by the command of that name, on the plain screen, so that nothing is done here that the
command line would not do.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmreconcile.cli.output import inputs_of, reach_of
from vmreconcile.cli.render_errors import diagnostics_text
from vmreconcile.cli.render_status import COLOR, age_text, gpus_text
from vmreconcile.cli.servers import status
from vmreconcile.cli.terminal import printable, style_for
from vmreconcile.errors import InputError
from vmreconcile.flows.prepare import prepared
from vmreconcile.flows.reconcile import observe_and_plan
from vmreconcile.model.observed import FleetView, Phase
from vmreconcile.model.plan import Plan
from vmreconcile.model.tokens import Need

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

REFRESH_S = 5.0
QUESTIONS = ("Name", "Model (its id on the Hub)", "Port")
KEYS = {
    b"\x1b[A": "up",
    b"k": "up",
    b"\x1b[B": "down",
    b"j": "down",
    b"\r": "toggle",
    b"\n": "toggle",
    b"a": "add",
    b"e": "edit",
    b"d": "remove",
    b"x": "force",
    b"c": "cleanup",
    b"t": "token",
    b"r": "refresh",
    b"h": "help",
    b"?": "help",
    b"q": "quit",
    b"\x03": "quit",
    b"\x04": "quit",
}
HELP = """\
up, down   choose a server (also k, j)
Enter      start or stop it
A          add a model
E          edit the model's file
D          remove the model: stop it, remove it from its hosts, delete its file
X          force: end orphans, stop our servers that do not serve
C          clean up: end orphans
T          the Hugging Face token: which, from where, whose
R          look again now
Q          quit"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One server as the view shows it."""

    server: str
    model: str
    phase: Phase
    port: str
    memory: str
    age: str
    priority: str
    file: str


def ui(arguments: argparse.Namespace) -> int:
    """Show the servers until Q; where there is no terminal that can be drawn on, once, as `status` does."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if not terminal or arguments.json:
        arguments.watch = False
        return status(arguments)
    chosen, begun = "", False
    while True:
        try:
            words, chosen = _look(arguments, chosen)
        except InputError as error:
            if not begun or not _mended(error):
                raise
            continue
        begun = True
        if not words:
            return 0
        if words != ["refresh"]:
            _do(words, arguments)


def _look(arguments: argparse.Namespace, chosen: str) -> tuple[list[str], str]:
    """Show and look again until a key asks for something: its command's words (none: quit), and the server chosen."""
    from rich.console import Console  # noqa: PLC0415 - 60 ms, of this command alone
    from rich.live import Live  # noqa: PLC0415 - as above

    inputs = inputs_of(arguments)
    files = {str(document.get("name")): document.path for document in inputs.documents}
    priorities = {str(server.id): str(server.priority) for server in inputs.desired.servers}
    with prepared(inputs, reach_of(arguments, need=Need.COMPARED)) as ready, _keys() as read:
        console = Console(no_color=arguments.no_color)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                view, plan = observe_and_plan(ready, once=False)
                rows = rows_of(view, plan, files, priorities)
                key = ""
                while key in {"", "up", "down"}:
                    chosen = moved(rows, chosen, key)
                    live.update(_table(rows, chosen, plan), refresh=True)
                    key = read(REFRESH_S)
                    if key == "later":
                        break
                if key == "quit":
                    return [], chosen
                words = words_for(key, next((row for row in rows if row.server == chosen), None))
                if words:
                    return words, chosen


def _mended(error: InputError) -> bool:
    """Show what is wrong with the files; whether the person wants to have them read again."""
    print(diagnostics_text(error.diagnostics, style_for(sys.stdout, no_color=True)))
    try:
        input("Enter reads the files again, Ctrl-D leaves ")
    except EOFError:
        return False
    return True


def rows_of(view: FleetView, plan: Plan, files: dict[str, str], priorities: dict[str, str]) -> list[Row]:
    """A row for each server of the plan."""
    rows = []
    for change in plan.changes:
        host = view.host(change.server.host)
        observed = host.server(change.server.slug) if host else None
        process = observed.process if observed else None
        endpoint = observed.endpoint if observed else None
        rows.append(
            Row(
                server=str(change.server),
                model=change.server.model,
                phase=change.phase,
                port=str(endpoint.port) if endpoint else "",
                memory=gpus_text(change, view),
                age=age_text(host.now - process.started_at) if host and process else "",
                priority=priorities.get(str(change.server), ""),
                file=files.get(change.server.model, ""),
            )
        )
    return rows


def moved(rows: Sequence[Row], chosen: str, key: str) -> str:
    """The server chosen after `key`; the first where there is none."""
    names = [row.server for row in rows]
    if chosen not in names:
        return names[0] if names else ""
    step = {"up": -1, "down": 1}.get(key, 0)
    return names[max(0, min(len(names) - 1, names.index(chosen) + step))]


def words_for(key: str, row: Row | None) -> list[str]:
    """The command's words for a key; none where there is nothing to do, or no server to do it to."""
    match key:
        case "toggle" if row is not None and row.file:
            return ["start" if row.phase in {Phase.ABSENT, Phase.STOPPED, Phase.CRASHED} else "stop", row.server]
        case "remove" if row is not None and row.file:
            return ["remove", row.model]
        case "edit" if row is not None and row.file:
            return ["edit", row.file]
        case "toggle" | "remove" | "edit" if row is not None:
            return ["nothing"]
        case "token":
            return ["auth", "status"]
        case "add" | "force" | "cleanup" | "refresh" | "help":
            return [key]
        case _:
            return []


def _table(rows: Sequence[Row], chosen: str, plan: Plan) -> Table:
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    caption = "Enter start/stop  A add  E edit  D remove  X force  C clean up  T token  R refresh  H help  Q quit"
    away = "; ".join(f"{host.host} unreachable: {host.reason}" for host in plan.unreachable)
    table = Table(title=printable(away) or None, caption=caption, expand=True)
    for head in ("SERVER", "PHASE", "PORT", "GPU MEMORY", "UP", "PRIORITY"):
        table.add_column(head)
    for row in rows:
        cells = (row.port, row.memory, row.age, row.priority)
        table.add_row(
            Text(printable(row.server)),
            Text(row.phase.value, style=COLOR[row.phase]),
            *(Text(printable(cell)) for cell in cells),
            style="reverse" if row.server == chosen else "",
        )
    if not rows:
        table.add_row(Text("no model yet: A adds one"))
    return table


@contextlib.contextmanager
def _keys() -> Iterator[_Reader]:
    """The keyboard, key by key, without echo; as it was afterwards."""
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        yield _Reader(number)
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


class _Reader:
    """Reads one key; of several that came at once, one after the other."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._left = b""

    def __call__(self, seconds: float) -> str:
        """What the next key asks for; `later` where none came in time or it asks for nothing."""
        if not self._left:
            ready, _, _ = select.select([self._number], [], [], seconds)
            if not ready:
                return "later"
            self._left = os.read(self._number, 64)
            if not self._left:
                return "quit"
        pressed, self._left = first_key(self._left)
        return KEYS.get(pressed.lower() if len(pressed) == 1 else pressed, "later")


def first_key(pressed: bytes) -> tuple[bytes, bytes]:
    """The first key of what was read, and the rest: an escape sequence (ECMA-48: to its final letter) is one key."""
    found = re.match(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", pressed, re.DOTALL)
    end = found.end() if found else len(pressed)
    return pressed[:end], pressed[end:]


def _do(words: list[str], arguments: argparse.Namespace) -> None:
    """Carry out a command, and wait for Enter so that what it said can be read."""
    match words[0]:
        case "help":
            print(HELP)
        case "edit":
            editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
            try:
                subprocess.run([*editor, words[1]], check=False)  # noqa: S603 - the person's own editor
            except OSError as error:
                print(f"{editor[0]}: {error.strerror}; name an editor in EDITOR, or edit {words[1]} yourself")
        case "add":
            with contextlib.suppress(EOFError):  # Ctrl-D: rather not
                name, model, port = (input(f"{what}: ").strip() for what in QUESTIONS)
                _run(["add", "--port", port, "--", name, model], arguments)
        case "nothing":
            print("vmreconcile has no file for this server: nobody wants it; apply --prune removes it")
        case _:
            _run(words, arguments)
    with contextlib.suppress(EOFError):
        input("Enter goes back ")


def _run(words: list[str], arguments: argparse.Namespace) -> None:
    from vmreconcile.cli.vm import main  # noqa: PLC0415 - it names this module

    inventory = [word for path in arguments.inventory or [] for word in ("-i", path)]
    limit = ["-l", arguments.limit] if arguments.limit and words[0] in {"cleanup", "force"} else []
    at = 2 if words[0] == "auth" else 1
    main([*words[:at], *inventory, "-m", str(arguments.models), *limit, *words[at:]])
