"""`read_inventory` beyond what Ansible prints: places, origins, every problem at once, warnings, programs, speed."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from vmreconcile.effects.inventory import host_json, read_inventory
from vmreconcile.errors import Diagnostic, InputError, Severity
from vmreconcile.model.inventory import Inventory, UnsafeText, VaultedText
from vmreconcile.model.values import OriginKind


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test stands in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def write(files: Mapping[str, str | bytes]) -> None:
    """Write files below the working folder."""
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def program(name: str, script: str) -> None:
    """Write an executable shell script."""
    write({name: f"#!/bin/sh\n{script}\n"})
    Path(name).chmod(0o755)


def read(*sources: str, timeout: float = 10.0) -> Inventory:
    """Read with this process's environment."""
    return read_inventory(sources or ["hosts.yml"], environ=os.environ, timeout=timeout)


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def problems(*sources: str, timeout: float = 10.0) -> tuple[Diagnostic, ...]:
    """Read what must be refused."""
    with pytest.raises(InputError) as caught:
        read(*sources, timeout=timeout)
    return caught.value.diagnostics


# What is broken, by name: the file, its content, the place and the code of the problem.
BROKEN: dict[str, tuple[str, str | bytes, str, str]] = {
    "indentation": ("hosts.yml", "all:\n  hosts:\n    a:\n   b:\n", "hosts.yml:4:4", "yaml-syntax"),
    "tab": ("hosts.yml", "all:\n  hosts:\n\ta:\n", "hosts.yml:3:1", "yaml-tab"),
    "tab after spaces": ("hosts.yml", "all:\n  hosts:\n    a:\n  \tb:\n", "hosts.yml:4:3", "yaml-tab"),
    "unclosed quote": ("hosts.yml", 'all:\n  hosts:\n    "a:\n', "hosts.yml:4:1", "yaml-syntax"),
    "not utf-8": ("hosts.yml", b"all:\n  hosts:\n    gr\xfcn:\n", "hosts.yml:3:7", "not-utf-8"),
    "not utf-8 in ini": ("hosts", b"[g]\ngr\xfcn\n", "hosts:2:3", "not-utf-8"),
    "control character": ("hosts.yml", b"all:\n  hosts:\n    a\x01:\n", "hosts.yml:3", "yaml-syntax"),
    "a list": ("hosts.yml", "- a\n- b\n", "hosts.yml:1:1", "yaml-shape"),
    "several documents": ("hosts.yml", "all:\n---\nall:\n", "hosts.yml:2:1", "yaml-syntax"),
    "hosts as a list": ("hosts.yml", "all:\n  hosts:\n    - a\n", "hosts.yml:3:5", "section-shape"),
    "vars as a list": ("hosts.yml", "all:\n  vars: [a]\n", "hosts.yml:2:9", "section-shape"),
    "numeric host": ("hosts.yml", "all:\n  hosts:\n    7:\n", "hosts.yml:3:5", "host-name"),
    "numeric group": ("hosts.yml", "all:\n  children:\n    7:\n", "hosts.yml:3:5", "group-name"),
    "host with an escape": ("hosts.yml", 'all:\n  hosts:\n    "a\\eb":\n', "hosts.yml:3:5", "host-name"),
    "host of two lines": ("hosts.yml", 'all:\n  hosts:\n    "a\\nb":\n', "hosts.yml:3:5", "host-name"),
    "host written backwards": ("hosts", "[a]\nx\u202ey\n", "hosts:2:1", "host-name"),
    "empty host": ("hosts.yml", "all:\n  hosts:\n    '':\n", "hosts.yml:3:5", "host-name"),
    "numeric variable": ("hosts.yml", "all:\n  vars:\n    7: x\n", "hosts.yml:3:5", "variable-name"),
    "host without mapping": ("hosts.yml", "all:\n  hosts:\n    a: b\n", "hosts.yml:3:8", "host-variables"),
    "unknown tag": ("hosts.yml", "all:\n  vars:\n    a: !secret x\n", "hosts.yml:3:8", "yaml-value"),
    "binary": ("hosts.yml", "all:\n  vars:\n    a: !!binary eA==\n", "hosts.yml:3:8", "yaml-value"),
    "vault of a list": ("hosts.yml", "all:\n  vars:\n    a: !vault [x]\n", "hosts.yml:3:8", "yaml-value"),
    "own anchor": ("hosts.yml", "all:\n  vars:\n    a: &a [*a]\n", "hosts.yml:3:8", "yaml-value"),
    "key of several": ("hosts.yml", "all:\n  vars:\n    a: {[1]: 2}\n", "hosts.yml:3:9", "yaml-value"),
    "bad date": ("hosts.yml", "all:\n  vars:\n    a: 2024-13-40\n", "hosts.yml:3:8", "yaml-value"),
    "priority": ("hosts.yml", "all:\n  vars:\n    ansible_group_priority: high\n", "hosts.yml:3:5", "group-priority"),
    "loop": ("hosts.yml", "a: {children: {b: {children: {a: }}}}\n", "hosts.yml:1:16", "group-loop"),
    "own child": ("hosts.yml", "a:\n  children:\n    a:\n", "hosts.yml:3:5", "group-loop"),
    "alias loop": ("hosts.yml", "a: &a\n  children:\n    b: *a\n", "hosts.yml:3:5", "group-loop"),
    "all as a child": ("hosts.yml", "a:\n  children:\n    all:\n", "hosts.yml", "group-loop"),
    "range without end": ("hosts.yml", "all:\n  hosts:\n    g[1:]:\n", "hosts.yml:3:5", "host-range"),
    "range of digits": ("hosts.yml", "all:\n  hosts:\n    g[01:100]:\n", "hosts.yml:3:5", "host-range"),
    "range of words": ("hosts.yml", "all:\n  hosts:\n    g[ab:cd]:\n", "hosts.yml:3:5", "host-range"),
    "range backwards": ("hosts.yml", "all:\n  hosts:\n    g[c:a]:\n", "hosts.yml:3:5", "host-range"),
    "range of step 0": ("hosts.yml", "all:\n  hosts:\n    g[1:3:0]:\n", "hosts.yml:3:5", "host-range"),
    "range unclosed": ("hosts.yml", "all:\n  hosts:\n    'g[1:3':\n", "hosts.yml:3:5", "host-range"),
    "ini loop": ("hosts", "[a:children]\nb\n[b:children]\na\n", "hosts:4:1", "group-loop"),
    "ini undeclared child": ("hosts", "[a:children]\nb\n", "hosts:2:1", "unknown-group"),
    "ini undeclared vars": ("hosts", "[b:vars]\nx=1\n", "hosts:1:1", "unknown-group"),
    "ini kind": ("hosts", "[b:var]\nx=1\n", "hosts:1:1", "ini-section"),
    "ini bracket": ("hosts", "[b\nx\n", "hosts:1:1", "ini-section"),
    "ini section": ("hosts", "[a b]\nx\n", "hosts:1:1", "ini-section"),
    "ini word": ("hosts", "[a]\n  x y=1 z\n", "hosts:2:3", "ini-host"),
    "ini quote": ("hosts", "[a]\nx y='1\n", "hosts:2:1", "ini-host"),
    "ini colon": ("hosts", "[a]\nx:\n", "hosts:2:1", "ini-host"),
    "ini no host": ("hosts", "[a]\n''\n", "hosts:2:1", "host-name"),
    "ini variable": ("hosts", "[a]\n[a:vars]\nx y\n", "hosts:3:1", "ini-variable"),
    "ini child": ("hosts", "[a]\n[b:children]\na b\n", "hosts:3:1", "ini-child"),
    "ini literal": ("hosts", "[a]\nx y='{[]: 1}'\n", "hosts:2:1", "ini-value"),
    "ini bom": ("hosts", b"\xef\xbb\xbf[a]\nx\n", "hosts:1:1", "byte-order-mark"),
    "ini named yml": ("hosts.yml", "[a]\nx y\n", "hosts.yml:2:1", "yaml-syntax"),
    "toml": ("hosts.toml", "[a\n", "hosts.toml", "toml-syntax"),
    "toml shape": ("hosts.toml", "[a]\nhosts = ['x']\n", "hosts.toml", "toml-shape"),
    "vaulted file": ("hosts.yml", "$ANSIBLE_VAULT;1.1;AES256\n3132\n", "hosts.yml:1", "vaulted-file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_source_is_refused_with_its_place(name: str) -> None:
    """One problem, at the line and column where it is, with a remedy."""
    file, content, place, code = BROKEN[name]
    write({file: content})
    found = [problem for problem in problems(file) if problem.severity is Severity.ERROR]
    assert [(str(problem.place), problem.code) for problem in found] == [(place, code)]
    assert found[0].remedy


def test_every_problem_is_reported_at_once() -> None:
    """Problems of several files, and several of one file, come together."""
    write(
        {
            "inv/a.yml": "all:\n  hosts:\n    7:\n    b: text\n  vars: [x]\n",
            "inv/b": "[g]\nx y\nz w\n",
            "inv/group_vars/all.yml": "- no mapping\n",
            "inv/group_vars/g.yml": "never reached\n",
        }
    )
    assert [str(problem.place) for problem in problems("inv", "missing")] == [
        "inv/a.yml:3:5",
        "inv/a.yml:4:8",
        "inv/a.yml:5:9",
        "inv/b:2:1",
        "inv/b:3:1",
        "missing",
    ]


def test_broken_variable_files_are_refused() -> None:
    """Files of variables are diagnosed like sources, all of them."""
    write(
        {
            "hosts": "[g]\nh\n",
            "group_vars/all.yml": "- no mapping\n",
            "group_vars/g/a.yml": "x: 1\n y: 2\n",
            "host_vars/h.yml": b"caf\xe9: 1\n",
            "host_vars/unused.yml": "\tnever read\n",
        }
    )
    found = {str(problem.place): problem.code for problem in problems("hosts")}
    assert found == {
        "group_vars/all.yml:1:1": "vars-shape",
        "group_vars/g/a.yml:2:3": "yaml-syntax",
        "host_vars/h.yml:1:4": "not-utf-8",
    }


def test_a_missing_inventory_names_init() -> None:
    """The first thing that a new user sees tells what to do."""
    (problem,) = problems("inventory")
    assert problem.code == "no-inventory"
    assert "vmreconcile init" in problem.remedy


def test_a_folder_without_sources_is_refused() -> None:
    """A folder with nothing but variables and notes is no inventory."""
    write({"inventory/group_vars/all.yml": "x: 1\n", "inventory/README.md": "# Hosts\n", "inventory/sub/x.bak": ""})
    (problem,) = problems("inventory")
    assert problem.code == "empty-folder"


def test_an_unreadable_file_is_refused() -> None:
    """What the system says is shown (this file is one that even root cannot read)."""
    Path("hosts.yml").symlink_to("/proc/self/mem")
    (problem,) = problems()
    assert problem.code == "unreadable"
    assert os.strerror(errno.EIO) in problem.summary


def test_what_is_no_file_is_refused() -> None:
    """A pipe is not waited for."""
    os.mkfifo("hosts.yml")
    (problem,) = problems()
    assert problem.code == "unreadable"


def test_a_range_in_a_comma_list_is_refused() -> None:
    """Ansible would take 'gpu[1:2]' for the name of one host."""
    (problem,) = problems("gpu[1:2],gpu9,")
    assert problem.code == "comma-range"


def warnings(*sources: str) -> list[tuple[str, str]]:
    """Places and codes of the warnings."""
    return [(str(warning.place), warning.code) for warning in read(*sources).warnings]


def test_what_is_probably_not_meant_is_warned_of() -> None:
    """Ansible's result stands, but it is said: duplicate keys, unknown keys, empty ranges, one name for two things."""
    write(
        {
            "hosts.yml": (
                "all:\n  hosts:\n    a: {x: 1, x: 2}\n    b[3:1]:\n  host:\n    c:\n"
                "  children:\n    a:\n    list: [1]\n    z: {}\n"
            ),
            "group_vars/z.yml": "x: 1\n",
            "group_vars/z.json": "{}",
            "empty": "",
            "comments.yml": "# nothing\n---\n",
        }
    )
    write({"hosts.yml": Path("hosts.yml").read_text().replace("    list: [1]\n", "") + "list: [1]\n"})
    assert set(warnings("hosts.yml", "empty", "comments.yml")) == {
        ("hosts.yml:3:15", "duplicate-key"),
        ("hosts.yml:4:5", "empty-range"),
        ("hosts.yml:5:3", "unknown-key"),
        ("hosts.yml:10:1", "group-shape"),
        ("hosts.yml, empty, comments.yml", "same-name"),
        ("group_vars/z.json", "vars-file-hidden"),
        ("empty", "empty-source"),
        ("comments.yml", "empty-source"),
    }
    assert "hosts" in next(w.remedy for w in read().warnings if w.code == "unknown-key")


def test_a_merged_key_may_be_overridden_without_a_warning() -> None:
    """That is what merge keys are for."""
    write({"hosts.yml": "all:\n  vars:\n    a: &a {x: 1}\n    b: {<<: *a, x: 2}\n  hosts:\n    h:\n"})
    assert warnings() == []
    assert host_json(read(), "h")["b"] == {"x": 2}


def test_every_variable_has_its_origin() -> None:
    """Kind, file, line, column and owner, wherever it was said."""
    write(
        {
            "hosts.yml": "all:\n  vars:\n    a: 1\n  children:\n    g:\n      hosts:\n        h: {b: 2}\n",
            "more.ini": "[g:vars]\nc=3\n[g]\n  h:2222 d=4\n",
            "group_vars/g.yml": "# ours\ne: 5\n",
            "host_vars/h.json": '{\n  "f": 6}',
        }
    )
    variables = read("hosts.yml", "more.ini").hosts["h"].variables
    origins = {name: (setting.origin.kind, str(setting.origin)) for name, setting in variables.items()}
    group, host = OriginKind.GROUP_VARS, OriginKind.HOST_VARS
    assert origins == {
        "a": (group, "hosts.yml:3:5 (group all)"),
        "b": (host, "hosts.yml:7:13 (host h)"),
        "c": (group, "more.ini:2:1 (group g)"),
        "d": (host, "more.ini:4:3 (host h)"),
        "e": (group, "group_vars/g.yml:2:1 (group g)"),
        "f": (host, "host_vars/h.json:2:3 (host h)"),
    }


def test_groups_of_a_host_and_variables_of_a_group() -> None:
    """A host knows all groups above it; a group knows its own variables, those of files among them."""
    write({"hosts": "[top:children]\nlow\n[low]\nh\n[low:vars]\na=1\nb=1\n", "group_vars/low": "b: 2\n"})
    inventory = read("hosts")
    assert inventory.hosts["h"].groups == ("all", "low", "top")
    assert {name: setting.value for name, setting in inventory.groups["low"].variables.items()} == {"a": 1, "b": 2}
    assert inventory.hosts_of("top") == ("h",)


def test_marked_text_keeps_its_mark() -> None:
    """`!unsafe` and `!vault` are text that knows what it is."""
    write({"hosts.yml": "all:\n  hosts:\n    h: {u: !unsafe '{{ x }}', v: !vault abc, p: '{{ x }}'}\n"})
    values = {name: setting.value for name, setting in read().hosts["h"].variables.items()}
    assert {name: type(value) for name, value in values.items()} == {"u": UnsafeText, "v": VaultedText, "p": str}
    assert values["u"] == "{{ x }}"


def test_a_bomb_of_aliases_is_told_in_time() -> None:
    """Each anchor is made once, however often it is used; what stands for too much is a problem with its place."""
    lines = [f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(30)]
    write({"hosts.yml": "\n".join(["all:", "  vars:", *lines, "  hosts:", "    h:", ""])})
    told = problems("hosts.yml")
    assert {(problem.code, problem.place.line) for problem in told} >= {("yaml-value", 9)}
    assert min(problem.place.line for problem in told) == 9


@pytest.mark.parametrize("depth", [900, 50_000])
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("hosts.json", '{"all": {"vars": {"x": ', "}}}"),
        ("hosts.yml", "all: {vars: {x: ", "}}"),
    ],
)
def test_deep_nesting_is_no_crash(name: str, before: str, after: str, depth: int) -> None:
    """Whatever the parser's limit is, the user reads a problem, not a traceback."""
    write({name: before + "[" * depth + "]" * depth + after})
    assert [problem.code for problem in problems(name)] == ["too-deep"]


@pytest.mark.parametrize("depth", [900, 50_000])
def test_deep_groups_are_no_crash(depth: int) -> None:
    """The same for groups."""
    write({"hosts.yml": "{a: {children: " * depth + "{}" + "}}" * depth})
    assert "too-deep" in {problem.code for problem in problems()}


def test_a_program_names_no_host_that_would_drive_a_terminal() -> None:
    """A cloud's names come from anybody who may name a machine there."""
    program("inv.sh", """echo '{"a": {"hosts": ["b\\u001bc"]}}'""")
    (problem,) = problems("inv.sh")
    assert (problem.code, problem.severity) == ("host-name", Severity.ERROR)
    assert "\x1b" not in problem.summary


@pytest.mark.parametrize(
    ("script", "expected", "why"),
    [
        ("echo oops >&2; exit 3", "--list: ended with status 3", "oops"),
        ("echo '{'", "its output is not JSON", ""),
        ("echo '[]'", "the output is no object", ""),
        ("echo '{\"_meta\": {}}'", "'_meta.hostvars' is no object", ""),
        ('echo \'{"g": {"hosts": "a"}}\'', "'g.hosts' is no list of names", ""),
        ("printf '\\377'", "printed something that is not UTF-8", ""),
        ('[ $1 = --list ] && echo \'{"g": ["a"]}\' || exit 4', "--host a: ended with status 4", "nothing"),
        ('echo \'{"a": {"children": ["b"]}, "b": {"children": ["a"]}, "_meta": {"hostvars": {}}}\'', "loop", ""),
    ],
)
def test_a_program_that_fails_is_refused(script: str, expected: str, why: str) -> None:
    """The status and what it said on standard error are shown."""
    program("inv.sh", script)
    (problem,) = problems("inv.sh")
    assert expected in problem.summary
    assert why in problem.why
    assert str(problem.place) == "inv.sh"


def test_a_program_that_hangs_is_ended_with_its_children() -> None:
    """The timeout counts for the whole process group."""
    program("inv.sh", "echo started >&2; sleep 300 & echo $! > child; wait")
    started = time.monotonic()
    (problem,) = problems("inv.sh", timeout=0.3)
    assert "0.3 s" in problem.summary
    assert "started" in problem.why
    assert time.monotonic() - started < 30
    child, deadline = int(Path("child").read_text()), time.monotonic() + 10
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)  # a killed process is gone a moment later
    assert not running(child)


def test_a_program_gets_the_environment_it_is_given() -> None:
    """Nothing but `environ` reaches it."""
    program("inv.sh", 'echo "{\\"_meta\\": {\\"hostvars\\": {}}, \\"$WHO\\": {\\"hosts\\": [\\"h\\"]}}"')
    inventory = read_inventory(["inv.sh"], environ={"WHO": "me", "PATH": "/usr/bin:/bin"})
    assert inventory.hosts["h"].groups == ("all", "me")


def test_a_plugin_source_without_ansible_says_so() -> None:
    """A source that only a plugin can read needs ansible-inventory."""
    write({"x.aws_ec2.yml": "plugin: amazon.aws.aws_ec2\nregions: [eu-west-1]\n"})
    with pytest.raises(InputError) as caught:
        read_inventory(["x.aws_ec2.yml"], environ={"PATH": "/nowhere"})
    (problem,) = caught.value.diagnostics
    assert problem.code == "plugin-source"
    assert "ansible-inventory" in problem.summary


def test_a_thousand_hosts_take_no_quadratic_time() -> None:
    """A fleet's inventory costs no wait (the limit leaves room for a slow machine)."""
    lines = [
        f"    gpu{n}: {{ansible_host: 10.0.{n // 256}.{n % 256}, rack: r{n % 40}, x: [1, 2]}}" for n in range(1000)
    ]
    write({"hosts.yml": "\n".join(["all:", "  hosts:", *lines, ""]), "group_vars/all.yml": "a: 1\nb: 2\n"})
    write({f"host_vars/gpu{n}.yml": f"n: {n}\n" for n in range(0, 1000, 10)})
    started = time.perf_counter()
    inventory = read()
    assert time.perf_counter() - started < 30  # a bound against something quadratic, not a measurement
    assert len(inventory.hosts) == 1000
    assert host_json(inventory, "gpu990")["n"] == 990


def test_the_example_inventory_is_localhost() -> None:
    """The repository's own `inventory/` reads without a warning."""
    inventory = read(str(Path(__file__).parents[3] / "inventory"))
    assert list(inventory.hosts) == ["localhost"]
    assert inventory.warnings == ()
    assert host_json(inventory, "localhost")["ansible_connection"] == "local"
