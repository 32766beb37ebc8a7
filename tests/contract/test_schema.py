"""The schemas, the dataclasses, the checks and the manual say the same."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from vmreconcile.core.checks.arguments import check_arguments
from vmreconcile.core.checks.variables import OURS
from vmreconcile.core.conduct import health_of, hooks_of, rollout_of
from vmreconcile.core.needs import cordon_of, needs_of, tokens_of
from vmreconcile.effects.examples import example_texts
from vmreconcile.effects.load import load_models
from vmreconcile.effects.schemas import NAMES, read_schemas, schema_text
from vmreconcile.model.desired import DesiredServer, DesiredState, Health, Hooks, Rollout
from vmreconcile.model.gpus import Needs
from vmreconcile.model.names import MODEL_NAME
from vmreconcile.runtimes.registry import RUNTIMES
from vmreconcile.vllm.catalogue import TOOL_OWNED, catalogue_for

ROOT = Path(__file__).resolve().parents[2]
MODEL, VARIABLES, ARGUMENTS, TUNING = (json.loads(schema_text(name)) for name in NAMES)
REGISTRY = Registry().with_resources(
    [
        (name, DRAFT202012.create_resource(schema))
        for name, schema in zip(NAMES, (MODEL, VARIABLES, ARGUMENTS, TUNING), strict=True)
    ]
)


def _checker(reference: str) -> Draft202012Validator:
    """A validator of one part of a schema, named as FILE#POINTER."""
    return Draft202012Validator({"$ref": reference}, registry=REGISTRY)


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401 - JSON
    """Every sub-schema that describes an object."""
    if isinstance(schema, dict):
        if "properties" in schema or "patternProperties" in schema:
            yield path, schema
        for key, inner in schema.items():
            if key not in {"examples", "default"}:
                yield from _objects(inner, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from _objects(inner, f"{path}/{index}")


@pytest.mark.parametrize("schema", [MODEL, VARIABLES, ARGUMENTS, TUNING], ids=NAMES)
def test_each_is_a_valid_schema_of_draft_2020_12(schema: dict[str, Any]) -> None:
    """It names the draft and obeys the draft's own schema."""
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("schema", [MODEL, VARIABLES, ARGUMENTS, TUNING], ids=NAMES)
def test_every_property_is_described_and_no_other_is_allowed(schema: dict[str, Any]) -> None:
    """`description` on every property, `additionalProperties: false` on every object."""
    found = list(_objects(schema))
    assert found
    for path, one in found:
        assert one.get("additionalProperties") is False, path
        for name, entry in {**one.get("properties", {}), **one.get("patternProperties", {})}.items():
            assert entry.get("description"), f"{path}/{name}"


@pytest.mark.parametrize("schema", [MODEL, VARIABLES, TUNING], ids=[*NAMES[:2], NAMES[3]])
def test_examples_and_defaults_obey_their_own_schema(schema: dict[str, Any]) -> None:
    """What an editor offers is right."""
    Draft202012Validator(schema, registry=REGISTRY).validate(schema.get("examples", [{}])[0])
    file = NAMES[[MODEL, VARIABLES, ARGUMENTS, TUNING].index(schema)]
    for path, one in _objects(schema):
        for name, entry in one.get("properties", {}).items():
            checker = _checker(f"{file}#{path}/properties/{name}")
            for example in [*entry.get("examples", []), *([entry["default"]] if "default" in entry else [])]:
                assert checker.is_valid(example), f"{path}/{name}: {example}"


def test_properties_have_a_sentence_for_people_and_an_example() -> None:
    """`errorMessage` is what editors and `validate` say; every property of a model has an example."""
    for _, one in [*_objects(MODEL), *_objects(VARIABLES), *_objects(TUNING)]:
        for name, entry in one.get("properties", {}).items():
            if not entry.get("$ref", "").startswith("#"):
                assert entry["errorMessage"].endswith("."), name
                assert entry["examples"], name


def test_the_schema_agrees_with_the_dataclasses() -> None:
    """Fields, defaults and closed sets are the same on both sides."""
    keys = set(MODEL["properties"])
    fields = {field.name for field in dataclasses.fields(DesiredServer)}
    renamed = {"settings": "args", "token": "hf_token", "id": "name"}
    from_hosts = {"executable", "state_dir", "delivery", "host_cordon", "cordoned_gpus", "host_limit", "turn"}
    from_hosts |= {"origins", "rules", "architectures", "keeps", "visible"}
    assert {renamed.get(name, name) for name in fields - from_hosts} == keys - {"hosts", "replicas", "overrides"}
    properties = MODEL["properties"]
    assert properties["state"]["enum"] == [state.value for state in DesiredState]
    assert properties["runtime"]["enum"] == VARIABLES["properties"]["vllm_runtime"]["enum"] == sorted(RUNTIMES)
    assert properties["name"]["pattern"] == f"^{MODEL_NAME.pattern}$"
    defaults = {field.name: field.default for field in dataclasses.fields(DesiredServer)}
    for key, name in (("state", "state"), ("gpus", "gpus"), ("hf_token", "token"), ("revision", "revision")):
        assert properties[key]["default"] == defaults[name]
    assert set(properties["needs"]["properties"]) == {field.name for field in dataclasses.fields(Needs)}
    assert (needs_of(properties["needs"]["default"]), cordon_of(properties["cordon"]["default"])) == (Needs(), "")
    health, rollout, hooks = (properties[name]["properties"] for name in ("health", "rollout", "hooks"))
    assert set(health) == {field.name for field in dataclasses.fields(Health)}
    assert set(rollout) == {field.name for field in dataclasses.fields(Rollout)}
    assert set(hooks) == {field.name for field in dataclasses.fields(Hooks)}
    assert (rollout_of({}), hooks_of({}), health_of({})) == (Rollout(), Hooks(), Health())
    read = [(health_of, health, Health()), (rollout_of, rollout, Rollout()), (hooks_of, hooks, Hooks())]
    for reader, entries, standard in read:
        said = {name: entry["default"] for name, entry in entries.items() if "default" in entry}
        assert reader(said) == standard
    assert set(VARIABLES["properties"]) == set(OURS)


@pytest.mark.parametrize(
    "text", ["1", "200k", "256K", "1.5m", "1.5M", "2g", "1t", "200 k", "k", "1e5", "-1k", "12", "0x1", "", "\u0661k"]
)
def test_editors_and_validate_agree_on_tokens(text: str) -> None:
    """A text is a number of tokens for an editor where it has a suffix and vLLM's own reader takes it."""
    entry = MODEL["properties"]["needs"]["properties"]["kv_tokens"]
    suffixed = text[-1:].isalpha() and text.isascii()
    assert Draft202012Validator(entry).is_valid(text) == (suffixed and tokens_of(text) is not None)


def test_overrides_hold_keys_of_the_model() -> None:
    """All but those that are the model's as a whole."""
    inside = set(MODEL["$defs"]["override"]["properties"])
    assert inside == set(MODEL["properties"]) - {"name", "hosts", "rollout", "overrides"}


def test_the_manual_has_a_row_for_every_key() -> None:
    """With its default and an example that is valid; nothing in the tables that does not exist."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    rows = {row[0].strip("`"): row for row in cells}
    properties = dict(MODEL["properties"])
    for parent in ("needs", "health", "rollout", "hooks"):
        properties |= {f"{parent}.{name}": entry for name, entry in MODEL["properties"][parent]["properties"].items()}
    assert set(rows) == set(properties) | set(VARIABLES["properties"])
    for name, entry in properties.items():
        default, example = rows[name][2].strip("`"), rows[name][4].strip("`")
        if "default" in entry:
            assert yaml.safe_load(default) == entry["default"], name
        if example:
            assert _checker(f"{NAMES[0]}#/properties/{name.replace('.', '/properties/')}").is_valid(
                yaml.safe_load(example)
            ), name
    for name in re.findall(r"`(\w+)`", page[page.index("These are not set") : page.index("## Precedence")]):
        assert name in {*TOOL_OWNED, "args", "VLLM_API_KEY"}
    assert all(f"`{name}`" in page for name in TOOL_OWNED)


def test_the_schema_of_arguments_is_as_generated(tmp_path: Path) -> None:
    """scripts/vllm-args-schema writes the same file from the newest catalogue."""
    made = tmp_path / "made.json"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "vllm-args-schema"), str(made)], check=True, timeout=60)
    assert made.read_text(encoding="utf-8") == schema_text("vllm-args.schema.json")


def test_editors_and_validate_agree_on_defaults_and_names() -> None:
    """Each argument's own default, under each name without dashes, is fine with both."""
    catalogue = catalogue_for(None)
    checker = Draft202012Validator(ARGUMENTS)
    for alias, name in catalogue.names.items():
        if name in TOOL_OWNED or alias == f"no_{name}":
            continue
        default = catalogue.arguments[name].default
        assert list(check_arguments({alias: default}, ("args",), catalogue)) == [] or default == [], alias
        assert checker.is_valid({alias: default}), alias


def test_models_that_the_project_ships_are_valid_for_editors(tmp_path: Path) -> None:
    """The example files obey the schemas as an editor reads them, and name the schema where it lies."""
    (tmp_path / "init.yaml").write_text(example_texts()["models.d/qwen2.5-7b.yaml"], encoding="utf-8")
    documents = [*load_models(ROOT / "models.d"), *load_models(tmp_path)]
    checker = Draft202012Validator(MODEL, registry=REGISTRY)
    for document in documents:
        assert document.problems == ()
        checker.validate(document.content)
        first = Path(document.path).read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=../schemas/model.schema.json"
    assert len(documents) > 1


def test_validate_gets_what_it_needs() -> None:
    """`read_schemas` holds the schemas that files are checked by, by name, read once."""
    assert read_schemas() == {NAMES[0]: MODEL, NAMES[1]: VARIABLES, NAMES[3]: TUNING}
    assert read_schemas() is read_schemas()
