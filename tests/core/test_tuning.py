"""Tuning rules: whom they fit, what they set, that they never touch what somebody wrote, and the shipped ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.worlds import wanted, world
from vmreconcile.core.checks.shape import Shape
from vmreconcile.core.checks.tuning import check_tuning
from vmreconcile.core.tuning import for_model, rules_of, size_of, suggestions, together, tuned, version_fits
from vmreconcile.effects.load import SHIPPED_RULES, load_tuning
from vmreconcile.effects.schemas import TUNING_SCHEMA, read_schemas
from vmreconcile.errors import Diagnostic
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Gpu
from vmreconcile.model.observed import HostView
from vmreconcile.model.tuning import Manner, Match, Rule
from vmreconcile.model.values import JsonValue, OriginKind
from vmreconcile.vllm.catalogue import catalogue_for

CATALOGUE = catalogue_for(None)
SHIPPED = rules_of(load_tuning(SHIPPED_RULES), CATALOGUE)


def rule(name: str = "r", match: Match | None = None, **sets: tuple[Manner, JsonValue]) -> Rule:
    """A rule for every model."""
    return Rule(name=name, match=match or Match(model="*"), sets=sets, reason="because")


def server(*rules: Rule, model: str = "org/m", **args: JsonValue) -> DesiredServer:
    """A wanted server with these arguments and the rules that fit its model."""
    made = wanted("m@h1", args=args)
    return replace(made, model=model, rules=for_model(rules, model))


def host(version: str = "0.32.0", *gpus: str) -> HostView:
    """A host with that vLLM and those GPUs."""
    seen = world(wanted("m@h1")).observe().hosts[0]
    kinds = tuple(
        Gpu(index=number, uuid=f"GPU-{number}", name=name, memory_total=1, memory_used=0, memory_free=1, processes=())
        for number, name in enumerate(gpus)
    )
    return replace(seen, gpus=kinds, vllm=tuple(replace(each, version=version) for each in seen.vllm))


def values(one: DesiredServer, on: HostView | None = None, catalogue_version: str = "0.32.0") -> dict[str, JsonValue]:
    """The arguments that the rules set."""
    made, _ = tuned(one, on or host(), catalogue_for(catalogue_version))
    return {name: each.value for name, each in made.settings.items() if each.origin.kind is OriginKind.TUNING}


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B-Instruct", "org/my-QWEN2.5-tune", "/srv/models/qwen2.5-7b"])
def test_qwen25_gets_the_memory_that_it_needs(model: str) -> None:
    """At least 0.8: vLLM's own 0.92 stands and the rule says so; a default below the floor would be raised to it."""
    made, done = tuned(server(*SHIPPED, model=model), host(), CATALOGUE)
    assert "gpu_memory_utilization" not in made.settings
    (told,) = map(str, done)
    assert "stays 0.92, vLLM 0.32.0's default; at least 0.8 asked (rule qwen2.5-kv-memory: Qwen2.5" in told
    low = rule("low", gpu_memory_utilization=(Manner.DEFAULT, 0.3))
    assert values(server(low, *SHIPPED, model=model)) == {"gpu_memory_utilization": 0.8}


def test_a_number_that_somebody_wrote_is_kept() -> None:
    """The rule says that it did nothing, and why."""
    made, done = tuned(
        server(*SHIPPED, model="Qwen/Qwen2.5-7B", gpu_memory_utilization=0.3), host(), CATALOGUE
    )  # fmt: skip
    assert made.settings["gpu_memory_utilization"].value == 0.3
    assert [each.done for each in done] == ["stays 0.3, as written"]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["max_num_seqs", "gpu_memory_utilization", "block_size"]), st.integers(1, 64)),
    st.lists(
        st.tuples(
            st.sampled_from(list(Manner)),
            st.sampled_from(["max_num_seqs", "gpu_memory_utilization", "block_size"]),
            st.integers(1, 64),
        ),
        max_size=6,
    ),
)
def test_no_rule_ever_changes_what_somebody_wrote(
    args: dict[str, JsonValue], sets: list[tuple[Manner, str, int]]
) -> None:
    """Whatever rules there are; and floors hold over what rules alone decide."""
    rules = [rule(f"r{number}", **{name: (manner, value)}) for number, (manner, name, value) in enumerate(sets)]
    made, done = tuned(server(*rules, **args), host(), CATALOGUE)
    assert {name: made.settings[name].value for name in args} == args
    assert len(done) == len(sets)
    for manner, name, value in sets:
        if manner is Manner.AT_LEAST and name not in args:
            argument = made.settings[name].value if name in made.settings else CATALOGUE.arguments[name].default
            assert argument is not None
            assert argument >= value  # type: ignore[operator] # a number
    assert tuned(replace(made, rules=()), host(), CATALOGUE) == (replace(made, rules=()), ())


def test_of_several_values_the_last_rules_counts() -> None:
    """And any value goes over any default."""
    first, second = rule("a", max_num_seqs=(Manner.VALUE, 8)), rule("b", max_num_seqs=(Manner.VALUE, 16))
    default = rule("c", max_num_seqs=(Manner.DEFAULT, 32))
    assert values(server(first, second, default)) == {"max_num_seqs": 16}
    assert values(server(default)) == {"max_num_seqs": 32}


def test_questions_about_the_host() -> None:
    """Its vLLM and every one of its GPUs; what is not known does not match."""
    newer = rule(match=Match(vllm_version=">=0.11,<0.40"), max_num_seqs=(Manner.VALUE, 8))
    hopper = rule(match=Match(gpu="*h100*"), max_num_seqs=(Manner.VALUE, 8))
    assert values(server(newer), host("0.32.0"))
    assert not values(server(newer), host("0.10.2"))
    assert values(server(hopper), host("0.32.0", "NVIDIA H100 80GB", "NVIDIA H100 80GB"))
    assert not values(server(hopper), host("0.32.0", "NVIDIA H100 80GB", "NVIDIA A100"))
    assert not values(server(hopper), host())


@pytest.mark.parametrize(
    ("asked", "on_host", "at_hub", "fits"),
    [
        ("Qwen2ForCausalLM", ["Qwen2ForCausalLM"], [], True),
        ("qwen2*", [], ["Qwen2ForCausalLM"], True),
        ("qwen2*", ["LlamaForCausalLM"], ["Qwen2ForCausalLM"], False),
        ("*ForCausalLM", ["A", "BForCausalLM"], [], True),
        ("*", [], [], False),
    ],
)
def test_questions_about_the_architecture(asked: str, on_host: list[str], at_hub: list[str], fits: bool) -> None:  # noqa: FBT001 - a table
    """The file on the host counts before the Hub's word; unknown does not match."""
    one = replace(
        server(rule(match=Match(architecture=asked), max_num_seqs=(Manner.VALUE, 8))), architectures=tuple(at_hub)
    )
    there = replace(host(), architectures={one.id.slug: tuple(on_host)} if on_host else {})
    assert bool(values(one, there)) is fits


def test_a_suggestion_for_an_architecture_waits_for_the_plan() -> None:
    """Before, nobody knows whether it is meant; a value that was written ends it there too."""
    told = Rule(name="s", match=Match(architecture="Odd*"), suggests={"trust_remote_code": True}, reason="its own code")
    there = replace(host(), architectures={server(told).id.slug: ("OddModel",)})
    assert suggestions([server(told)]) == ()
    assert tuned(server(told), host(), CATALOGUE)[1] == ()
    (done,) = tuned(server(told), there, CATALOGUE)[1]
    assert str(done) == "trust_remote_code is not set; true is suggested (rule s: its own code)"
    assert tuned(server(told, trust_remote_code=False), there, CATALOGUE)[1] == ()


@pytest.mark.parametrize(
    ("version", "asked", "fits"),
    [
        ("0.32.0", ">=0.32", True),
        ("0.32.0+cpu", "==0.32", True),
        ("0.9.1", ">=0.10", False),
        ("0.10.0", "<0.10.1, !=0.10.2", True),
        ("unknown", ">0", False),
    ],
)
def test_versions_compare_by_number(version: str, asked: str, fits: bool) -> None:  # noqa: FBT001 - a table
    """Not by letter."""
    assert version_fits(version, asked) is fits


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7.0),
        ("Qwen/Qwen2.5-0.5B", 0.5),
        ("mistralai/Mixtral-8x7B-v0.1", 56.0),
        ("Qwen/Qwen3-30B-A3B", 30.0),
        ("org/7b-things/chat", None),
        ("meta-llama/Llama-3.1-405b-fp8", 405.0),
        ("gpt2", None),
    ],
)
def test_sizes_are_read_off_ids(model: str, size: float | None) -> None:
    """Where the id says one."""
    assert size_of(model) == size
    bounded = rule(match=Match(at_least=1, at_most=100))
    assert bool(for_model([bounded], model)) is (size is not None and 1 <= size <= 100)


def test_remote_code_is_suggested_and_never_set() -> None:
    """For the models listed; saying either ends it; a rule of one's own may set it."""
    one = server(*SHIPPED, model="internlm/internlm2-chat-7b")
    (told,) = suggestions([one, one])
    assert told.summary == "internlm/internlm2-chat-7b probably needs trust_remote_code: true."
    assert "Python code" in told.why
    assert values(one) == {}
    for said in (True, False):
        assert suggestions([server(*SHIPPED, model=one.model, trust_remote_code=said)]) == ()
    own = rule("internlm2-remote-code", trust_remote_code=(Manner.VALUE, True))
    rules = together(SHIPPED, [own])
    assert len(rules) == len(SHIPPED)
    assert suggestions([server(*rules, model=one.model)]) == ()
    assert values(server(*rules, model=one.model)) == {"trust_remote_code": True}
    assert suggestions([server(*SHIPPED, model="Qwen/Qwen2.5-7B"), server(*SHIPPED, model="Qwen/Qwen3-8B")]) == ()
    assert suggestions([server(*SHIPPED, model="Qwen/Qwen-7B-Chat")])


def problems(folder: Path, text: str) -> tuple[Diagnostic, ...]:
    """What is wrong with a file."""
    path = folder / "tuning.yaml"
    path.write_text(text)
    return check_tuning(load_tuning(path), Shape(read_schemas()[TUNING_SCHEMA]), CATALOGUE)


def test_the_shipped_rules_are_valid() -> None:
    """By the schema and by what it cannot say; each with a reason and a source."""
    assert check_tuning(load_tuning(SHIPPED_RULES), Shape(read_schemas()[TUNING_SCHEMA]), CATALOGUE) == ()
    assert SHIPPED[0].name == "qwen2.5-kv-memory"
    assert all(each.reason and each.source for each in SHIPPED)


GOOD = "rules:\n- name: a\n  match: {model: '*'}\n  reason: why\n"


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        (GOOD + "  set: {max_num_seq: {value: 1}}\n", "5:", "max_num_seq"),
        (GOOD + "  set: {max_num_seqs: {value: many}}\n", "5:", "max_num_seqs"),
        (GOOD + "  set: {max_num_seqs: {value: 1, default: 2}}\n", "5:", "cannot be a mapping"),
        (GOOD + "  set: {max_num_seqs: 1}\n", "5:", "cannot be 1"),
        (GOOD + "  set: {port: {value: 1}}\n", "5:", "port"),
        (GOOD + "  suggest: {hf_token: abc}\n", "5:", "hf_token"),
        (GOOD, "2:", "neither sets nor suggests"),
        (GOOD.replace("'*'", "'~('") + "  suggest: {enforce_eager: true}\n", "3:", "no regular expression"),
        (GOOD.replace("model:", "modle:") + "  suggest: {enforce_eager: true}\n", "3:", "'modle'"),
        (GOOD + "  suggest: {enforce_eager: true}\n" + GOOD[7:] + "  suggest: {enforce_eager: true}\n", "6:", "two"),
        ("", "tuning.yaml", "empty"),
        ("[]", "1:", "mapping"),
        ("rules: 1\n", "1:", "rules cannot be 1"),
        (GOOD.replace("  match: {model: '*'}\n", ""), "2:", "match is missing"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, where: str, said: str, tmp_path: Path) -> None:
    """File, line, what is wrong."""
    found = [f"{each.place} {each.summary}" for each in problems(tmp_path, text)]
    assert any(where in line and said in line for line in found), found
