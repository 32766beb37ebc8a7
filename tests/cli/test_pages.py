"""Model files in the pages and among the examples are valid as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.desk import Desk

ROOT = Path(__file__).resolve().parents[2]
HOSTS = "gpu:\n  hosts:\n    gpu[1:4]:\nstaging:\n  hosts:\n    gpu2:\n"
BASE = "name: qwen\nmodel: org/qwen\nhosts: gpu\nport: 8001\n"
CHOICES = re.compile(r"^(gpus|needs):", re.MULTILINE)
"""Keys of which a block may show one value below the other."""


def blocks() -> list[tuple[str, str]]:
    """Every YAML block of the pages that is a model, or some keys of one."""
    return [
        (page, block)
        for page in ("README.md", "docs/models.md", "docs/rollouts.md", "docs/draining.md")
        for block in re.findall(
            r"^```yaml\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        if len(CHOICES.findall(block)) < 2
    ]


@pytest.mark.parametrize(("page", "block"), blocks())
def test_each_example_is_valid(desk: Desk, page: str, block: str) -> None:
    """Without an error; a hook of an example is not on this machine, which is a warning."""
    desk.write("inventory/hosts.yml", HOSTS)
    desk.write("models.d/qwen.yaml", block if "name:" in block else BASE + block)
    said = desk("validate")
    assert said.code == 0, (page, said.out)
    warnings = [line for line in said.out.splitlines() if "warning:" in line]
    assert all("which is not found here" in line for line in warnings), (page, said.out)


def test_what_the_example_leaves_out_is_valid_too(desk: Desk) -> None:
    """Each line of the example model that is commented out, taken in."""
    text = (ROOT / "vmreconcile/effects/example_files/models.d/qwen2.5-7b.yaml").read_text(encoding="utf-8")
    head, _, rest = text.partition("\n\n")
    taken = re.sub(r"^# (?=( *)[a-z_]+:|  )", "", rest, flags=re.MULTILINE | re.IGNORECASE)
    assert taken.count("\n#") == 0
    desk.write("models.d/qwen.yaml", f"{head}\n\n{taken}".replace("cordon: true", "cordon: false"))
    said = desk("validate")
    assert said.code == 0, said.out
