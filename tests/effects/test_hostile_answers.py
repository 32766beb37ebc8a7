"""A host that answers anything at all: one bad host must not end the run, drive the terminal or give a secret back."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vmreconcile.cli.output import print_json
from vmreconcile.cli.progress import Progress
from vmreconcile.cli.render_plan import plan_text
from vmreconcile.cli.render_status import status_text
from vmreconcile.cli.terminal import Style
from vmreconcile.core.fingerprints import Known
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.effects.observe import host_view
from vmreconcile.effects.session import AgentError, AgentSession
from vmreconcile.effects.ship import agent_archive
from vmreconcile.errors import UnreachableError
from vmreconcile.model.connection import Connection
from vmreconcile.model.desired import DesiredFleet
from vmreconcile.model.gpus import Figures
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, HostView
from vmreconcile.model.secret import Secret

ESCAPE = "\x1b]0;x\x07\x9b2J\n"
SALT = "00" * 16


def seen(text: str, **parts: object) -> HostView:
    """The view of a host whose answer holds `parts`; the word HERE in it stands for `text`, unquoted."""
    observation = json.dumps({"format": 1, "host": {"hostname": "h"}, **parts})
    return host_view("h", SALT, {"ok": True, "observation": json.loads(observation.replace('"HERE"', text))})


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "9" * 400, "-1" + "0" * 400])
def test_numbers_without_end(text: str) -> None:
    """What JSON can say and no number of ours can hold counts as not said."""
    view = seen(text, strangers=[{"pid": "HERE"}], gpus={"devices": [{"index": "HERE", "memory_total": 5}]})
    assert view.strangers[0].pid == 0
    assert (view.gpus[0].index, view.gpus[0].memory_total) == (0, 5)
    with pytest.raises(UnreachableError, match="format"):
        seen(text, format="HERE")


def test_a_name_that_no_server_has() -> None:
    """Only names that the agent can give are believed."""
    slugs = ["qwen", "qwen_2", ESCAPE, "x_", "x_y", "../../etc", "x_99999999999", "", "A"]
    view = seen("", servers=[{"slug": slug} for slug in slugs])
    assert [server.slug for server in view.servers] == ["qwen", "qwen_2"]


WORDS = ("\x1b[2J", "a b", "hf_x\n", "A" * 65, "é")


@pytest.mark.parametrize("text", WORDS)
def test_what_should_be_a_word_is_one_or_nothing(text: str) -> None:
    """Digests, scopes, states and versions have an alphabet, and nothing else of a host is taken for one."""
    env = {"HF_TOKEN": {"fingerprint": text, "value": None}}
    words = dict.fromkeys(("load", "active", "sub", "result", "enabled"), text)
    unit = {**words, "token_places": [{"variable": text, "fingerprint": text, "path": "/x"}]}
    record = {"runtime": text, "boot_id": text, "state": text}
    process = {"pid": 5, "env": env}
    server = {
        "slug": "q",
        "runtime": text,
        "record": record,
        "process": process,
        "unit": unit,
        "env_file": {"env": env},
    }
    host = {"hostname": "h", "boot_id": text, "python": text}
    view = seen("", host=host, systemd={"scope": text}, servers=[server], gpus={"driver": text, "cuda": text})
    (found,) = view.servers
    assert found.unit is not None
    assert found.process is not None
    assert found.env_file is not None
    assert found.record is not None
    (place,) = found.unit.token_places
    told = [found.runtime, view.boot_id, view.python, place.variable, place.fingerprint, view.gpu_driver, view.gpu_cuda]
    told += [found.unit.load, found.unit.active, found.unit.sub, found.unit.result, found.unit.enabled]
    told += [found.record.runtime, found.record.boot_id, found.record.state]
    told += [found.process.env["HF_TOKEN"].fingerprint, found.env_file.env["HF_TOKEN"].fingerprint]
    assert set(told) <= {"", None}
    assert view.systemd.scope == "system"


@pytest.mark.parametrize("text", ["1e19", "-1e18", "18446744073709551615", "253402300800"])
def test_moments_that_no_calendar_has(text: str) -> None:
    """Count as not told, so that they can be shown as dates."""
    process = {"pid": 5, "started_at": "HERE", "env": {}}
    view = seen(text, host={"now": "HERE"}, servers=[{"slug": "q", "process": process, "env_file": {"mtime": "HERE"}}])
    (found,) = view.servers
    assert found.process is not None
    assert found.env_file is not None
    assert (view.now, found.process.started_at, found.env_file.mtime) == (0, 0, 0)


def test_nothing_from_a_host_drives_the_terminal() -> None:
    """Every text of a host that plan and status print has its control characters shown."""
    process = {"pid": 5, "argv": ["vllm" + ESCAPE, "serve", ESCAPE], "env": {}, "children": []}
    endpoint = {"address": ESCAPE, "port": 8001, "health": 200, "version": ESCAPE, "models": []}
    server = {"slug": "q", "runtime": ESCAPE, "process": process, "endpoint": endpoint, "problems": [ESCAPE]}
    stranger = {"pid": 1, "user": ESCAPE, "what": ESCAPE, "why": ESCAPE}
    view = FleetView(hosts=(seen("", servers=[server], strangers=[stranger]),), unreachable=())
    plan = make_plan(DesiredFleet(servers=()), view, Options(known=Known(salt=SALT)))
    for text in (plan_text(plan, Style(), explain=True), status_text(view, plan, Style())):
        assert text.replace("\n", "").isprintable()
        assert "\\x1b" in text


class Channel:
    """A host that answers each line with the bytes that `answer` makes of it."""

    stderr = b""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        """Nothing was said so far."""
        self.answer, self.said = answer, b""

    def send(self, data: bytes) -> None:
        """Take a request."""
        self.said = b"VMRECONCILE/1 " + self.answer(data.splitlines()[-1]) + b"\n"

    def receive(self, timeout: float) -> bytes:
        """Answer it."""
        del timeout
        said, self.said = self.said, b""
        return said

    def exit_status(self, timeout: float) -> int | None:
        """Not known."""
        del timeout
        return None

    def close(self, *, wait: float) -> None:
        """Nothing to close."""


def session(answer: Callable[[bytes], bytes]) -> AgentSession:
    """A session with such a host."""
    return AgentSession(
        channel=Channel(answer), archive=agent_archive(), connection=Connection(host="h", address="h", user="u")
    )


def test_an_answer_without_end_in_depth() -> None:
    """Brackets, 200,000 deep: that host cannot be read, and that is all."""
    with pytest.raises(UnreachableError, match="cannot be read"):
        session(lambda _: b'{"id":1,"x":' + b"[" * 200000).request({"do": "observe"})


def test_a_host_that_gives_back_what_it_was_sent() -> None:
    """An error text holds no secret of its request, whoever wrote it."""

    def answer(line: bytes) -> bytes:
        return json.dumps({"id": 1, "ok": False, "error": {"class": "x", "message": "got " + line.decode()}}).encode()

    with pytest.raises(AgentError) as caught:
        session(answer).request({"do": "steps", "secrets": {"default": Secret("hf_CANARY")}})
    assert "CANARY" not in str(caught.value)
    assert "(hidden)" in str(caught.value)


def test_words_of_a_host_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A chat template's `[/INST]` in an error text is no tag of the live line, which would end the run."""
    progress = Progress(Style(), live=True)
    progress.waits(ServerId(host="h", model="m"), 1.0, "/v1/completions: status 400 [/INST]")
    progress.close()
    assert "fault" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\x9b2J", "\ud800", "\x7f", "\u202e"])
def test_json_on_a_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON document says the same, and no terminal obeys it; what is no text does not end the command."""
    print_json({"what": f"é{text}"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"what": f"é{text}"}
    assert out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "figures",
    [
        {"beside": -(10**18), "kv_bytes": -1, "kv_tokens": -1},
        {"beside": 2**63, "kv_bytes": 2**63, "kv_tokens": 2**63},
        {"beside": "5", "kv_bytes": True, "kv_tokens": []},
        {"beside": "HERE", "kv_bytes": "HERE", "kv_tokens": "HERE"},
    ],
)
def test_a_measurement_that_no_gpu_can_have_counts_as_none(figures: dict[str, object]) -> None:
    """A record that somebody edited, or a host that lies, decides about no server of any host."""
    for length in (-4096, 2**63, "x"):
        measured = {"key": "ab", "gpu": "H", "gpu_memory": 80 << 30, "max_model_len": length, "figures": figures}
        (server,) = seen("NaN", servers=[{"slug": "m", "record": {"measured": measured}}]).servers
        assert server.record is not None
        assert server.record.measured is not None
        assert server.record.measured.figures == Figures()
        assert server.record.measured.max_model_len is None


def test_what_was_predicted_may_leave_less_than_nothing() -> None:
    """It is shown beside what was measured, and nothing is made of it."""
    measured = {"key": "ab", "gpu_memory": 80 << 30, "figures": {"beside": 80 << 30}, "predicted": {"kv_bytes": -5}}
    (server,) = seen("", servers=[{"slug": "m", "record": {"measured": measured}}]).servers
    assert server.record is not None
    assert server.record.measured is not None
    assert server.record.measured.figures == Figures(beside=80 << 30)
    assert server.record.measured.predicted == Figures(kv_bytes=-5)


@pytest.mark.slow
def test_a_host_of_a_hundred_thousand_gpus() -> None:
    """No host has them; placing would be busy for minutes with one that says so."""
    devices = [{"uuid": f"GPU-{number}", "memory_total": 1 << 36} for number in range(100_000)]
    assert len(seen("", gpus={"devices": devices}).gpus) < 1000
