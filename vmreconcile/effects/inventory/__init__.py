"""Reads inventories as Ansible does: files, folders, programs, `group_vars/` and `host_vars/`, merged by precedence.

`read_inventory` gives the hosts and groups with the origin of every variable; `to_json` and `host_json` show them the
way `ansible-inventory --list` and `--host` do. Decides nothing about the variables: see `core.connection`.
Where it differs from Ansible, it refuses: see docs/inventory.md.
"""

from vmreconcile.effects.inventory.export import host_json, to_json
from vmreconcile.effects.inventory.read import read_inventory

__all__ = ["host_json", "read_inventory", "to_json"]
