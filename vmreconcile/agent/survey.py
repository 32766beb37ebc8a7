"""Collecting what `classify` judges: our records, units, env files, and the processes that may matter. Only reads."""

from __future__ import annotations

import os

from . import envfile, jsontext, proc, units
from .classify import Known
from .files import open_folder, read_file
from .folders import Folders, is_slug, slug_of_unit
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .proc import Process


TOKEN = "HF_TOKEN"  # noqa: S105 - a variable's name


class Survey:
    """Everything of ours on this host, by slug, and the problems met while reading it."""

    def __init__(self, folders: Folders) -> None:
        """Read records and env files; units and processes follow when they are asked for."""
        self.folders = folders
        self.boot_id = proc.boot_id()
        self.problems: dict[str, list[str]] = {}
        self.folder_problem: str | None = None
        self.records: dict[str, Any] = {}
        for slug in self._slugs(folders.state, "servers", ".json"):
            record = self._record(slug)
            if record is not None:
                self.records[slug] = record
        self.env_slugs = self._slugs(folders.config, "env", ".env")
        self.unit_properties: dict[str, dict[str, str]] = {}
        self.unit_problem: str | None = None

    def _slugs(self, base: str, below: str, ending: str) -> list[str]:
        """The servers that have a file in one of our folders; none from a folder that others may write."""
        path = "{}/{}".format(base, below)
        try:
            fd = open_folder(path, base, self.folders.uid, create=False)
        except Problem as problem:
            if problem.kind != "not-found":
                self.folder_problem = self.folder_problem or str(problem)
            return []
        try:
            names = os.listdir(fd)
        finally:
            os.close(fd)
        slugs = (name[: -len(ending)] for name in names if name.endswith(ending))
        return sorted(slug for slug in slugs if is_slug(slug))

    def _record(self, slug: str) -> dict[str, Any] | None:
        """A record, if it can be believed; else a problem of that server."""
        path = self.folders.record(slug)
        try:
            return parse_record(read_file(path, self.folders.uid), path)
        except Problem as problem:
            self.problems.setdefault(slug, []).append(str(problem))
            return None

    def read_units(self) -> None:
        """Ask systemd once, if it runs this host and there may be a unit of ours."""
        if not os.path.isdir(units.BOOTED):
            return
        wanted = units.names(self.folders, self.records)
        if not wanted:
            return
        try:
            shown = units.show(wanted, self.folders.uid)
        except Problem as problem:
            self.unit_problem = str(problem)
            return
        if self.folders.uid and not units.has_manager(self.folders.uid):
            paths = {name: "{}/{}".format(self.folders.unit_folder(), name) for name in wanted}
            shown = {name: units.asleep(name, path) for name, path in paths.items() if os.path.exists(path)}
        for name, properties in shown.items():
            slug = slug_of_unit(name)
            if not slug or not (properties.get("LoadState") != "not-found" or properties.get("ControlGroup")):
                continue
            path = properties.get("FragmentPath", "")
            data = proc.read(path) if path else None
            text = None if data is None else proc.text(data)
            if units.is_foreign(text, slug, self.folders, self.records.get(slug)):
                self.problems.setdefault(slug, []).append(path + ": not written for our folders, so it is left alone")
            else:
                self.unit_properties[slug] = properties

    def known(self) -> Known:
        """What `classify` needs to judge."""
        cgroups = {
            slug: (properties["ControlGroup"], units.number(properties.get("MainPID")))
            for slug, properties in self.unit_properties.items()
            if properties.get("ControlGroup")
        }
        logs = {slug: self.folders.log(slug) for slug in self.records}
        return Known(self.boot_id, self.records, cgroups, logs, uid=self.folders.uid)

    def slugs(self) -> list[str]:
        """Every server of which there is a trace."""
        return sorted({*self.records, *self.env_slugs, *self.unit_properties, *self.problems})

    def environment(self, slug: str) -> tuple[dict[str, str], os.stat_result | None, str | None]:
        """The env file of a server: (entries, stat, problem); no entries where it cannot be used.

        A token that is kept beside it, for systemd to hand over, is among the entries as HF_TOKEN.
        """
        path = self.folders.env_file(slug)
        try:
            found = read_file(path, self.folders.uid)
        except Problem as problem:
            return {}, None, str(problem)
        if found is None:
            return {}, None, None
        data, seen = found
        try:
            entries = envfile.parse(data.decode("utf-8"))
        except UnicodeDecodeError:
            return {}, seen, path + ": not UTF-8"
        mode = seen.st_mode & 0o7777
        try:
            kept = read_file(self.folders.token_file(slug), self.folders.uid)
        except Problem as problem:
            return entries, seen, str(problem)
        if kept is not None and kept[0].strip():
            entries.setdefault(TOKEN, proc.text(kept[0]).strip())
            path, mode = (path, mode) if mode & 0o077 else (self.folders.token_file(slug), kept[1].st_mode & 0o7777)
        if mode & 0o077:
            return entries, seen, "{}: mode {:04o}, others than its owner may use it".format(path, mode)
        return entries, seen, None


def parse_record(found: tuple[bytes, os.stat_result] | None, path: str) -> dict[str, Any] | None:
    """Read an ownership record.

    Raises:
        Problem: `bad-record` where others may have written it or it is no JSON object.
    """
    if found is None:
        return None
    data, seen = found
    if seen.st_mode & 0o022:
        raise Problem("bad-record", path + ": others may write it, so it proves nothing", path)
    try:
        record = jsontext.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Problem("bad-record", path + ": not JSON", path) from None
    if not isinstance(record, dict):
        raise Problem("bad-record", path + ": not a JSON object", path)
    return record


def outliving(found: tuple[bytes, os.stat_result] | None, path: str) -> dict[str, Any]:
    """What a record that is written anew keeps of the old one: what vLLM measured, which holds for its own key."""
    try:
        old = parse_record(found, path) or {}
    except Problem:
        return {}
    return {"measured": old["measured"]} if "measured" in old else {}


def processes(known: Known, folder: str = "/proc") -> dict[int, Process]:
    """The processes that may matter: what mentions vLLM, what our records and units name, and all their ancestors.

    Arguments are read of every process, the rest only of those. Where a recorded root is gone, what is left of its
    session is looked for, whatever it is called.
    """
    roots = {root for root in map(known.root_of, known.records) if root is not None}
    wanted = {pid for pid, _ in roots} | {main for _, main in known.units.values()}
    found: dict[int, Process] = {}
    everything = proc.pids(folder)
    for pid in everything:
        line = proc.cmdline(pid, folder)
        if pid in wanted or b"vllm" in line or line.startswith(b"VLLM::"):
            process = proc.load(pid, folder)
            if process is not None:
                found[pid] = process
    gone = {pid for pid, ticks in roots if pid not in found or found[pid].start_ticks != ticks}
    if gone:
        _add_sessions(found, everything, gone, folder)
    _add_ancestors(found, folder)
    return found


def _add_sessions(found: dict[int, Process], everything: list[int], leaders: set[int], folder: str) -> None:
    """Add the members of the sessions that `leaders` began."""
    for pid in everything:
        if pid not in found:
            process = proc.stat(pid, folder)
            if process is not None and process.session in leaders:
                full = proc.load(pid, folder)
                if full is not None:
                    found[pid] = full


def _add_ancestors(found: dict[int, Process], folder: str) -> None:
    """Add the parents of what was found, as far up as can be seen."""
    for process in list(found.values()):
        above = process.ppid
        while above > 0 and above not in found:
            parent = proc.stat(above, folder)
            if parent is None:
                break
            found[above] = parent
            above = parent.ppid
