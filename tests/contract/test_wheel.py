"""What is installed is whole: the wheel holds schemas, catalogues, signatures, examples and the agent."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_works_alone(tmp_path: Path) -> None:
    """Unpacked outside the checkout, it writes the examples and finds them valid."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for path in (ROOT / "schemas").glob("*.json"):
        assert f"vmreconcile/schemas/{path.name}" in names
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/"))}
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
    program += "import vmreconcile; assert 'site/vmreconcile' in vmreconcile.__file__; "
    program += "from vmreconcile.cli.main import main; sys.exit(main({argv!r}))"
    for argv in (["init", "fleet"], ["validate", "-i", "fleet/inventory", "-m", "fleet/models.d"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program.format(argv=argv)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
