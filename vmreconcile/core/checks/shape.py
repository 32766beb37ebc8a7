"""The shape of data, by JSON Schema, each violation in a sentence. Pure; reads no schema from a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.model.document import Path
from vmreconcile.model.showing import may_be_token, printable, shown
from vmreconcile.model.values import JsonValue

_ARGUMENTS = "vllm-args.schema.json"
_NAME_A_TOKEN = {("hf_token",), ("vllm_hf_token",)}
"""Keys, as the end of a path, that name a token's source; some give the token itself there."""

_Schema: TypeAlias = Mapping[str, Any]


_Validator = extend(  # type: ignore[no-untyped-call]  # jsonschema leaves it without types
    Draft202012Validator,
    # JSON Schema takes 1.0 for an integer; in YAML it is written otherwise, and the server would get '1.0' or '1e3'.
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


class Shape:
    """A compiled schema. Make one for many values."""

    def __init__(self, schema: Mapping[str, JsonValue]) -> None:
        """Compile. vLLM's arguments are left to `checks.arguments`, which can say more about them."""
        arguments = DRAFT202012.create_resource({"type": "object"})
        registry = Registry().with_resource(_ARGUMENTS, arguments)
        self._validator = _Validator(dict(schema), registry=registry)
        self._wants = {
            key: str(entry["errorMessage"])
            for key, entry in _properties(schema).items()
            if "$ref" in entry and "errorMessage" in entry
        }

    def check(self, value: Mapping[str, JsonValue]) -> tuple[Finding, ...]:
        """Every violation, in the order of the keys in a file as far as there is one."""
        found: dict[tuple[Any, ...], Finding] = {}
        for error in self._validator.iter_errors(value):
            for finding in self._findings(error):
                found.setdefault((finding.path, finding.summary), finding)
        return tuple(found.values())

    def _findings(self, error: ValidationError) -> Iterator[Finding]:
        path, schema, value = tuple(error.absolute_path), _schema(error), _instance(error)
        if error.validator == "additionalProperties" and isinstance(value, dict):
            yield from (_unknown_key(path, key, schema) for key in _extra(value, schema))
        elif error.validator == "required" and isinstance(value, dict):
            missing = [key for key in schema.get("required", ()) if key not in value]
            yield from (_missing_key(path, key, schema) for key in missing)
        else:
            yield self._misfit(path, value, schema)

    def _misfit(self, path: Path, value: JsonValue, schema: _Schema) -> Finding:
        named = self._wants.get(str(path[-1])) if path else None
        hidden = isinstance(value, str) and path[-1:] in _NAME_A_TOKEN and may_be_token(value)
        said = "what is given there" if hidden else _said(value)
        empty = value == {} and "minProperties" in schema
        return Finding(
            path=path,
            code="wrong-value",
            summary=f"{dotted(path) or 'The file'} {'is empty' if empty else f'cannot be {said}'}.",
            why=str(schema.get("errorMessage") or named or ""),
            remedy=_example(path, schema),
            suggestion="" if hidden else _meant(value, schema),
        )


def _schema(error: ValidationError) -> _Schema:
    """The part of the schema that is violated."""
    return error.schema if isinstance(error.schema, Mapping) else {}


def _instance(error: ValidationError) -> JsonValue:
    """The value that violates it."""
    value: Any = error.instance
    return value  # type: ignore[no-any-return] # what is checked is plain data


def _properties(schema: Mapping[str, JsonValue]) -> dict[str, dict[str, JsonValue]]:
    properties = schema.get("properties")
    entries = properties.items() if isinstance(properties, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict)}


def _extra(value: Mapping[str, JsonValue], schema: _Schema) -> list[str]:
    known, patterns = schema.get("properties", {}), list(schema.get("patternProperties", {}))
    return [key for key in value if key not in known and not any(re.search(pattern, key) for pattern in patterns)]


def _unknown_key(path: Path, key: str, schema: _Schema) -> Finding:
    known = list(schema.get("properties", {}))
    inside = f" in {dotted(path)}" if path else ""
    if not known:
        summary = f"{shown(key)} cannot be a key{inside}."
        return Finding(
            path=(*path, key), code="wrong-key", summary=summary, why=str(schema.get("errorMessage", "")), at_key=True
        )
    near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return Finding(
        path=(*path, key),
        code="unknown-key",
        summary=f"There is no key {shown(key)}{inside}.",
        why=f"The keys are {', '.join(known)}.",
        remedy="Correct or remove it; an argument of vLLM stands under args." if not near else "Correct or remove it.",
        suggestion=near[0] if near else "",
        at_key=True,
    )


def _missing_key(path: Path, key: str, schema: _Schema) -> Finding:
    entry = schema.get("properties", {}).get(key, {})
    return Finding(
        path=path,
        code="missing-key",
        summary=f"{dotted((*path, key))} is missing.",
        why=str(entry.get("description", "")),
        remedy=_example((*path, key), entry),
        at_key=True,
    )


SHORT_LIST = 16
"""A list of so many numbers is repeated as it was written, for lists of GPUs are right in most cases."""


def _said(value: JsonValue) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        numbers = len(value) <= SHORT_LIST and all(isinstance(item, int) for item in value)
        return f"[{', '.join(map(shown, value))}]" if numbers else "a list"
    return shown(value)


def _example(path: Path, schema: _Schema) -> str:
    examples = schema.get("examples")
    if not examples or not path or isinstance(path[-1], int):
        return ""
    example = examples[0]
    text = example if isinstance(example, str) and re.fullmatch(r"[\w./:-]+", example) else shown(example)
    return f"For example: {printable(str(path[-1]))}: {text}"


def _meant(value: JsonValue, schema: _Schema) -> str:
    """What was probably meant: the same in or out of quotes, or the nearest of the words allowed."""
    kinds = {schema.get("type")} if isinstance(schema.get("type"), str) else set(schema.get("type") or ())
    choices = [choice for choice in schema.get("anyOf", ()) if re.search(choice.get("pattern", ""), _words(value))]
    kinds |= {choice.get("type") for choice in choices}
    if isinstance(value, str):
        if kinds & {"integer", "number"} and re.fullmatch(r"[0-9]{1,9}", value):
            return f"{int(value)} (without quotes)"
        if "boolean" in kinds and value.strip().lower() in {"true", "false"}:
            return f"{value.strip().lower()} (without quotes)"
        words = schema.get("enum") or [choice["const"] for choice in schema.get("anyOf", ()) if "const" in choice]
        near = difflib.get_close_matches(value.lower(), [str(word) for word in words], n=1, cutoff=0.5)
        return near[0] if near else _cleaned(value, schema)
    quotable = (
        "string" in kinds and "pattern" not in schema and (isinstance(value, bool | float) or "integer" not in kinds)
    )
    if isinstance(value, bool | int | float) and quotable and "number" not in kinds:
        return f'"{_words(value)}" (in quotes)'
    return ""


def _words(value: JsonValue) -> str:
    """A scalar as it would stand in quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else ""


def _cleaned(value: str, schema: _Schema) -> str:
    """A name or a Hub address that fits after the usual corrections."""
    pattern = schema.get("pattern")
    if not isinstance(pattern, str):
        return ""
    address = re.fullmatch(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s]+/[^/\s?#]+).*", value.strip())
    for candidate in (
        address[1] if address else "",
        value.strip(),
        re.sub(r"[^a-z0-9.-]+", "-", value.strip().lower()),
    ):
        if candidate and candidate != value and re.search(pattern, candidate):
            return printable(candidate)
    return ""
