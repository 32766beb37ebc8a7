"""Installs the simulator into a folder that looks like a virtual environment with vLLM in it.

Owns what the folder holds: `bin/vllm`, `bin/python3`, `pyvenv.cfg`, the few modules that the simulator needs, and a
`dist-info` that tells the version. The folder stands alone afterwards: it needs an interpreter, not this package.
"""

from __future__ import annotations

import compileall
import os
import shutil
import sys
from pathlib import Path

import vmreconcile
from vmreconcile.errors import UsageError

ROOMS = ("model", "simulator", "vllm")
_CATALOGUES = "vllm/catalogues"

_STUB = '''#!{python}
"""A SIMULATOR of vLLM {version}, installed by vmreconcile. It is not vLLM and loads no model."""
import os
import sys

folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = os.path.join(folder, "lib", "{lib}", "site-packages")

from vmreconcile.simulator.command import main  # noqa: E402 - the path comes first

sys.exit(main(sys.argv[1:], os.environ, version="{version}", folder=folder))
'''

_METADATA = """Metadata-Version: 2.1
Name: vllm
Version: {version}+simulator
Summary: A simulator of vLLM {version}, installed by vmreconcile; not vLLM
"""


def install(folder: Path, *, version: str = "0.32.0", python: str = sys.executable) -> Path:
    """Write the simulator of vLLM `version` into `folder`, over one that is there; return the path of its `vllm`.

    `python` is the interpreter that is to run it, of the version that runs this.

    Raises:
        UsageError: no catalogue of that version, or the folder holds something that is no simulator.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links out of the folder
    source = Path(vmreconcile.__file__).parent
    known = sorted(path.stem for path in (source / _CATALOGUES).glob("*.json"))
    if version not in known:
        raise UsageError(f"no catalogue of vLLM {version} to simulate", remedy=f"known versions: {', '.join(known)}")
    site = _make_folder(folder, python)
    _copy_rooms(source, site / "vmreconcile", version)
    dist_info = site / f"vllm-{version}+simulator.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(_METADATA.format(version=version), encoding="utf-8")
    (dist_info / "INSTALLER").write_text("vmreconcile\n", encoding="utf-8")
    compileall.compile_dir(site, quiet=2)
    vllm = folder / "bin" / "vllm"
    stub = _STUB.format(python=folder / "bin" / "python3", version=version, lib=site.parent.name)
    fresh = vllm.with_suffix(".new")
    fresh.write_text(stub, encoding="utf-8")
    fresh.chmod(0o755)
    fresh.replace(vllm)
    return vllm


def _make_folder(folder: Path, python: str) -> Path:
    """Make the frame of a virtual environment, emptied of an earlier simulator; return its site-packages."""
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    others = [
        path for path in folder.glob("lib/python3*/site-packages/vllm-*.dist-info") if "+simulator" not in path.name
    ]
    if others or (site / "vllm").exists():
        raise UsageError(f"{folder} holds a vLLM that is no simulator", remedy="name another folder")
    for old in folder.glob("lib/python3*/site-packages/vllm-*+simulator.dist-info"):
        shutil.rmtree(old)
    shutil.rmtree(site / "vmreconcile", ignore_errors=True)
    site.mkdir(parents=True, exist_ok=True)
    interpreter = Path(python).resolve()
    link = folder / "bin" / "python3"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(interpreter)
    settings = f"home = {interpreter.parent}\ninclude-system-site-packages = false\n"
    (folder / "pyvenv.cfg").write_text(settings, encoding="utf-8")
    return site


def _copy_rooms(source: Path, target: Path, version: str) -> None:
    """Copy the modules that the simulator imports, and the one catalogue that it needs."""
    target.mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copyfile(source / name, target / name)
    for room in ROOMS:
        shutil.copytree(source / room, target / room, ignore=shutil.ignore_patterns("__pycache__", "catalogues"))
    (target / _CATALOGUES).mkdir()
    shutil.copyfile(source / _CATALOGUES / f"{version}.json", target / _CATALOGUES / f"{version}.json")
