"""Our reading and writing of argv against the parser of an installed vLLM, which is asked word for word.

`VMRECONCILE_VLLM_WHEELS` may name a folder with unpacked wheels of other versions, one sub-folder each; they are then
tested too, with the installed vLLM's interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vllm.made import samples, settings_of, texts
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import Kind
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import normalise, parse_strict, to_argv
from vmreconcile.vllm.kinds import equal

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

HERE = Path(__file__).parent
WHEELS = os.environ.get("VMRECONCILE_VLLM_WHEELS")
OTHERS = sorted(path.name for path in Path(WHEELS).iterdir()) if WHEELS else []


# Absent from a namespace unless given: their default is argparse.SUPPRESS.
SUPPRESSED = {"log_config_file", "log_level", "logging_config"}


class RealParser:
    """A vLLM's own parser, running beside the tests."""

    def __init__(self, vllm: Path, wheel: str) -> None:
        """Start it; the first answer takes some ten seconds."""
        environment = {**os.environ, "PYTHONPATH": f"{WHEELS}/{wheel}" if wheel else ""}
        self.process = subprocess.Popen(
            [str(vllm.with_name("python")), str(HERE / "real_parser.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            text=True,
            encoding="utf-8",
        )
        self.catalogue = catalogue_for(self._answer()["version"])
        self.defaults = self.ask(["serve", "m"])["settings"]

    def _answer(self) -> dict[str, object]:
        """The next line it says."""
        line = self.process.stdout.readline()
        assert line, "the parser ended; run tests/vllm/real_parser.py by hand to see why"
        return json.loads(line)

    def ask(self, words: Sequence[str]) -> dict[str, object]:
        """Parse one command line: {'settings': …} or {'error': …}."""
        self.process.stdin.write(json.dumps(list(words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def changed(self, words: Sequence[str]) -> dict[str, JsonValue] | str:
        """What a command line sets beyond the defaults (and which model), or its refusal."""
        answer = self.ask(words)
        if "error" in answer:
            return str(answer["error"])
        return {name: value for name, value in answer["settings"].items() if value != self.defaults.get(name)}


@pytest.fixture(scope="module", params=["", *OTHERS], ids=["installed", *OTHERS])
def real(request: pytest.FixtureRequest, vllm: Path) -> Iterator[RealParser]:
    """The parser, ended with the tests."""
    parser = RealParser(vllm, request.param)
    yield parser
    parser.process.stdin.close()
    parser.process.wait(timeout=30)
    parser.process.stdout.close()


def as_real(ours: Mapping[str, JsonValue], real: RealParser) -> dict[str, JsonValue]:
    """Our settings in the form the real namespace has them: whole objects, and only what is no default."""
    shown: dict[str, JsonValue] = {}
    for name, value in ours.items():
        default = real.defaults.get(name)
        whole = real.catalogue.arguments[name].kind is Kind.CONFIG and isinstance(default, dict)
        real_value = {**default, **value} if whole and isinstance(value, dict) else value
        if not equal(real_value, default):
            shown[name] = real_value
    return shown


def slim(value: JsonValue) -> JsonValue:
    """A value without what vLLM itself adds to an adapter."""
    if isinstance(value, dict):
        unsaid = ("base_model_name", "is_3d_lora_weight")
        return {key: slim(part) for key, part in value.items() if key not in unsaid or part}
    return [slim(item) for item in value] if isinstance(value, list) else value


def agrees(words: Sequence[str], real: RealParser) -> None:
    """Our strict reading and vLLM's own must both refuse, or give the same settings."""
    theirs = real.changed(["serve", *words])
    try:
        model, ours = parse_strict(words, real.catalogue)
    except ValueError:
        ours = None
    if ours is None:
        assert isinstance(theirs, str), f"only we refuse {words}"
        return
    assert not isinstance(theirs, str), f"only vLLM refuses {words}: {theirs}"
    theirs.pop("model_tag", None)
    theirs.pop("subparser", None)
    assert equal(slim(theirs), slim(as_real(ours, real))), words
    assert model == real.ask(["serve", *words])["settings"]["model_tag"]


def test_the_catalogue_is_the_parser(real: RealParser) -> None:
    """Every argument of the namespace is in the catalogue of just this version, and the other way round."""
    assert real.catalogue.version in (catalogue_for().version, *OTHERS)
    assert set(real.defaults) - {"subparser", "model_tag"} | SUPPRESSED == set(real.catalogue.arguments) | SUPPRESSED


def test_what_we_write_is_accepted(real: RealParser) -> None:
    """Each sample of each argument, written by us, gives exactly that value in vLLM's namespace."""
    for name, argument in real.catalogue.arguments.items():
        for value in samples(argument):
            if name in ("model", "config", "logging_config"):
                continue  # said otherwise, or turned into an object that is no JSON
            argv = to_argv("vllm", "m", {name: value}, real.catalogue)
            theirs = real.changed(argv[1:])
            assert not isinstance(theirs, str), (argv, theirs)
            assert equal(slim(theirs), slim({} if len(argv) == 3 else as_real({name: value}, real))), argv


def test_spellings_and_refusals_agree(real: RealParser) -> None:
    """Short options, prefixes, suffixes, dotted names, odd values: vLLM and we accept and refuse the same."""
    forms = """-tp 2|-tp=2|-tp2|--tp 2|--tensor_parallel_size 2|--tensor_parallel_size=2|--gpu-mem 0.5|--max-model 8k
        --max-model-len 32K|--max-model-len -1|--max-model-len=-1|--max-num-batched-tokens 25.6k|--max-model-len 1.5K
        --max-model-len eight|--enable-prefix-caching|--no-enable-prefix-caching|--no_enable_prefix_caching
        --enable-prefix-caching=false|--enable-prefix-caching false|--headless|--headless=1|--no-headless
        --port 1 --port 2|--seed|--seed x|--seed 1.0|--seed ''|--dtype int3|--dtype half|--dtype=|--x|--x 1|--max 1
        --compilation-config.cudagraph_num_of_warmups 3|--hf-overrides.a.b+ x,y|--hf-overrides.a 1k|-q awq|-qawq|-q=awq
        --hf-overrides {"a":1}|--hf-overrides {"a":1|--hf-overrides text|--hf-overrides.a|--hf-overrides.a=1=2
        --served-model-name a b|--served-model-name=a b|--served-model-name|--served-model-name -a|--middleware a
        --api-key a b --port 1|--hf-token|--hf-token x|--allowed-origins ["*"]|--allowed-origins *|--lora-modules a=b
        --lora-modules a|--lora-modules {"name":"a"}|--lora-modules {"name":"a","path":"b"}|--chat-template None
        --revision None|--gpu-memory-utilization -0.5|--gpu-memory-utilization=-0.5|--gpu-memory-utilization inf
        --middleware a --middleware b|-O3|-O 2|-O=1|-O|-dp 2 -dpl 1|-dpx 1|-d 1|-- a|a b|--port 1 a
        --speculative-config {"a":1} --speculative-config.b 2|--log-level DEBUG|--log-config-file x
        --limit-mm-per-prompt {"image":1}|--limit-mm-per-prompt image=1|--swap-space 4|--disable-log-requests|-x|-x y
        --max-lora-rank 16|--max-lora-rank 17|--cudagraph-capture-sizes 1 2 4|--cudagraph-capture-sizes 1 x
        -n 2|-n2|-nx"""
    for form in forms.replace("\n", "|").split("|"):
        agrees(["m", *form.strip().replace("''", "").split(" ")], real)


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_settings_reach_vllm(real: RealParser, data: st.DataObject) -> None:
    """Any settings, written by us, are the namespace that vLLM ends with."""
    drawn = data.draw(settings_of(real.catalogue))
    wanted = {name: value for name, value in drawn.items() if real.catalogue.arguments[name].kind is not Kind.CONFIG}
    argv = to_argv("vllm", "m", wanted, real.catalogue)
    theirs = real.changed(argv[1:])
    assert not isinstance(theirs, str), (argv, theirs)
    _, said = parse_strict(argv[2:], real.catalogue)
    assert equal(slim(theirs), slim(as_real(said, real))), argv
    assert normalise(said, real.catalogue) == said


@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_odd_command_lines_agree(real: RealParser, data: st.DataObject) -> None:
    """Random words after the model are accepted and refused alike."""
    options = [o for o, a in real.catalogue.options.items() if a.kind is not Kind.CONFIG and a.name != "config"]
    words = (
        st.sampled_from(options) | st.sampled_from(options).map(lambda o: o[:-2]) | texts | st.sampled_from(["1", "a"])
    )
    drawn = data.draw(st.lists(words, max_size=5))
    agrees(["m", *(word for word in drawn if not word.startswith(("-h", "--h", "-v")))], real)


def test_the_committed_catalogue_is_what_the_script_writes(vllm: Path, tmp_path: Path) -> None:
    """scripts/vllm-catalogue writes the very file that is in the package."""
    script = HERE.parents[1] / "scripts" / "vllm-catalogue"
    subprocess.run([vllm.with_name("python"), script, "-o", tmp_path], check=True, cwd="/", capture_output=True)
    (written,) = tmp_path.iterdir()
    committed = HERE.parents[1] / "vmreconcile" / "vllm" / "catalogues" / written.name
    assert committed.read_text(encoding="utf-8") == written.read_text(encoding="utf-8")
