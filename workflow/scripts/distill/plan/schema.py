"""Checking a configuration: all problems at once, with messages for people, and the defaults filled in."""

import datetime
import difflib
import math
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from distill.common.errors import InputError, describe
from distill.common.options import BOUNDS, Schema
from distill.common.replicas import get_replica_name
from distill.evaluation.metrics import GROUPS
from distill.plan.checks import (
    Place,
    Problems,
    check_names,
    check_paths,
    check_seeds,
    check_single_file,
    check_source,
    check_together,
)
from distill.plan.json_schema import PARTIAL, to_schema
from distill.plan.settings import NAME_PATTERN, Config
from distill.plan.teachers import check_entries, check_teachers, merge_teachers

TYPES = {"string": "text", "boolean": "true | false", "null": "null", "object": "a mapping of keys"}
FLOAT_WITHOUT_POINT_OR_SIGN = re.compile(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)")


def load_schema() -> Schema:
    """The JSON schema of a configuration."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Configuration of an experiment"}
    return about | to_schema(Config)


def format_place(place: Place) -> str:
    """Format a place in the configuration, such as `students.student_kd.train.epochs` or `categories[2]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the configuration"


def format_value(value: Any) -> str:
    """Format a value as one line of YAML."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def describe_kind(kind: str, schema: Schema) -> str:
    """Describe the allowed values of one type."""
    if kind in ("integer", "number"):
        bounds = " and ".join(f"{sign} {schema[word]}" for word, sign in BOUNDS.items() if word in schema)
        return f"{'an integer' if kind == 'integer' else 'a number'} {bounds}".strip()
    if kind == "string" and "pattern" in schema:
        literal = schema["pattern"].strip("^$")
        return literal if literal.isalnum() else f"text that matches {schema['pattern']}"
    if kind == "string" and schema.get("minLength"):
        return "text that is not empty"
    if kind == "array":
        return f"a list of {describe_allowed(schema['items'])}".replace(" | ", ", ")
    if kind == "object" and "properties" in schema:
        return f"the keys {', '.join(schema['properties'])}"
    values = schema.get("additionalProperties")
    if kind == "object" and isinstance(values, dict) and "properties" not in values:
        return f"a mapping of names to {describe_allowed(values)}".replace(" | ", ", ")
    return TYPES[kind]


def describe_allowed(schema: Schema) -> str:
    """Describe the allowed values for a message, for example `an integer >= 1 | auto`."""
    if "enum" in schema:
        return " | ".join(format_value(value) for value in schema["enum"])
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return " | ".join(describe_kind(kind, schema) for kind in kinds)


def find_hint(value: Any, schema: Schema) -> str:
    """Explain how YAML read the value, if it is a known pitfall; otherwise an empty text."""
    kinds = schema.get("type", [])
    numeric = "number" in kinds or "integer" in kinds
    if isinstance(value, str) and numeric:
        if found := FLOAT_WITHOUT_POINT_OR_SIGN.fullmatch(value):
            whole, digits, sign, exponent = found.groups()
            tidy = f"{whole}{digits if digits and digits != '.' else '.0'}e{sign or '+'}{exponent}"
            return f" (YAML 1.1 reads {value} as text: write {tidy})"
        if re.fullmatch(r"[+-]?\d+(\.\d*)?", value):
            return f" (text: write {value} without quotes)"
    if isinstance(value, bool) and "boolean" not in kinds:
        return " (YAML 1.1 reads yes, no, on and off as true and false: put the word in quotes)"
    if isinstance(value, int | float) and "string" in kinds and not numeric:
        return f' (a number: write "{value}" in quotes)'
    if value is None and "object" in kinds and "default" in schema:
        return " (the key has no value: remove it to use the defaults)"
    return ""


def walk_schema(schema: Schema, place: Place = ()) -> Iterator[tuple[Place, Schema]]:
    """Yield (place, schema) of every key in the schema; NAME stands for a student's name.

    A mapping of names to plain values is one key, and so is one of names to groups of keys that are elsewhere.
    """
    children = dict(schema.get("properties", {}))
    other = schema.get("additionalProperties")
    if isinstance(other, dict) and "properties" in other and other.get("$comment") != PARTIAL:
        children["NAME"] = other
    for key, child in children.items():
        yield (*place, key), child
        yield from walk_schema(child, (*place, key))


def suggest_key(key: str, known: list[str], place: Place) -> str:
    """Suggest where an unknown key belongs: under a neighbouring key, or the closest key here or elsewhere."""

    def count_shared(other: Place) -> int:
        return sum(a in (b, "NAME") for a, b in zip(other, place, strict=False))

    places = [other for other, _ in walk_schema(load_schema()) if other[-1] != "NAME"]
    places.sort(key=count_shared, reverse=True)
    same = [other[:-1] for other in places if other[-1] == key]
    inside = [other for other in same if count_shared(other) == min(len(other), len(place))]
    near = difflib.get_close_matches(key, known, n=1)
    if near and not inside:
        return f"; did you mean {near[0]}?"
    if same:
        return f"; {key} belongs under {' or '.join(format_place(other) for other in (inside or same)[:3])}"
    for name in difflib.get_close_matches(key, [str(other[-1]) for other in places], n=1):
        return f"; did you mean {next(format_place(other) for other in places if other[-1] == name)}?"
    return ""


def note_error(problems: Problems, error: ValidationError) -> None:
    """Add a validation error of jsonschema to the problems, at most one per place."""
    place, value, schema = tuple(error.absolute_path), error.instance, error.schema
    if error.validator == "additionalProperties":
        known = list(schema["properties"])
        for key in [key for key in value if key not in known]:
            hint = suggest_key(key, known, place)
            text = f"unknown key (value {describe(value[key])}), expected one of {', '.join(known)}{hint}"
            problems.setdefault((*place, key), text)
    elif error.validator == "required":
        for key in [key for key in error.validator_value if key not in value]:
            expected = describe_allowed(schema["properties"][key])
            problems.setdefault((*place, key), f"missing, expected {expected}")
    elif error.validator in ("minItems", "minProperties"):
        problems.setdefault(place, f"expected at least {error.validator_value}, found {describe(value)}")
    elif error.validator == "uniqueItems":
        problems.setdefault(place, f"expected each value once, found {describe(value)}")
    else:
        is_secret = schema.get("writeOnly")
        shown = "something else (not shown: it may be a secret)" if is_secret else describe(value)
        found = f"found {shown}{'' if is_secret else find_hint(value, schema)}"
        problems.setdefault(place, f"expected {describe_allowed(schema)}, {found}")


def tidy_keys(value: Any, problems: Problems, place: Place = ()) -> Any:
    """Copy the value with keys and dates as text; report other keys and numbers that are not finite."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                problems[(*place, str(key))] = f"expected text as a key, found {key!r} (put it in quotes)"
        return {str(key): tidy_keys(child, problems, (*place, str(key))) for key, child in value.items()}
    if isinstance(value, list):
        return [tidy_keys(child, problems, (*place, i)) for i, child in enumerate(value)]
    if isinstance(value, datetime.date):  # YAML reads 2025-01-31 as a date
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        problems[place] = f"expected a finite number, found {value}"
    return value


def fill_defaults(value: Any, schema: Schema) -> Any:
    """Copy the value with defaults for missing keys; whole floats become integers where the schema wants integers."""
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        filled = {
            key: value[key] if key in value else child["default"]
            for key, child in known.items()
            if key in value or "default" in child
        }
        filled |= {key: child for key, child in value.items() if key not in known}
        children = {key: known.get(key, other if isinstance(other, dict) else {}) for key in filled}
        return {key: fill_defaults(child, children[key]) for key, child in filled.items()}
    if isinstance(value, list):
        return [fill_defaults(child, schema.get("items", {})) for child in value]
    if isinstance(value, float) and "integer" in schema.get("type", []) and value.is_integer():
        return int(value)
    return deepcopy(value)


def check_texts(value: Any, problems: Problems, place: tuple[Any, ...] = ()) -> None:
    """Note each text that a command line cannot hold: with a null character or half a surrogate pair."""
    if isinstance(value, dict):
        for name, one in value.items():
            check_texts(one, problems, (*place, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            check_texts(one, problems, (*place, number))
    elif isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        text = "expected text without null characters and lone surrogates"
        problems.setdefault(place, f"{text}, found {describe(value)}")


def expand_seeds(students: dict[str, Any]) -> dict[str, Any]:
    """Return the checked students with one replica for each seed in the place of a student with `train.seeds`."""
    expanded: dict[str, Any] = {}
    for name, student in students.items():
        seeds = student["train"].pop("seeds", None)
        for seed in seeds or []:
            replica = deepcopy(student)
            replica["train"]["seed"] = seed
            expanded[get_replica_name(name, seed)] = replica
        if not seeds:
            expanded[name] = student
    return expanded


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check a configuration and return a copy with the defaults filled in.

    `answer: null` becomes a null key, each category's own teacher has all keys, students with `train.seeds` become
    their replicas (see `expand_seeds`), and `evaluation.pairwise` adds its group to the metrics.

    Raises:
        InputError: lists all problems, each with its place, the allowed values, the value found and, for an unknown
            key, the closest known one.
    """
    problems: Problems = {}
    schema = load_schema()
    tidy = tidy_keys(config, problems)
    for error in Draft202012Validator(schema).iter_errors(tidy):
        note_error(problems, error)
    filled = fill_defaults(tidy, schema)
    check_texts(filled, problems)
    check_entries(filled, problems)
    merge_teachers(filled)
    check_names(filled, problems, NAME_PATTERN)
    check_seeds(tidy, problems)
    check_paths(filled, problems)
    check_together(filled, problems)
    check_source(filled, problems)
    check_single_file(tidy, problems)
    check_teachers(filled, problems)
    if problems:
        listed = "\n".join(f"  {format_place(place)}: {text}" for place, text in problems.items())
        raise InputError(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration:\n{listed}")
    if filled["answer"] is None:
        filled["answer"] = {"key": None, "label_fields": []}
    if filled["evaluation"]["pairwise"]:
        metrics = filled["evaluation"]["metrics"]
        metrics += [name for name, entry in GROUPS.items() if entry.needs_verdicts and name not in metrics]
    filled["students"] = expand_seeds(filled["students"])
    return filled
