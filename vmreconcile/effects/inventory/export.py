"""The inventory as `ansible-inventory --list` and `--host` print it. Pure."""

from __future__ import annotations

from vmreconcile.model.inventory import Inventory, UnsafeText, VaultedText
from vmreconcile.model.values import JsonValue

PROFILE = "inventory_legacy"
_INTERNAL = frozenset(
    (
        "ansible_async_path",
        "ansible_collection_name",
        "ansible_config_file",
        "ansible_dependent_role_names",
        "ansible_diff_mode",
        "ansible_facts",
        "ansible_forks",
        "ansible_inventory_sources",
        "ansible_limit",
        "ansible_play_batch",
        "ansible_play_hosts",
        "ansible_play_hosts_all",
        "ansible_play_role_names",
        "ansible_playbook_python",
        "ansible_role_name",
        "ansible_role_names",
        "ansible_run_tags",
        "ansible_skip_tags",
        "ansible_verbosity",
        "ansible_version",
        "inventory_dir",
        "inventory_file",
        "inventory_hostname",
        "inventory_hostname_short",
        "groups",
        "group_names",
        "hostvars",
        "playbook_dir",
        "play_hosts",
        "role_name",
        "role_names",
        "role_path",
        "role_uuid",
    )
)
"""Names that Ansible fills in itself, so that it never prints what an inventory says of them."""


def to_json(inventory: Inventory) -> dict[str, JsonValue]:
    """Give what `ansible-inventory --list` prints (ansible-core 2.19 and later)."""
    listed: dict[str, JsonValue] = {}
    for name, group in inventory.groups.items():
        shown: dict[str, JsonValue] = {}
        if name != "all" and group.hosts:
            shown["hosts"] = list(group.hosts)
        if group.children:
            shown["children"] = list(group.children)
        if shown:
            listed[name] = shown
    variables = {name: _variables(inventory, name, marked=True) for name in inventory.hosts_of("all")}
    hostvars: dict[str, JsonValue] = {name: shown for name, shown in variables.items() if shown}
    listed["_meta"] = {"hostvars": hostvars, "profile": PROFILE}
    return listed


def host_json(inventory: Inventory, name: str) -> dict[str, JsonValue]:
    """Give what `ansible-inventory --host NAME` prints.

    Raises:
        KeyError: where there is no such host.
    """
    return _variables(inventory, name, marked=False)


def _variables(inventory: Inventory, host: str, *, marked: bool) -> dict[str, JsonValue]:
    variables = inventory.hosts[host].variables
    return {name: _shown(variables[name].value, marked=marked) for name in sorted(variables) if name not in _INTERNAL}


def _shown(value: JsonValue, *, marked: bool) -> JsonValue:
    """Mark unsafe (if asked) and vaulted text in Ansible's way."""
    match value:
        case VaultedText():
            return {"__ansible_vault": str(value)}
        case UnsafeText():
            return {"__ansible_unsafe": str(value)} if marked else str(value)
        case list():
            return [_shown(item, marked=marked) for item in value]
        case dict():
            return {key: _shown(item, marked=marked) for key, item in value.items()}
        case _:
            return value
