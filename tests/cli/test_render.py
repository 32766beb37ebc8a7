"""What a person reads: plans, statuses, failures. Text for text, and never anything that drives a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.applying import apply
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import World, wanted, world
from tests.vllm.memory.recorded import runs
from vmreconcile.cli.render_errors import counts_text, diagnostics_text, outcome_text
from vmreconcile.cli.render_memory import GIB, memory_lines, tokens_cell
from vmreconcile.cli.render_plan import field_line, plan_text, summary_line, value_text
from vmreconcile.cli.render_status import status_text
from vmreconcile.cli.terminal import Style, printable, style_for
from vmreconcile.core.gpus.figures import figures_from, memory_json
from vmreconcile.errors import Diagnostic, Place, Severity
from vmreconcile.model.desired import DesiredState, Rollout
from vmreconcile.model.gpus import Figures, Measured
from vmreconcile.model.outcome import Outcome
from vmreconcile.model.plan import Field, Plan
from vmreconcile.vllm.memory.gpus import gpu_of
from vmreconcile.vllm.memory.serving import requested_bytes

PLAIN = Style()
COLOURED = Style(color=True)
TWO = Rollout(max_unavailable=2)


@pytest.fixture
def busy() -> World:
    """Two hosts that differ in all ways, and one that is away."""
    gpu1 = FakeHost("gpu1")
    there = world(
        wanted("llama@gpu1", port=8001), wanted("qwen@gpu1", port=8002, args={"max_model_len": 4096}), hosts=[gpu1]
    ).settle()
    stranger = gpu1.stranger(8003)
    assert stranger.pid == 1004
    there.hosts |= {name: FakeHost(name) for name in ("gpu2", "gpu9")}
    there.hosts["gpu9"].unreachable = "connection refused (10.0.0.9:22)"
    return there.want(
        wanted("llama@gpu1", port=8001),
        wanted("qwen@gpu1", port=8002, args={"max_model_len": 8192}, rollout=TWO),
        wanted("gemma@gpu1", port=8003),
        wanted("qwen@gpu2", port=8002, rollout=TWO),
        replace(wanted("old@gpu2", port=8004), state=DesiredState.ABSENT),
        wanted("qwen@gpu9", port=8002, rollout=TWO),
    )


def test_a_plan_reads_from_the_host_inward(busy: World) -> None:
    """One line a server, the symbol beside the word, strangers beneath, the summary last."""
    assert plan_text(busy.plan(), PLAIN, following="vmreconcile apply") == (
        "gpu1\n"
        "  ! blocked     gemma  port 8003 is held by pid 1004 (not ours: /home/alice/venv/bin/python"
        " /home/alice/venv/bin/vllm serve /models/m)\n"
        "                       stop it there, or give this server another port\n"
        "  = in sync     llama\n"
        "  ~ retune      qwen   args.max_model_len  4096 → 8192   restarts it\n"
        "  · stranger    port 8003, pid 1004, alice: vllm serve /models/m\n"
        "gpu2\n"
        "  = in sync     old    absent\n"
        "  + start       qwen   absent\n"
        "gpu9\n"
        "  ? unreachable  connection refused (10.0.0.9:22)\n"
        "waves\n"
        "  qwen  gpu1: at most 2 of 3 down\n"
        "\n"
        "1 to start, 1 to retune, 1 blocked, 2 in sync; 1 host unreachable, 1 server wanted there and unknown."
        "   Next: vmreconcile apply"
    )


def test_explain_adds_origins_and_reasons(busy: World) -> None:
    """Where a value was said, and the closed word for why."""
    text = plan_text(busy.plan(), PLAIN, explain=True)
    assert "args.max_model_len  4096 → 8192   (models.d/m.yaml:9)   restarts it" in text
    assert "reason: args_changed" in text
    assert "reason: port_held" in text


def test_colour_is_an_extra_only(busy: World) -> None:
    """The same words without the escapes."""
    plain, coloured = plan_text(busy.plan(), PLAIN), plan_text(busy.plan(), COLOURED)
    assert "\x1b[" in coloured
    stripped = coloured
    for code in ("1", "2", "31", "32", "33", "35", "0"):
        stripped = stripped.replace(f"\x1b[{code}m", "")
    assert stripped == plain


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (Plan(), "no servers."),
        (world(wanted()).plan(), "1 to start."),
        (world(wanted()).settle().plan(), "1 in sync."),
        (world(wanted()).settle().want().plan(), "1 unclaimed."),
        (world(wanted()).settle().want().plan(prune=True), "1 to remove."),
    ],
)
def test_summaries(plan: Plan, text: str) -> None:
    """Counts in words; the next command only where one was named and something is to do."""
    assert summary_line(plan) == text
    assert summary_line(plan, "vmreconcile apply").endswith("apply") == bool(plan.pending)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "(none)"),
        (True, "true"),
        (4096, "4096"),
        (0.9, "0.9"),
        ("a b", "a b"),
        ("ü漢", "ü漢"),
        ({"b": 1, "a": [None]}, '{"a": [null], "b": 1}'),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("x" * 80, "x" * 59 + "…"),
    ],
)
def test_values_are_short_and_on_one_line(value: object, text: str) -> None:
    """As JSON, but for text."""
    assert value_text(value) == text  # type: ignore[arg-type]  # JSON values
    assert field_line(Field(path="p", before=value, after=None)) == f"p  {text} → (none)"  # type: ignore[arg-type]


def test_a_status_is_a_table(busy: World) -> None:
    """Columns under their heads; what is not known is empty."""
    lines = status_text(busy.observe(), busy.plan(), PLAIN).splitlines()
    assert lines[0].split() == ["SERVER", "PHASE", "ADDRESS", "PID", "GPU", "UP", "VLLM", "RUNTIME", "DRIFT"]
    rows = {line.split()[0]: line for line in lines[1:7]}
    assert rows["llama@gpu1"].split()[1:] == ["ready", "127.0.0.1:8001", "1000", "2s", "0.32.0", "systemd"]
    assert rows["qwen@gpu1"].endswith("args.max_model_len")
    assert rows["qwen@gpu2"].split() == ["qwen@gpu2", "absent", "absent"]
    assert rows["qwen@gpu9"].split() == ["qwen@gpu9", "unknown"]
    assert any(line.startswith("stranger on gpu1: pid 1004, alice: ") for line in lines)
    assert lines[-1] == "unreachable: gpu9: connection refused (10.0.0.9:22)"


@pytest.fixture
def learned() -> World:
    """A server on a GPU whose start was learned, and one that is stopped."""
    there = world(
        wanted("m@h1", port=8001, args={"gpu_memory_utilization": 0.8}), wanted("n@h2"), hosts=[FakeHost("h1", gpus=1)]
    )
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(beside_gib=17.0, needs_gib=1.75, context=32768)
    apply(there)
    return there


def test_a_status_shows_the_tokens_where_a_line_has_room(learned: World) -> None:
    """Measured ones, in their own column; nothing in it for a server of which nothing was learned."""
    view, plan = learned.observe(), learned.plan()
    lines = status_text(view, plan, Style(width=120)).splitlines()
    at = lines[0].index("KV TOKENS")
    assert lines[1][at:].split()[0] == "867,760"
    assert lines[2][at : at + 9] == " " * 9
    narrow = status_text(view, plan, Style(width=80)).splitlines()
    assert "KV TOKENS" not in narrow[0]
    assert "867,760" not in narrow[1]
    assert [line.split()[:2] for line in narrow] == [line.split()[:2] for line in lines]


FIGURES = Figures(weights=round(14.29 * GIB), beside=24 * GIB, kv_bytes=round(46.62 * GIB), kv_tokens=872_992)
MEASURED = Measured(
    key="ff",
    gpu="NVIDIA H100\x1b[31m",
    gpu_memory=79 * GIB,
    vllm_version="0.22.1",
    utilization=0.8,
    max_model_len=32768,
    figures=FIGURES,
    predicted=replace(FIGURES, weights=round(14.25 * GIB), graphs=0, kv_tokens=870_100),
)


@pytest.mark.parametrize(
    ("measured", "cell"),
    [
        (None, ""),
        (replace(MEASURED, figures=Figures()), ""),
        (replace(MEASURED, predicted=None), "872,992"),
        (MEASURED, "872,992 (-0.3 %)"),
    ],
)
def test_tokens_stand_beside_their_prediction(measured: Measured | None, cell: str) -> None:
    """How far it was off."""
    assert tokens_cell(measured) == cell


def test_every_figure_of_a_start() -> None:
    """What is not known one way is a dash; a row that is known neither way is left out; where it was measured."""
    assert memory_lines(memory_json(MEASURED)) == [
        "                    measured     predicted",
        "  weights          14.29 GiB     14.25 GiB     -0.3 %",
        "  all but KV       24.00 GiB     24.00 GiB     +0.0 %",
        "  CUDA graphs              -      0.00 GiB",
        "  KV cache         46.62 GiB     46.62 GiB     +0.0 %",
        "  KV tokens          872,992       870,100     -0.3 %",
        "  at gpu_memory_utilization 0.8, a context of 32,768, of NVIDIA H100\\x1b[31m, vLLM 0.22.1",
    ]
    alone = memory_lines(memory_json(replace(MEASURED, predicted=None)))
    assert alone[1] == "  weights          14.29 GiB             -"
    assert not any("graphs" in line for line in alone)
    assert memory_lines(None) == []


def test_the_page_shows_what_the_tool_prints() -> None:
    """docs/fit.md, by the numbers of a recorded run on an H100 and their prediction."""
    (run,) = (run for run in runs() if str(run) == "0.22.1-qwen2.5-7b-gpu_memory_utilization=0.8,enforce_eager=True")
    card = gpu_of("H100")
    kv = round(run.row["kv_gib"] * GIB)
    figures = Figures(
        weights=round(run.row["weights_gib"] * GIB),
        beside=requested_bytes(card.total, 0.8) - kv,
        kv_bytes=kv,
        kv_tokens=run.row["kv_tokens"],
    )
    found = replace(MEASURED, gpu=card.name, figures=figures, predicted=figures_from(run.predicted()))
    page = (Path(__file__).parents[2] / "docs/fit.md").read_text(encoding="utf-8")
    assert "\n".join(["memory", *memory_lines(memory_json(found))]) in page


def test_an_outcome_tells_what_went_wrong() -> None:
    """The failed with evidence and way out, then the counts; what went well is not told again."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    there.hosts["h1"].kernel.behaviours["a"] = Behaviour(exit_code=1, log=("Segmentation fault",))
    lines = outcome_text(apply(there), PLAIN).splitlines()
    assert lines[0].startswith("a@h1: ")
    assert lines[1] == "  evidence  Segmentation fault"
    assert lines[2].startswith("  mend      ")
    assert lines[3:] == ["changed: 1, ok: 0, failed: 1, unreachable: 0"]
    assert outcome_text(Outcome(), PLAIN) == "changed: 0, ok: 0, failed: 0, unreachable: 0"


def test_diagnostics_have_place_why_and_remedy() -> None:
    """Sorted by place; warnings say that they are."""
    later = Diagnostic(place=Place(file="b.yaml", line=2, column=3), code="x", summary="wrong", why="because")
    sooner = Diagnostic(
        place=Place(file="a.yaml"),
        code="y",
        summary="odd",
        remedy="do",
        suggestion="this",
        severity=Severity.WARNING,
    )
    assert diagnostics_text([later, sooner], PLAIN) == (
        "a.yaml: warning: odd\n  mend  do\n  did you mean  this?\nb.yaml:2:3: wrong\n  why  because"
    )
    assert counts_text((later, sooner, sooner)) == "1 error, 2 warnings"
    assert counts_text((later, later)) == "2 errors"
    assert counts_text((sooner,)) == "1 warning"


@given(text=st.text())
def test_printable_text_drives_no_terminal(text: str) -> None:
    """Control characters are shown; what is printable stays as it is."""
    shown = printable(text)
    assert shown.isprintable()
    assert text != shown or text.isprintable()
    shown.encode()


def test_a_plan_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long evidence goes on below itself; in a pipe every line is whole."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    host = FakeHost("h1", gpus=4)
    for gpu in range(4):
        host.hold(gpu, 4711 + gpu, 41.2 + gpu, what="python train.py --config large.yaml")
    plan = world(wanted("a@h1", args={"gpu_memory_utilization": 0.9}), hosts=[host]).plan()
    narrow = plan_text(plan, style_for(Terminal(), no_color=True)).splitlines()
    assert max(map(len, narrow)) <= 80
    assert sum(line.lstrip().startswith("GPU ") for line in narrow) == 4
    whole = plan_text(plan, style_for(io.StringIO(), no_color=True)).splitlines()
    assert max(map(len, whole)) > 300
    assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(whole).split())


def test_colours_only_where_they_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a pipe, not with --no-color, not with NO_COLOR, not on a dumb terminal."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert style_for(Terminal(), no_color=False).color
    assert not style_for(io.StringIO(), no_color=False).color
    assert not style_for(Terminal(), no_color=True).color
    monkeypatch.setenv("NO_COLOR", "1")
    assert not style_for(Terminal(), no_color=False).color
    monkeypatch.setenv("NO_COLOR", "")
    assert style_for(Terminal(), no_color=False).color
    monkeypatch.setenv("TERM", "dumb")
    assert not style_for(Terminal(), no_color=False).color
