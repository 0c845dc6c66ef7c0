"""JSON schema of the options that dataclasses declare with `option` and `group` of common/options.py."""

import dataclasses
import typing
from dataclasses import MISSING
from fractions import Fraction
from typing import Any, Literal

from distill.common.options import Option, Schema, as_json, get_branches, get_default, list_options

PARTIAL = "Only the keys that differ."  # marks the schema of such groups
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", Fraction: "number"}


def to_schema(cls: type) -> Schema:
    """The JSON schema of a dataclass of options, nested ones included; no other keys are allowed."""
    properties: Schema = {}
    required = []
    for name, (kind, one, facts) in list_options(cls).items():
        if facts.prefix:
            properties |= {facts.prefix + key: part for key, part in to_schema(kind)["properties"].items()}
            continue
        properties[name] = describe_option(kind, one, facts)
        if get_default(one) is MISSING and not facts.is_optional:
            required.append(name)
    needed = {"required": required} if required else {}
    return {"type": "object", "additionalProperties": False, **needed, "properties": properties}


def describe_option(kind: Any, one: dataclasses.Field[Any], facts: Option) -> Schema:
    """The JSON schema of one option: description, types, bounds, default."""
    schema: Schema = {"description": facts.description}
    branches = get_branches(kind)
    is_list = any(typing.get_origin(branch) is list for branch in branches)
    if facts.choices is not None and not is_list:
        nothing = [None] if type(None) in branches else []
        schema["enum"] = [*nothing, *facts.choices]
    else:
        for branch in branches:
            merge_branch(schema, describe_type(branch, facts))
    schema |= facts.bounds
    if facts.is_secret:
        schema["writeOnly"] = True
    default = get_default(one)
    if default is not MISSING:
        schema["default"] = {} if dataclasses.is_dataclass(default) else as_json(default)
    return schema


def describe_type(kind: Any, facts: Option) -> Schema:
    """The JSON schema of one type, without description and default."""
    if kind is type(None):
        return {"type": "null"}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return to_schema(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        (word,) = arguments
        return {"type": "string", "pattern": f"^{word}$"}
    if origin is list:
        items = describe_type(arguments[0], facts) if facts.choices is None else {"enum": list(facts.choices)}
        return {"type": "array", "uniqueItems": True, "items": {**items, **facts.items}}
    if origin is dict:
        values: Schema = {}
        for branch in get_branches(arguments[1]):
            merge_branch(values, describe_type(branch, facts))
        if facts.is_partial:
            values = make_partial(values) | {"$comment": PARTIAL}
        return {"type": "object", "additionalProperties": values}
    return {"type": JSON_TYPES[kind]}


def make_partial(schema: Schema) -> Schema:
    """The schema of a group without required keys and defaults, nested groups included."""
    partial = {name: part for name, part in schema.items() if name not in ("required", "default")}
    if "properties" in schema:
        partial["properties"] = {name: make_partial(part) for name, part in schema["properties"].items()}
    return partial


def merge_branch(schema: Schema, branch: Schema) -> None:
    """Add an alternative of a union: the types are listed, all else stands beside them."""
    known, new = schema.get("type"), branch["type"]
    schema.update({name: part for name, part in branch.items() if name != "type"})
    schema["type"] = new if known is None else [*([known] if isinstance(known, str) else known), new]
