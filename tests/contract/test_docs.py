"""The pages say what the code does: commands and options, reasons, runtimes, links, the picture, the words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.parsers import every_parser
from vmreconcile.model.plan import Action, Reason
from vmreconcile.model.steps import STEPS
from vmreconcile.vllm.signatures import UNKNOWN, signatures

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("name", sorted(every_parser()))
def test_every_command_and_option_is_documented(name: str) -> None:
    """docs/commands.md names each command with each of its options, short and long."""
    text = (ROOT / "docs/commands.md").read_text()
    assert re.search(rf"^\| `{name}\b", text, re.MULTILINE)
    common, _, own = text.partition("## Commands")
    rows = "\n".join(line for line in own.splitlines() if f"`{name} " in line or f"`{name}`" in line)
    for action in every_parser()[name]._actions:
        for option in action.option_strings:
            if option not in {"-h", "--help"}:
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", rows + common), f"{name} {option}"


def test_the_table_of_planning_behaviours_is_complete() -> None:
    """Each row's action and reason exist, and each reason has a row."""
    text = (ROOT / "docs/planning-behaviors.md").read_text()
    rows = re.findall(r"^\|[^|]+\| (\w+) \| `(\w+)` \|", text, re.MULTILINE)
    assert {reason for _, reason in rows} == {reason.value for reason in Reason}
    assert {action for action, _ in rows} == {action.value for action in Action}


def test_every_step_has_its_row_in_the_wires_page() -> None:
    """docs/wire.md has a row for each step, and none for a step that does not exist."""
    text = (ROOT / "docs/wire.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == set(STEPS)


def test_every_class_of_failure_has_its_row() -> None:
    """docs/troubleshooting.md has a row for each class that a log can show, and for those that no log shows."""
    text = (ROOT / "docs/troubleshooting.md").read_text()
    rows = set(re.findall(r"^\| [^|]+ \| `(\w+)`[^|]*\| [^|]+ \|$", text, re.MULTILINE))
    assert {signature.kind for signature in signatures()} | {
        UNKNOWN,
        "startup_timeout",
        "wrong_model",
        "wedged",
    } == rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link and picture of a page is a file of the project."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_names_programs_that_are_there() -> None:
    """Every script the README tells to run can be run."""
    for script in set(re.findall(r"(?:scripts|\.ci|benchmarks)/[a-z-]+", (ROOT / "README.md").read_text())):
        assert (ROOT / script).stat().st_mode & 0o100, script


def test_the_picture_is_what_the_tool_prints(tmp_path: Path) -> None:
    """docs/plan.svg is drawn anew from the renderer and must be the same."""
    drawn = tmp_path / "plan.svg"
    subprocess.run([sys.executable, ROOT / "scripts/picture", drawn], check=True)
    assert drawn.read_text() == (ROOT / "docs/plan.svg").read_text()


def test_the_tables_of_fit_are_what_the_code_predicts(tmp_path: Path) -> None:
    """docs/fit.md holds what scripts/fit-table writes from the recorded runs."""
    page = tmp_path / "fit.md"
    page.write_text((ROOT / "docs/fit.md").read_text())
    subprocess.run([sys.executable, ROOT / "scripts/fit-table", page], check=True)
    assert page.read_text() == (ROOT / "docs/fit.md").read_text()


def test_modules_are_not_called_by_empty_words() -> None:
    """No module is named by one of the words that say nothing (docs/contributing.md)."""
    empty = {"helper", "helpers", "utils", "util", "common", "misc", "manager", "handler", "data", "info"}
    assert not {path for path in (ROOT / "vmreconcile").rglob("*.py") if path.stem in empty}


def test_every_reason_to_get_no_gpu_tells_what_to_do() -> None:
    """docs/troubleshooting.md has a row for each reason that placing blocks with, and for cordons."""
    text = (ROOT / "docs/troubleshooting.md").read_text()
    section = text.partition("## A server that gets no GPU")[2].partition("\n## ")[0]
    source = (ROOT / "vmreconcile/core/gpus/blocks.py").read_text()
    reasons = {Reason[name].value for name in re.findall(r"Reason\.([A-Z_]+)", source)}
    assert len(reasons) == 8
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == reasons


def test_the_rooms_of_gpus_are_told() -> None:
    """docs/architecture.md names each file of core/gpus/, and none that is not there."""
    section = (ROOT / "docs/architecture.md").read_text().partition("## GPUs\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+\.py)`", re.sub(r"^[^|].*$", "", section, flags=re.MULTILINE))) | {"place.py"}
    assert named == {path.name for path in (ROOT / "vmreconcile/core/gpus").glob("[a-z]*.py")}
