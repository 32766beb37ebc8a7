"""The Hub token and other secrets: to the right servers, and nowhere else. vLLM is simulated."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.disk import CHECKOUT
from tests.lab.hosts import PASSWORD
from tests.lab.hub import Gate, Hub, Repository
from tests.lab.served import pids, root, roots
from tests.lab.space import GATEWAY
from tests.lab.wanting import changes, fields, model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

SYSTEM_ENV = "/etc/vmreconcile/env"
PLAIN_ENV = "/home/plain/.config/vmreconcile/env"


def new_token() -> str:
    """A token such as the Hub gives out, of no use anywhere."""
    return "hf_" + "".join(secrets.choice("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(34))


def log_in(cli: Cli, token: str) -> Path:
    """Keep a token where the Hub's client keeps it."""
    path = cli.home / ".cache/huggingface/token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(token)
    return path


def tokens(hosts: list[Host]) -> dict[str, dict[str, str | None]]:
    """HF_TOKEN in the environment of each host's servers, by port."""
    found = {}
    for host in hosts:
        servers = roots(host)
        found[host.name] = {one.argv[one.argv.index("--port") + 1]: one.environ.get("HF_TOKEN") for one in servers}
    return found


def test_tokens_go_to_the_servers_that_use_them_and_are_rotated(
    cli: Cli, hosts: list[Host], simulated_vllm: str
) -> None:
    """The cache file wins over the environment; a new token restarts just its servers; none here leaves theirs."""
    cli.inventory(
        {"vllm_executable": simulated_vllm}, {"gpu2": {"vllm_runtime": "process"}, "gpu3": {"ansible_user": "plain"}}
    )
    cli.models(**{"with-token": model(hf_token="default"), "without": model(port=8003)})
    first, second, third = (new_token() for _ in range(3))
    path = log_in(cli, first)
    applied = cli("apply", "--json", env={"HF_TOKEN": second})
    assert (applied.returncode, applied.json["changed"]) == (0, 6), applied
    assert "HF_TOKEN ignored: the cache file wins" in applied.stderr
    assert tokens(hosts) == {host.name: {"8001": first, "8003": None} for host in hosts}
    for host, folder in zip(hosts, (SYSTEM_ENV, SYSTEM_ENV, PLAIN_ENV), strict=True):
        assert host.exec(["stat", "-c", "%a", f"{folder}/with-token.env"]).stdout == "600\n"
        assert first in host.read(f"{folder}/with-token.env")
        assert "HF_TOKEN" not in host.read(f"{folder}/without.env")
    before = pids(hosts)

    path.write_text(third)
    plan = cli("plan", "--json")
    assert changes(plan) == {f"with-token@{host.name}": ("restart", "token_changed", True) for host in hosts}
    assert set(fields(plan, "with-token@gpu1")) == {"hf_token"}
    rotated = cli("apply", "--json")
    assert (rotated.returncode, rotated.json["changed"]) == (0, 3), rotated
    assert tokens(hosts) == {host.name: {"8001": third, "8003": None} for host in hosts}
    for name, after in pids(hosts).items():
        assert len(set(before[name]) & set(after)) == 1, "the one without a token was left alone"

    path.unlink()
    before = pids(hosts)
    quiet = cli("plan", "--json", "--detailed-exitcode")
    assert quiet.returncode == 0, quiet
    assert "no Hugging Face token on this controller" in quiet.stderr
    cli.models(**{"with-token": model(hf_token="default", env={"A": "1"}), "without": model(port=8003)})
    kept = cli("apply", "--json")
    assert (kept.returncode, kept.json["changed"]) == (0, 3), kept
    assert tokens(hosts) == {host.name: {"8001": third, "8003": None} for host in hosts}

    cli.models(**{"with-token": model(hf_token=None, env={"A": "1"}), "without": model(port=8003)})
    dropped = cli("plan", "--json")
    assert changes(dropped) == {f"with-token@{host.name}": ("restart", "token_changed", True) for host in hosts}
    assert cli("apply", env={"HF_TOKEN": first}).returncode == 0
    assert tokens(hosts) == {host.name: {"8001": None, "8003": None} for host in hosts}
    cli.models(**{"with-token": model(hf_token="default", env={"A": "1"})})
    path.write_text(f"{third} and more")
    refused = cli("plan")
    assert refused.returncode == 5, refused
    assert third not in refused.stdout + refused.stderr


class Watcher:
    """Reads the arguments and environments of every process of this machine, hosts included, again and again."""

    def __init__(self, words: list[str]) -> None:
        """Look for `words`."""
        self.words = [word.encode() for word in words]
        self.found: set[str] = set()
        self.looks = 0
        self._over = threading.Event()

    def look(self) -> None:
        """Note every process that shows a word where it must not."""
        self.looks += 1
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and entry.name != str(os.getpid()):
                with contextlib.suppress(OSError):
                    self._judge((entry / "cmdline").read_bytes(), (entry / "environ").read_bytes())

    def _judge(self, argv: bytes, environ: bytes) -> None:
        own = b"VMRECONCILE_SERVER=" in environ
        for word in self.words:
            if word in argv or (word in environ and not own):
                self.found.add(repr((argv[:200], b"" if own else environ[:200])))

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(0.05):
            self.look()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look, in a thread, while the block runs."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def files_with(folder: Path, words: list[str]) -> set[str]:
    """Every file below `folder` that holds one of `words`, by its path from there."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 27:
            data = path.read_bytes()
            if any(word.encode() in data for word in words) or any(word in str(path) for word in words):
                found.add(str(path.relative_to(folder)))
    return found


def places_with(host: Host, words: list[str]) -> set[str]:
    """Every place of a host that holds one of `words`: what was written on its disk, its memory disks, its journal."""
    found = files_with(host.upper, words)
    for folder in ("run", "tmp", "dev/shm"):
        found |= {f"{folder}/{name}" for name in files_with(Path(f"/proc/{host.pid}/root/{folder}"), words)}
    journal = host.exec(["journalctl", "--all", "--output=export", "--no-pager"]).stdout
    shown = host.exec(["systemctl", "show", "--all", "vmreconcile-*"]).stdout
    found = {name for name in found if not name.startswith("run/log/journal/")}  # read below, as text
    found = {name for name in found if not name.startswith(f"{CHECKOUT}/"[1:])}  # a checkout below /tmp is bound there
    found |= {name for name, text in (("journal", journal), ("show", shown)) if any(word in text for word in words)}
    return found


def test_the_search_finds_what_is_there(lab: Lab, hosts: list[Host]) -> None:
    """What the next test relies on: a word in a file, on a memory disk, in the journal, in an environment is found."""
    (gpu1, *_) = hosts
    word = new_token()
    watcher = Watcher([word])
    watcher.look()
    assert not places_with(gpu1, [word]) | watcher.found
    for path in ("/tmp/planted", "/run/planted", "/var/lib/vmreconcile/planted", f"/root/{word}"):
        gpu1.write(path, f"x{word}x")
    gpu1.shell('systemd-cat echo "said $1"; journalctl --sync', word)
    lab.start_by_hand(gpu1, ["sleep", "1000"], env={"PLANTED": word})
    watcher.look()
    assert places_with(gpu1, [word]) == {
        "tmp/planted", "run/planted", "var/lib/vmreconcile/planted", f"root/{word}", "journal",
    }  # fmt: skip
    assert len(watcher.found) == 1
    gpu1.exec(["rm", f"/root/{word}", "/run/planted"])


def core_limit(pid: int) -> str:
    """How large a core dump of a process may be; 1 means none even where dumps are piped to a program."""
    (line,) = [text for text in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in text]
    return line.split()[4]


BROKEN = """
import sys
import vmreconcile.flows.acting as acting
from vmreconcile.cli.main import main
def broken(server, steps, run, *more):
    raise RuntimeError(f"{[secret.reveal() for secret in run.secrets.values()]} {run.desired}")
acting.send_steps = broken
sys.exit(main(sys.argv[1:]))
"""


def broken_tool(cli: Cli, *argv: str) -> str:
    """All that the tool says when it breaks in the midst of an apply, on an exception that holds secrets."""
    done = cli.lab.run([sys.executable, "-c", BROKEN, *argv], env={"HOME": str(cli.home)} | cli.env, cwd=cli.folder)
    assert done.returncode == 1, done
    assert "fault of vmreconcile itself" in done.stderr, done
    assert "RuntimeError" in done.stderr
    return done.stdout + done.stderr


def everything(cli: Cli, hosts: list[Host], faults: Path, token: str, key: str) -> Iterator[str]:
    """Do all that the tool can do with a token and an API key; yield what it said each time."""

    def tool(*argv: str, code: int = 0, data: str = "", **env: str) -> str:
        outcome = cli(*argv, env=env, data=data)
        assert outcome.returncode == code, outcome
        return str(outcome)

    very = VERY
    for words in (["init", "example"], ["validate"], ["plan", "--explain", *very], ["plan", "--json"]):
        yield tool(*words)
    yield tool("plan", "-o", "plan.json")
    yield broken_tool(cli, "apply", *very)
    yield tool("apply", "plan.json", "--json", *very)
    yield tool("status", "--json")
    for words in (["plan"], ["status"]):
        yield tool(*words, *very)
    for host in hosts:
        for words in (["show", *very], ["show", "--json"], ["logs", *very]):
            yield tool(*words, f"tiny@{host.name}")
    yield from more(cli, tool)
    yield from with_a_hub(cli, token, tool)
    yield from the_old_verbs(cli)
    faults.write_text("die=bad-token\n")
    cli.model("failing", model(port=8002, hf_token="default", env={"VLLM_API_KEY": key}))
    yield tool("apply", *very, code=1)
    log_in(cli, rotated(token))
    cli.model("failing", model(port=8002, hf_token="default", env={"VLLM_API_KEY": rotated(key)}))
    yield tool("plan", "--json", *very)
    yield tool("restart", "tiny@gpu2", *very)
    cli.model("wrong", model(port=8005, env={"HF_TOKEN": token}, args={"api_key": key, "hf_token": token}))
    for words in (["validate"], ["validate", "--json"], ["plan"]):
        yield tool(*words, code=5)


VM = "from vmreconcile.__main__ import run_vm; run_vm()"
VERY = ("-v", "-v")


def more(cli: Cli, tool: Callable[..., str]) -> Iterator[str]:
    """doctor, auth, prefetch and list where no Hub is reached: plain, as JSON, and with all that can be logged."""
    for words in (["doctor"], ["auth", "status"], ["auth", "status", "--on-hosts"], ["list"]):
        for how in ([], ["--json"], VERY):
            yield tool(*words, *how)
    for words in (["auth", "check"], ["auth", "check", "--on-hosts"], ["prefetch"]):
        for how in ([], ["--json"], VERY):
            yield tool(*words, *how, code=1)


def with_a_hub(cli: Cli, token: str, tool: Callable[..., str]) -> Iterator[str]:
    """Logging in, what the Hub says of the token and of a model that is shut, an old manager's models with its token.

    The Hub keeps tokens in this process alone. Who imports has a home of their own, which goes again.
    """
    stranger = cli.folder / "home-of-another"
    old = cli.folder / "old"
    with cli.lab.network(), Hub(GATEWAY) as hub:
        hub.tokens[token] = "ada"
        hub.repositories["org/shut"] = Repository(gate=Gate.GATED)
        online = {**hub.environ(), "HF_HUB_OFFLINE": "0"}
        shut = {"model": "org/shut", "hosts": "gpu1", "port": 8090, "state": "stopped", "env": hub.environ()}
        cli.model("shut", model(hf_token="default", **shut))
        for how in ([], ["--json"], VERY):
            yield tool("auth", "login", *how, data=f"{token}\n", **online)
            yield tool("auth", "login", *how, data=f"{rotated(token)}\n", code=1, **online)
            yield tool("auth", "login", *how, data=f"{token} x\n", code=64, **online)
            yield tool("auth", "status", *how, **online)
            yield tool("auth", "check", *how, code=1, **online)
            yield tool("auth", "check", "--no-cache", "--on-hosts", "-l", "gpu1", *how, code=1, **online)
            yield tool("doctor", *how, code=1, **online)
            yield tool("start", "shut", "--no-save", *how, code=1, **online)
        assert any(request.token == token for request in hub.requests)
        (cli.models_folder / "shut.yaml").unlink()
        for how in (["--dry-run"], ["--dry-run", "--json"], [], ["--json"], VERY):
            old.mkdir()
            entry = {"name": "then", "huggingface_id": "org/then", "port": 8100}
            (old / "models.json").write_text(json.dumps({"models": [entry]}))
            (old / ".env").write_text(f"HF_TOKEN={token}\n")
            cli.lab.make_home(stranger)
            words = ["import", "old/models.json", "--hosts", "gpu1", *how]
            yield tool(*words, HOME=str(stranger), **online)
            (cli.models_folder / "then.yaml").unlink(missing_ok=True)
            yield tool(*words, "--with-token", HOME=str(stranger), **online)
            stored = stranger / ".cache/huggingface/token"
            assert (stored.read_text() if stored.exists() else "") == ("" if "--dry-run" in how else token)
            written = (cli.models_folder / "then.yaml").read_text() if "--dry-run" not in how else ""
            assert token not in written
            (cli.models_folder / "then.yaml").unlink(missing_ok=True)
            shutil.rmtree(stranger)
            shutil.rmtree(old)


def the_old_verbs(cli: Cli) -> Iterator[str]:
    """All that `vm` can do, plain, as JSON, and with all that can be logged; nothing of its model is left."""

    def vm(*words: str, code: int = 0) -> str:
        env = {"HOME": str(cli.home), "HF_HUB_OFFLINE": "1"} | cli.env
        done = cli.lab.run([sys.executable, "-c", VM, *words], env=env, cwd=cli.folder)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    for how in ([], ["--json"], VERY):
        yield vm("add", "guest", "org/guest", "--port", "8091", "--host", "gpu1", *how)
        yield vm("list", *how)
        yield vm("start", "guest", *how)
        yield vm("status", *how)
        yield vm("stop", "guest", *how)
        yield vm("cleanup", *how)
        yield vm("force", "-y", *how)
        yield vm("remove", "guest", "-y", *how)
        yield vm("auth", "status", *how)
    yield vm("ui")


def rotated(secret: str) -> str:
    """What a secret is changed to."""
    return secret[:-1] + "0"


def test_secrets_are_in_the_env_file_and_the_server_and_nowhere_else(
    cli: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str
) -> None:
    """A token, an API key and sudo's password: searched for on both sides, in processes while it works, in all said."""
    token, key = new_token(), f"opensesame{secrets.token_hex(8)}x"
    words = [token, key, rotated(token), rotated(key)]
    log_in(cli, token)
    (cli.folder / "tmp").mkdir()
    cli.env["TMPDIR"] = str(cli.folder / "tmp")
    become = {"ansible_user": "careful", "ansible_become": True, "ansible_become_password": PASSWORD}
    cli.inventory(
        {"vllm_executable": simulated_vllm},
        {"gpu1": become, "gpu2": {"vllm_runtime": "process"}, "gpu3": {"ansible_user": "plain"}},
    )
    cli.model("tiny", model(hf_token="default", env={"VLLM_API_KEY": key}))
    faults = lab.shared / "simulator/faults.8002"
    watcher = Watcher(words)
    try:
        with watcher.watching():
            said = list(everything(cli, hosts, faults, token, key))
    finally:
        faults.unlink(missing_ok=True)

    assert watcher.looks > 20
    assert not watcher.found
    for text in said:
        assert not [word for word in [*words, PASSWORD] if word in text], text
    for host, folder in zip(hosts, (SYSTEM_ENV, SYSTEM_ENV, PLAIN_ENV), strict=True):
        assert places_with(host, words) == {f"{folder}/tiny.env"[1:], f"{folder}/failing.env"[1:]}
        assert not places_with(host, [PASSWORD])
        assert root(host).environ["VLLM_API_KEY"] == key
        assert root(host).environ["HF_TOKEN"] == (rotated(token) if host.name == "gpu2" else token)
        assert core_limit(root(host).outer_pid) in {"0", "1"}, "a core dump would hold them"
    hub_keeps = {f"home/.cache/huggingface/{name}" for name in ("token", "stored_tokens")}
    assert files_with(cli.folder, [token, rotated(token)]) == {*hub_keeps, "models.d/wrong.yaml"}
    assert files_with(cli.folder, [key]) == {"models.d/tiny.yaml", "models.d/wrong.yaml"}
    assert files_with(cli.folder, [rotated(key)]) == {"models.d/failing.yaml"}
    assert files_with(cli.folder, [PASSWORD]) == {"inventory/hosts.yaml"}
    assert json.loads((cli.folder / "plan.json").read_text())["changes"][0]["steps"]
