"""auth: hands each part to the module that does it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

PARTS = {
    "login": "vmreconcile.cli.auth_login",
    "status": "vmreconcile.cli.auth_status",
    "check": "vmreconcile.cli.auth_check",
}
"""Where each part lives: modules are imported only when asked for."""


def auth(arguments: argparse.Namespace) -> int:
    """Do the part that was asked for."""
    part: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(PARTS[arguments.part]), arguments.part)
    return part(arguments)
