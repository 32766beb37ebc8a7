"""`connection_of`: a host's variables as a connection, and what is said of those that cannot be used."""

from __future__ import annotations

import pytest

from vmreconcile.core.connection import connection_of, unusable
from vmreconcile.errors import Diagnostic, InputError, Place
from vmreconcile.model.connection import Connection, ConnectionKind
from vmreconcile.model.inventory import Host, UnsafeText, VaultedText
from vmreconcile.model.secret import Secret
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting


def setting(value: JsonValue, line: int = 3) -> Setting:
    """A value said in a file."""
    place = Place(file="inventory/hosts.yml", line=line, column=7)
    return Setting(value=value, origin=Origin(kind=OriginKind.HOST_VARS, place=place, note="host gpu1"))


def host(**variables: JsonValue) -> Host:
    """A host whose variables stand in lines of their own, counted from 1."""
    return Host(
        name="gpu1", variables={name: setting(value, line) for line, (name, value) in enumerate(variables.items(), 1)}
    )


def problems(**variables: JsonValue) -> tuple[Diagnostic, ...]:
    """What is said of variables that cannot be used."""
    with pytest.raises(InputError) as caught:
        connection_of(host(**variables))
    return caught.value.diagnostics


def test_a_host_without_variables_is_reached_by_its_name() -> None:
    """Everything else is left to ~/.ssh/config and the host."""
    connection = connection_of(host())
    assert connection == Connection(host="gpu1")
    assert connection.target == "gpu1"


def test_every_variable_is_read() -> None:
    """All of the contract's connection variables, and ours."""
    assert connection_of(
        host(
            ansible_host="10.0.0.1",
            ansible_port="2222",
            ansible_user="ops",
            ansible_connection="ssh",
            ansible_ssh_private_key_file="~/.ssh/gpu",
            ansible_ssh_common_args="-o ProxyJump=bastion",
            ansible_become="yes",
            ansible_become_user="vllm",
            ansible_become_method="sudo",
            ansible_become_password="s1",
            ansible_password="s2",
            ansible_python_interpreter="/usr/bin/python3.9",
            vllm_executable="/opt/vllm/bin/vllm",
            vllm_state_dir="/srv/vmr",
            vllm_runtime="process",
            other="{{ left_alone }}",
        )
    ) == Connection(
        host="gpu1",
        address="10.0.0.1",
        port=2222,
        user="ops",
        private_key_file="~/.ssh/gpu",
        proxy_jump="bastion",
        become=True,
        become_user="vllm",
        become_password=Secret("s1"),
        password=Secret("s2"),
        python_interpreter="/usr/bin/python3.9",
        vllm_executable="/opt/vllm/bin/vllm",
        vllm_state_dir="/srv/vmr",
    )


def test_a_local_connection() -> None:
    """`local` is the controller itself."""
    assert connection_of(host(ansible_connection="local")).kind is ConnectionKind.LOCAL


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (("ansible_ssh_host", "ansible_host"), "address"),
        (("ansible_ssh_user", "ansible_user"), "user"),
        (("ansible_private_key_file", "ansible_ssh_private_key_file"), "private_key_file"),
        (("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass"), "become_password"),
        (("ansible_password", "ansible_ssh_pass", "ansible_ssh_password"), "password"),
    ],
)
def test_of_several_names_the_last_wins(names: tuple[str, ...], field: str) -> None:
    """The order is that of Ansible's plugins, not of the file; each name serves alone too."""
    for count in range(1, len(names) + 1):
        variables: dict[str, JsonValue] = {name: f"from {name}" for name in reversed(names[:count])}
        value = getattr(connection_of(host(**variables)), field)
        assert (value.reveal() if isinstance(value, Secret) else value) == f"from {names[count - 1]}"


@pytest.mark.parametrize("value", [True, "yes", "On", "TRUE", "1", 1, 1.0, "t", "y"])
def test_what_ansible_takes_for_true(value: JsonValue) -> None:
    """`ansible_become` in any of its spellings."""
    assert connection_of(host(ansible_become=value)).become


@pytest.mark.parametrize("value", [False, "no", "Off", "FALSE", "0", 0, 0.0, "f", "n", None, ""])
def test_what_ansible_takes_for_false(value: JsonValue) -> None:
    """`ansible_become` in any of its spellings."""
    assert not connection_of(host(ansible_become=value)).become


@pytest.mark.parametrize(
    ("arguments", "jump", "command"),
    [
        ("-J bastion", "bastion", ""),
        ("-Jops@bastion:2222,second", "ops@bastion:2222,second", ""),
        ("-oProxyJump=bastion", "bastion", ""),
        ("-o proxyjump=bastion", "bastion", ""),
        ("-o 'ProxyJump bastion'", "bastion", ""),
        ("-o ProxyCommand='ssh -W %h:%p -q bastion'", "", "ssh -W %h:%p -q bastion"),
        ('-o ProxyCommand="nc --proxy a=b %h %p"', "", "nc --proxy a=b %h %p"),
        ("-J first -J second", "first", ""),
        ("-J none", "", ""),
        ("  ", "", ""),
    ],
)
def test_proxies(arguments: str, jump: str, command: str) -> None:
    """Every way in which ssh takes a jump host or a proxy command."""
    connection = connection_of(host(ansible_ssh_common_args=arguments))
    assert (connection.proxy_jump, connection.proxy_command) == (jump, command)


@pytest.mark.parametrize(
    "arguments",
    [
        "-o StrictHostKeyChecking=no",
        "-v",
        "-J",
        "-o",
        "-o ProxyJump=",
        "-J a -o ProxyCommand=b",
        "bastion",
        "-J 'a",
        "-J a -o UserKnownHostsFile=/dev/null",
    ],
)
def test_other_arguments_of_ssh_are_refused(arguments: str) -> None:
    """An option that would be left out silently could be one that matters."""
    (problem,) = problems(ansible_ssh_common_args=arguments)
    assert problem.code == "variable-value"
    assert problem.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ansible_port", 0),
        ("ansible_port", 65536),
        ("ansible_port", "ssh"),
        ("ansible_port", True),
        ("ansible_port", 22.5),
        ("ansible_host", 10.1),
        ("ansible_host", ["a"]),
        ("ansible_host", "a\nb"),
        ("ansible_user", True),
        ("ansible_connection", "docker"),
        ("ansible_become", "maybe"),
        ("ansible_become", [True]),
        ("ansible_become_method", "su"),
        ("vllm_executable", {"path": "x"}),
    ],
)
def test_unfit_values_are_refused_with_their_place(name: str, value: JsonValue) -> None:
    """File, line, column, variable and owner are named."""
    (problem,) = problems(**{name: value})
    assert str(problem.place) == "inventory/hosts.yml:1:7"
    assert problem.summary.startswith(f"{name} ")
    assert problem.summary.endswith("(host gpu1)")
    assert problem.remedy


def test_every_problem_is_reported_at_once() -> None:
    """Templates and vaulted values count only where they are used."""
    found = problems(
        ansible_host="{{ address }}",
        unused="{{ x }}",
        ansible_port="x",
        unused_vault=VaultedText("abc"),
        ansible_password=VaultedText("abc"),
        ansible_become_pass="{% if x %}y{% endif %}",
    )
    assert {(problem.place.line, problem.code) for problem in found} == {
        (1, "variable-template"),
        (3, "variable-value"),
        (5, "variable-vault"),
        (6, "variable-template"),
    }


def test_a_secret_is_in_no_message() -> None:
    """Not even one that cannot be used."""
    found = problems(ansible_password=["s3cret"], ansible_become_password="{{ s3cret }}", ansible_port="x")
    assert "s3cret" not in repr(found)
    assert "s3cret" not in repr(connection_of(host(ansible_password="s3cret", ansible_become_pass="s3cret")))


def test_unsafe_text_may_hold_braces() -> None:
    """`!unsafe` says that they are plain text."""
    connection = connection_of(host(ansible_password=UnsafeText("a{{b}}")))
    assert connection.password == Secret("a{{b}}")


def test_numbers_may_be_names() -> None:
    """A user may be called 42, a password be a number."""
    connection = connection_of(host(ansible_user=42, ansible_password=1234))
    assert connection.user == "42"
    assert connection.password == Secret("1234")


def test_the_interpreter_may_be_left_to_the_host() -> None:
    """Ansible's words for that mean the same here."""
    assert connection_of(host(ansible_python_interpreter="auto_silent")).python_interpreter == ""


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("plain", ""),
        (5, ""),
        ({"a": ["x", {"b": "{{ deep }}"}]}, "variable-template"),
        ([VaultedText("abc")], "variable-vault"),
        ({"a": UnsafeText("{{ x }}")}, ""),
    ],
)
def test_unusable_looks_into_maps_and_lists(value: JsonValue, code: str) -> None:
    """What the resolver asks of `vllm_args` and `vllm_env`."""
    problem = unusable("vllm_args", setting(value))
    assert (problem.code if problem else "") == code
