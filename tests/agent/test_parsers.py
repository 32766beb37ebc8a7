"""The pure parsers: /proc, env files, HTTP, metrics, systemctl, nvidia-smi, masks. Fuzzed, and against known texts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreconcile.agent import (
    endpoint,
    envfile,
    gpus,
    jsontext,
    masks,
    metrics,
    nvidia_smi,
    proc,
    survey,
    systemd,
    units,
)
from vmreconcile.agent.classify import Known, classify
from vmreconcile.agent.folders import is_slug, slug_of_unit
from vmreconcile.agent.frames import Channel
from vmreconcile.agent.problems import Problem
from vmreconcile.model.names import ServerId

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)


@given(st.dictionaries(NAMES, TEXT))
def test_env_file_reads_back_verbatim(values: dict[str, str]) -> None:
    """Every text that an environment can hold survives."""
    assert envfile.parse(envfile.render(sorted(values.items()))) == values


@given(st.text())
def test_any_text_is_an_env_file(text: str) -> None:
    """Nothing makes the reader fail, and only names come out."""
    assert all(envfile.is_name(name) for name in envfile.parse(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\n", {"A": "1"}),
        ("  A = 1  \nB=2", {"A": "1", "B": "2"}),
        ("A=a b  c \n", {"A": "a b  c"}),
        ("A='a\nb'\n", {"A": "a\nb"}),
        ("A='a'\"b\"c\n", {"A": "abc"}),
        ('A="a\\x\\"\\$"\n', {"A": 'a\\x"$'}),
        ("A=a\\\nb\n", {"A": "ab"}),
        ("A=a\\ b\\\\\n", {"A": "a b\\"}),
        ("# A=1\n; B=2\n#x\\\nC=3\n", {}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("export A=1\n", {}),
        ("A\nB=1\n", {"B": "1"}),
        ("A=", {"A": ""}),
        ('A="unfinished', {"A": "unfinished"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
    ],
)
def test_hand_edited_env_files(text: str, expected: dict[str, str]) -> None:
    """Read as systemd reads them (checked against systemd 252 in test_systemd)."""
    assert envfile.parse(text) == expected


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_is_the_same_as_the_package(value: object) -> None:
    """What we write and read is what Python's own package writes and reads."""
    text = jsontext.dumps(value)
    assert text == json.dumps(value, separators=(",", ":"), sort_keys=True)
    assert jsontext.loads(text) == json.loads(text)
    assert text.isascii()


def refuse(name: str) -> float:
    """NaN and Infinity are no JSON (RFC 8259)."""
    raise ValueError(name)


@given(st.text() | st.from_regex(r"[\[\]{}\",:0-9a-fnul\\]{0,30}", fullmatch=True))
def test_json_refuses_what_the_package_refuses(text: str) -> None:
    """Garbage is an error of one kind, and so are the constants that the package takes for numbers."""
    try:
        expected = json.loads(text, parse_constant=refuse)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            jsontext.loads(text)
    else:
        assert repr(jsontext.loads(text)) == repr(expected)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "1 2", "", "  "])
def test_json_has_no_nan(text: str) -> None:
    """What is not JSON is refused."""
    with pytest.raises(ValueError, match=r"."):
        jsontext.loads(text)


@given(st.binary())
def test_proc_parsers_take_anything(data: bytes) -> None:
    """No bytes make a parser fail, and everything that comes out can be sent."""
    parsed = proc.parse_stat(data)
    comm = parsed.comm if parsed else ""
    inodes = [list(row) for row in proc.parse_tcp(b"head\n" + data)]
    seen = [comm, list(proc.parse_cmdline(data)), proc.parse_environ(data), proc.parse_cgroup(data), inodes]
    jsontext.dumps(seen).encode("ascii")


def test_stat_with_a_hostile_name() -> None:
    """A process may call itself anything."""
    data = b"77 (a) R 1 (b) S 5 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 33 18446744073709551615\n"
    parsed = proc.parse_stat(data)
    assert parsed is not None
    assert (parsed.pid, parsed.ppid, parsed.session, parsed.start_ticks) == (77, 5, 77, 4242)
    assert parsed.rss_bytes == 33 * proc.PAGE
    assert parsed.comm == "a) R 1 (b"


def test_cmdline_forms() -> None:
    """Arguments keep empty ones and newlines; a title loses its padding; bytes that are no text stay readable."""
    assert proc.parse_cmdline(b"a\0\0b\nc\0") == ("a", "", "b\nc")
    assert proc.parse_cmdline(b"VLLM::EngineCore\0\0\0\0") == ("VLLM::EngineCore",)
    assert proc.parse_cmdline(b"a\xff\0") == ("a\\xff",)
    assert proc.parse_cmdline(b"") == ()


def test_listening_sockets() -> None:
    """Addresses of both families; reading ends with the listening ones."""
    head = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = b"   0: %s 00000000:0000 %s 00000000:00000000 00:00000000 00000000  1000        0 %d 1 0 100 0 0 10 0\n"
    data = head + row % (b"0100007F:1F41", b"0A", 11) + row % (b"0100007F:1F42", b"01", 12) + row % (b"0:1", b"0A", 13)
    assert list(proc.parse_tcp(data)) == [(11, "127.0.0.1", 8001, 1000)]
    mapped = b"0000000000000000FFFF00000100007F:0050"
    assert [found[1] for found in proc.parse_tcp(head + row % (mapped, b"0A", 1))] == ["127.0.0.1"]
    assert [found[1] for found in proc.parse_tcp(head + row % (b"0" * 32 + b":0050", b"0A", 1))] == ["::"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"0::/a\n", "/a"),
        (b"5:memory:/m\n1:name=systemd:/s\n0::/u\n", "/s"),
        (b"5:memory:/m\n0::/u:with:colons\n", "/u:with:colons"),
        (b"", ""),
    ],
)
def test_control_groups(data: bytes, expected: str) -> None:
    """The hierarchy that systemd uses, whichever version."""
    assert proc.parse_cgroup(data) == expected


@given(data=st.binary(max_size=300), ended=st.booleans())
def test_responses_take_anything(data: bytes, *, ended: bool) -> None:
    """A server may answer garbage; once it has ended there is always a verdict."""
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        parsed = endpoint.parse_response(prefix + data, ended=ended)
        assert parsed is not None or not ended
    metrics.parse_metrics(data)
    metrics.parse_labels(data.decode("latin-1"))


def test_responses() -> None:
    """By length, by chunks, by the end; after a 100; not before they are whole."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    assert endpoint.parse_response(head + b"o", ended=False) is None
    assert endpoint.parse_response(head + b"ok", ended=False) == (200, b"ok")
    assert endpoint.parse_response(b"HTTP/1.1 100 Continue\r\n\r\n" + head + b"ok", ended=False) == (200, b"ok")
    chunked = b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n"
    assert endpoint.parse_response(chunked, ended=False) is None
    assert endpoint.parse_response(chunked + b"0\r\n\r\n", ended=False) == (503, b"abcd")
    assert endpoint.parse_response(b"HTTP/1.0 200 OK\r\n\r\nabc", ended=True) == (200, b"abc")
    assert endpoint.parse_response(b"SSH-2.0-x\r\n", ended=False) == (0, b"")
    assert endpoint.parse_response(b"", ended=True) == (0, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000_000,
    ],
    ids=["status", "length", "continued", "chunks"],
)
def test_no_response_holds_up_the_agent(data: bytes) -> None:
    """Numbers of thousands of digits, endless 100s, a chunk for each byte: a verdict, soon, and no error of ours."""
    begun = time.monotonic()
    assert endpoint.parse_response(data, ended=True) is not None
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("odd", [[1], {"a": 1}, True, 1e300, 10**400, "x" * 9999])
def test_what_a_server_says_of_its_models_is_text_and_numbers(odd: object) -> None:
    """Anything else is null: nested as deep as can just be read, it would cost the answer of the whole host."""
    deep: object = odd
    for _ in range(800):
        deep = [deep]
    rows = [{"id": "m", "root": each, "max_model_len": each} for each in (odd, deep)] * 600
    found = endpoint.parse_models({"data": rows})
    assert len(found) == 1000
    text = "x" * 4096 if odd == "x" * 9999 else None
    assert [row for row in found if row not in ({**row, "root": None}, {**row, "root": text})] == []
    assert {row["max_model_len"] for row in found} == {None}
    assert endpoint.parse_models({"data": [{"id": "m", "root": "r", "max_model_len": 5}]}) == [
        {"id": "m", "root": "r", "max_model_len": 5}
    ]


def test_no_label_holds_up_the_agent() -> None:
    """A value as long as an answer may be, with and without escapes, takes no longer than its length."""
    begun = time.monotonic()
    assert metrics.parse_labels('a="' + "x" * (1 << 22) + '",b="\\\\' + '\\"' * (1 << 20) + '"') == {
        "a": "x" * (1 << 22),
        "b": "\\" + '"' * (1 << 20),
    }
    assert time.monotonic() - begun < 10


def test_metrics() -> None:
    """Running and waiting requests of all engines together, and the effective cache settings."""
    body = (
        b'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 2.0\n'
        b'vllm:num_requests_running{engine="1"} 3.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
        b'vllm:cache_config_info{a="x\\"y",gpu_memory_utilization="0.92"} 1.0\nother 5\n'
    )
    found = metrics.parse_metrics(body)
    assert (found["requests_running"], found["requests_waiting"]) == (5, 0)
    assert found["cache_config"] == {"a": 'x"y', "gpu_memory_utilization": "0.92"}


@given(st.text())
def test_masks_take_anything(text: str) -> None:
    """Masking never fails, and what was masked stays masked."""
    assert masks.mask_text(masks.mask_text(text)) == masks.mask_text(text)
    masks.mask_argv((text, "--api-key", text))


@pytest.mark.parametrize("piece", ["hf_", "api_org_", "sk-", "://a:b"])
def test_no_command_line_keeps_the_masks_busy(piece: str) -> None:
    """Anybody on a host may start a program with 64 KiB of what almost is a token: it took minutes of each look."""
    begun = time.process_time()
    text = "x" + piece * (proc.CMDLINE_LIMIT // len(piece))
    assert masks.mask_argv((text, f"{text} hf_{'a' * 34}")) == [text, f"{text} ***"]
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--api-key", "s3cret", "--port", "1"), ["--api-key", "***", "--port", "1"]),
        (("--api-key=s3cret",), ["--api-key=***"]),
        (("--api_key", "one", "two", "--x"), ["--api_key", "***", "***", "--x"]),
        (("--hf-tok", "abc"), ["--hf-tok", "***"]),
        (("--hf-token", "--port"), ["--hf-token", "--port"]),
        (("--api-server-count", "4"), ["--api-server-count", "4"]),
        (("--max-num-batched-tokens", "4096"), ["--max-num-batched-tokens", "4096"]),
        (("hf_" + "a" * 34,), ["***"]),
        (("{'k': 'hf_" + "a" * 34 + "'}",), ["{'k': '***'}"]),
        (("/models/sk-learn-7b", "chaf_" + "a" * 30), ["/models/sk-learn-7b", "chaf_" + "a" * 30]),
        (("https://u:p@host/x", "https://host/a@b"), ["https://***@host/x", "https://host/a@b"]),
    ],
)
def test_masked_command_lines(argv: tuple[str, ...], expected: list[str]) -> None:
    """Secrets go in every spelling that vLLM takes; nothing else changes, or it would look like drift."""
    assert masks.mask_argv(argv) == expected


def test_fingerprints() -> None:
    """HMAC-SHA256 as everybody computes it, whatever the salt's length."""
    import hmac  # noqa: PLC0415 - the oracle

    for salt in (b"x" * 16, b"y" * 64, b"z" * 100):
        expected = hmac.new(salt, "N=välue".encode(), "sha256").hexdigest()[:16]
        assert masks.fingerprint(salt, "N", "välue") == expected


def test_what_of_an_environment_is_told() -> None:
    """Our names, vLLM's, the Hub's and those asked for; never the value of a secret."""
    env = {"HF_TOKEN": "x", "HOME": "/r", "MINE": "1", "VLLM_X": "hf_" + "a" * 34, "CUDA_HOME": "/c", "MY_KEY": "k"}
    told = masks.described(b"0" * 16, env, {"MINE", "MY_KEY"})
    assert {name: entry["value"] for name, entry in told.items()} == {
        "CUDA_HOME": "/c", "HF_TOKEN": None, "MINE": "1", "MY_KEY": None, "VLLM_X": None,
    }  # fmt: skip


@given(st.text(max_size=12) | st.from_regex(r"[a-z0-9._-]{1,70}", fullmatch=True))
def test_slugs_are_the_controllers(text: str) -> None:
    """A name that the controller gives is a slug, and every slug is safe in a path and in a unit's name."""
    try:
        good = ServerId.parse(f"{ServerId.from_slug(text, 'h').local}@h").slug == text
    except ValueError:
        good = False
    if is_slug(text):
        assert "/" not in text
        assert slug_of_unit(f"vmreconcile-{text}.service") == text
    assert is_slug(text) or not good


def test_units() -> None:
    """Blocks of properties; exit codes and signals of the main process."""
    first = "Id=a.service\nMainPID=5\nExecMainCode=2\nExecMainStatus=9\nX=a=b\n"
    text = first + "\nId=b.service\nExecMainCode=1\nExecMainStatus=2\n"
    found = units.parse_show(text)
    assert found["a.service"]["X"] == "a=b"
    assert [units.exit_code(found[name]) for name in ("a.service", "b.service")] == [-9, 2]
    assert units.exit_code({"ExecMainCode": "0", "ExecMainStatus": "0"}) is None
    assert units.described("a.service", found["a.service"], None)["main_pid"] == 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1min 30s", 90.0),
        ("500ms", 0.5),
        ("2h", 7200.0),
        ("infinity", systemd.DEFAULT_STOP_S),
        ("", systemd.DEFAULT_STOP_S),
    ],
)
def test_time_spans(text: str, seconds: float) -> None:
    """As systemctl shows them."""
    assert systemd.seconds(text) == seconds


def test_nvidia_smi() -> None:
    """Two tables in MiB; what the driver does not tell is None."""
    cards = "1, GPU-b, NVIDIA H100, 81559, 100, 81459, 595.71\n0, GPU-a, NVIDIA H100, 81559, 0, 81559, 595.71\n"
    held = "GPU-b, 77, 1024\nGPU-b, 78, [N/A]\n"
    driver, devices = nvidia_smi.parse(cards, held)
    assert driver == "595.71"
    assert [device["index"] for device in devices] == [0, 1]
    assert devices[1]["processes"] == [{"pid": 77, "memory_bytes": 1 << 30}, {"pid": 78, "memory_bytes": None}]
    assert devices[1]["memory_total"] == 81559 << 20
    assert gpus.memory_by_pid({"devices": devices}) == {77: 1 << 30}
    assert nvidia_smi.parse("garbage\n, ,\n", "x") == (None, [])


@given(st.binary(max_size=200))
def test_records_take_anything(data: bytes) -> None:
    """A record is an object or a problem."""
    seen = Path(__file__).stat()
    try:
        record = survey.parse_record((data, seen), "/r")
    except Problem:
        record = {}
    assert isinstance(record, dict)


def test_the_user_of_a_process(tmp_path: Path) -> None:
    """Who started it, also where the folder in /proc belongs to root, as that of a process that dumps no core does."""
    fake_proc(tmp_path, 9)
    (tmp_path / "1/status").write_text("Name:\tUid:\t5\nState:\tS\nUid:\t2001\t0\t0\t0\nGid:\t0\t0\t0\t0\n")
    (tmp_path / "2/status").write_text("garbage\nUid:\n")
    users = [getattr(proc.load(pid, str(tmp_path)), "uid", None) for pid in (1, 2, 3)]
    assert users == [2001, -1, -1]
    own = proc.load(os.getpid())
    assert own is not None
    assert own.uid == os.getuid()


def fake_proc(root: Path, count: int) -> None:
    """A /proc with `count` processes, some vanishing, some hostile."""
    tail = "0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 1000 33 0 0"
    for pid in range(1, count + 1):
        here = root / str(pid)
        here.mkdir()
        (here / "cmdline").write_bytes(random.Random(pid).choice([b"", b"bash\0", b"\xff\xfe\0", b"java\0-Dx=vllm\0"]))
        (here / "stat").write_text(f"{pid} (x) S 1 {pid} {pid} " + tail.format(ticks=pid))
    (root / "7/cmdline").write_bytes(b"python\0/v/vllm\0serve\0" + b"x" * 200_000)
    (root / "9/cmdline").unlink()
    (root / "8/stat").write_text("garbage")
    (root / "8/cmdline").write_bytes(b"/v/vllm\0serve\0m\0")


@pytest.mark.slow
def test_ten_thousand_processes() -> None:
    """A busy host is read in little time, whatever its processes call themselves."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        fake_proc(Path(folder), 10_000)
        begun = time.process_time()
        found = survey.processes(Known("b", {}, {}, {}, uid=0), folder)
        verdict = classify(found, Known("b", {}, {}, {}, uid=0))
        assert time.process_time() - begun < 30
    assert [one.pid for one, _ in verdict.strangers] == [7]
    assert len(" ".join(verdict.strangers[0][0].argv)) <= proc.CMDLINE_LIMIT


def test_a_channel_whose_peer_is_gone_is_no_error() -> None:
    """What is under way is finished although nobody listens."""
    reader, writer = os.pipe()
    os.close(reader)
    channel = Channel(-1, writer)
    channel.send({"id": 1})
    assert channel.ended
    assert channel.receive() is None
    os.close(writer)


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(NAMES.filter(lambda name: name not in {"_", "PWD", "SHLVL", "OLDPWD"}), TEXT, max_size=4))
def test_env_files_are_shell_too(values: dict[str, str]) -> None:
    """A person may `source` one in a shell (it quotes as sh does), which is a second reading of the same rules."""
    values = {f"T_{name}": text for name, text in values.items()}
    script = "set -a; . /dev/stdin; exec env -0"
    text = envfile.render(sorted(values.items()))
    done = subprocess.run(["bash", "--norc", "-c", script], input=text.encode(), capture_output=True, check=True)
    seen = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if "=" in entry)
    assert {name: seen[name] for name in values} == values
