"""auth status: every token source in use, where its token comes from, whose it is, who has it. Never the token."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmreconcile.cli.output import inputs_of, print_json, reach_of
from vmreconcile.cli.terminal import Style, advice, printable, style_for
from vmreconcile.core.reports import FORMAT_VERSION
from vmreconcile.flows.auth import SourceStatus, source_statuses
from vmreconcile.model.values import JsonValue

if TYPE_CHECKING:
    import argparse


def status(arguments: argparse.Namespace) -> int:
    """Show every source; 1 where one gives no token, or one that the Hub does not accept."""
    if arguments.on_hosts:
        from vmreconcile.cli.auth_hosts import status_on_hosts  # noqa: PLC0415 - kept out of a quick start

        return status_on_hosts(arguments)
    found = source_statuses(inputs_of(arguments), reach_of(arguments))
    if arguments.json:
        print_json({"format_version": FORMAT_VERSION, "sources": [source_json(each) for each in found]})
    else:
        style = style_for(sys.stdout, no_color=arguments.no_color)
        print("\n".join(source_text(each, style) for each in found))
    return 1 if any(each.problem or (each.identity and each.identity.invalid) for each in found) else 0


def source_json(status: SourceStatus) -> dict[str, JsonValue]:
    """One source as a script reads it."""
    identity = status.identity
    return {
        "source": status.source.name,
        "reads": str(status.source),
        "defined": str(status.source.place) if status.source.place else None,
        "found_in": status.found_in or None,
        "user": identity.user or None if identity else None,
        "token_name": identity.token_name or None if identity else None,
        "role": identity.role or None if identity else None,
        "expires": identity.expires or None if identity else None,
        "valid": None if identity is None or (identity.problem and not identity.invalid) else not identity.invalid,
        "servers": [str(server) for server in status.servers],
        "warnings": list(status.warnings),
        "problem": status.problem or (identity.problem if identity else "") or None,
        "remedy": status.remedy or None,
    }


def source_text(status: SourceStatus, style: Style) -> str:
    """One source as a person reads it."""
    head = style.paint(status.source.name, "bold")
    where = f"defined at {status.source.place}" if status.source.place else ""
    lines = [f"{head}  {printable(str(status.source))}  {where}".rstrip()]
    if status.found_in:
        lines.append(f"  found in  {printable(status.found_in)}")
    identity = status.identity
    if status.problem:
        lines.append(style.paint(f"  problem   {printable(status.problem)}", "red"))
    elif identity is None:
        lines.append("  whose     not asked: HF_HUB_OFFLINE is set")
    elif identity.invalid:
        lines.append(style.paint("  problem   the Hub does not accept this token", "red"))
        lines.append(f"  mend      {advice('vmreconcile auth login, or renew the source')}")
    elif identity.problem:
        lines.append(f"  whose     unknown, the Hub cannot be asked: {printable(identity.problem)}")
    else:
        about = ", ".join(
            f"{name} {printable(value)}"
            for name, value in (
                ("token", identity.token_name),
                ("role", identity.role),
                ("expires", identity.expires),
            )
            if value
        )
        lines.append(f"  whose     {printable(identity.user)}{f' ({about})' if about else ''}")
    if status.remedy:
        lines.append(f"  mend      {advice(status.remedy)}")
    lines += [f"  note      {advice(text)}" for text in status.warnings]
    lines.append(f"  servers   {', '.join(map(str, status.servers)) or 'none yet'}")
    return "\n".join(lines)
