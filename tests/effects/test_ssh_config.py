"""`~/.ssh/config`, with the real `ssh -G` as the oracle."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from vmreconcile.effects.ssh_config import HostSettings, SshConfig

CONFIGS = {
    # One setting after the other, parted by "; ".
    "plain": "Host gpu*; User alice; Port 2222; HostName %h.example.org; IdentityFile ~/.ssh/id_%h",
    "first wins": "Host gpu1; Port 1; Host *; Port 2; User bob; IdentityFile a; Host gpu1; IdentityFile b; Port 3",
    "global part": "User early; Host gpu2; User late",
    "negated": "Host * !gpu1; User others; Host *; User all",
    "several": "Host gpu1 gpu2 !gpu3; User named",
    "letter case": "Host gpu?; User one; Host GPU*; Port 77; Match host GPU*; HostKeyAlias lower",
    "equals and quotes": 'Host = gpu1; User="al ice"; Port = 44; IdentityFile "/k e y"',
    "comment at the end": "Host gpu1 # not a host; Port 45 # comment",
    "proxies": "Host gpu1; ProxyJump a@b:33,c; Host gpu2; ProxyCommand nc -x '%r' %h %p; Host *; ProxyJump z",
    "proxy none": "Host gpu1; ProxyJump none; Host gpu2; ProxyCommand none; Host *; ProxyJump z",
    "match host": "Host gpu1; HostName real.example; Match host real.example; User m; Match originalhost gpu1; Port 9",
    "match all": "Match all; User everyone",
    "match exec": 'Match exec "test %h = gpu1"; User yes; Match !exec "test %n = gpu1"; User no',
    "match user": "Match user carol; Port 5; Match localuser nobody; Port 6; Match host gpu*,!gpu2 user *; Port 7",
    "match final": "Host gpu1; HostName real.example; Match final host real.example; User last",
    "host key": "Host gpu1; HostKeyAlias farm; UserKnownHostsFile /k1 ~/k2; HashKnownHosts yes",
    "identities": "IdentitiesOnly yes; IdentityAgent none; IdentityFile %d/a; IdentityFile ~/b; IdentityFile ${HOME}/c",
    "family": "AddressFamily inet6; Host gpu2; AddressFamily inet",
    "include": "Include more/*.conf; Host gpu1; Include inner; Port 8; Host *; User fallback",
}
FILES = {
    "more/a.conf": "Host gpu2\n User from-a\n",
    "more/b.conf": "Port 1234\nHost gpu1\n User from-b\n",
    "inner": "HostKeyAlias inner\nHost gpu2\n HostKeyAlias never\nMatch originalhost gpu1\n HashKnownHosts yes\n",
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("host", ["gpu1", "gpu2", "gpu3"])
def test_as_ssh_reads_it(tmp_path: Path, name: str, host: str) -> None:
    """Each setting that we use is the one that ssh uses."""
    write(tmp_path, CONFIGS[name].replace("; ", "\n"))
    ours = SshConfig.read(tmp_path, {"HOME": str(tmp_path)}, system="/dev/null").lookup(host)
    assert as_told(ours) == oracle(tmp_path, host)


def test_inventory_goes_first(tmp_path: Path) -> None:
    """User and port of the inventory win, and show in tokens and `Match user`."""
    write(
        tmp_path, "Match user carol\n HostKeyAlias for-carol\nHost *\n User x\n Port 1\n ProxyCommand p %r@%h:%p %%\n"
    )
    ours = SshConfig.read(tmp_path, {}, system="/dev/null").lookup("gpu1", user="carol", port=99)
    assert (ours.user, ours.port, ours.host_key_alias) == ("carol", 99, "for-carol")
    assert ours.proxy_command == "p carol@gpu1:99 %"


def test_known_as() -> None:
    """The name in known_hosts: with its port where that is not 22, or the alias."""
    assert HostSettings(name="a", hostname="A.b", port=22, user="u").known_as == "a.b"
    assert HostSettings(name="a", hostname="A.b", port=2, user="u").known_as == "[a.b]:2"
    assert HostSettings(name="a", hostname="A.b", port=2, user="u", host_key_alias="Farm").known_as == "farm"


def test_exec_runs_once(tmp_path: Path) -> None:
    """A `Match exec` without tokens runs once, however many hosts are looked up."""
    write(tmp_path, f'Match exec "echo x >> {tmp_path}/ran"\n User matched\n')
    config = SshConfig.read(tmp_path, {"PATH": "/usr/bin:/bin"}, system="/dev/null")
    assert {config.lookup(f"gpu{number}").user for number in range(20)} == {"matched"}
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.parametrize("text", ["Host a\n =\n", 'Host "a\n'])
def test_unreadable_line_is_named(tmp_path: Path, text: str) -> None:
    """A line that is no setting is an error with its place."""
    write(tmp_path, text)
    with pytest.raises(ValueError, match=r"\.ssh/config:\d: this line cannot be read"):
        SshConfig.read(tmp_path, {}, system="/dev/null")


def test_includes_in_a_circle(tmp_path: Path) -> None:
    """A file that includes itself is an error, not a hang."""
    write(tmp_path, "Include config\n")
    with pytest.raises(ValueError, match="include one another too deeply"):
        SshConfig.read(tmp_path, {}, system="/dev/null")


def test_agent_socket(tmp_path: Path) -> None:
    """The agent is the environment's unless the file names another, or none."""
    write(tmp_path, "Host a\n IdentityAgent none\nHost b\n IdentityAgent ~/s\nHost c\n IdentityAgent $MINE\n")
    config = SshConfig.read(tmp_path, {"SSH_AUTH_SOCK": "/env", "MINE": "/mine"}, system="/dev/null")
    assert [config.lookup(host).agent_socket for host in "abcd"] == ["", f"{tmp_path}/s", "/mine", "/env"]


def write(home: Path, text: str) -> None:
    """Write the configuration and the files it may include."""
    for name, content in {**FILES, "config": text}.items():
        path = home / ".ssh" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def as_told(settings: HostSettings) -> dict[str, object]:
    """Our settings under ssh's names."""
    return {
        "hostname": settings.hostname,
        "port": settings.port,
        "user": settings.user,
        "identityfile": list(settings.identity_files),
        "identitiesonly": settings.identities_only,
        "proxyjump": settings.proxy_jump,
        "proxycommand": settings.proxy_command,
        "hostkeyalias": settings.host_key_alias,
        "hashknownhosts": settings.hash_known_hosts,
        "addressfamily": settings.address_family,
        "userknownhostsfile": settings.user_known_hosts,
    }


def oracle(home: Path, host: str) -> dict[str, object]:
    """What `ssh -G` says. It prints tokens and `~` of most settings as they stand; those are expanded here."""
    config = home / ".ssh/config"
    # -F would read includes relative to ~/.ssh of the real home, which ssh takes from the user database.
    text = config.read_text()
    for word in ("more/*.conf", "inner"):
        text = text.replace(f"Include {word}", f"Include {home}/.ssh/{word}")
    (home / "for-ssh").write_text(text)
    argv = ["ssh", "-G", "-F", str(home / "for-ssh"), host]
    done = subprocess.run(argv, check=True, capture_output=True, env={"HOME": str(home), "PATH": "/usr/bin:/bin"})
    told: dict[str, list[str]] = {}
    for line in done.stdout.decode().splitlines():
        key, _, value = line.partition(" ")
        told.setdefault(key, []).append(value)

    def one(key: str, default: str = "") -> str:
        return told.get(key, [default])[0]

    def path(text: str) -> str:
        real = str(Path(f"~{getpass.getuser()}").expanduser())
        text = text.replace("${HOME}", str(home)).replace("%d", str(home)).replace("%h", one("hostname"))
        return text.replace("~", str(home)).replace(real + "/", f"{home}/") if real != "/" else text

    tokens = {"%h": one("hostname"), "%p": one("port"), "%r": one("user")}
    command = one("proxycommand")
    for token, value in tokens.items():
        command = command.replace(token, value)
    named = [path(value) for value in told.get("identityfile", [])]
    return {
        "hostname": one("hostname"),
        "port": int(one("port")),
        "user": one("user"),
        "identityfile": [] if any(name.endswith("/id_xmss") for name in named) else named,
        "identitiesonly": one("identitiesonly") == "yes",
        "proxyjump": one("proxyjump"),
        "proxycommand": "" if command == "none" else command,
        "hostkeyalias": one("hostkeyalias"),
        "hashknownhosts": one("hashknownhosts") == "yes",
        "addressfamily": one("addressfamily"),
        "userknownhostsfile": tuple(path(value) for value in one("userknownhostsfile").split()),
    }
