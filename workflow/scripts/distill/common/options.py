"""Options declared once: a dataclass field carries its type, default, bounds and description.

The same declaration makes command lines (`add_options`, `read_options`) and the JSON schema of the configuration
(plan/json_schema.py), so a default or an allowed value stands in one place.
"""

import argparse
import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from fractions import Fraction
from operator import ge, gt, le, lt
from typing import Any, TypeVar

from distill.common.hashing import parse_fraction

Schema = dict[str, Any]
SEED: Schema = {"minimum": 0, "maximum": 2**32 - 1}  # bounds of a seed
COUNT: Schema = {"minimum": 1}  # bounds of a number of things
T = TypeVar("T")
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
COMPARISONS = {"minimum": ge, "exclusiveMinimum": gt, "maximum": le, "exclusiveMaximum": lt}
SCALARS = (str, bool, int, float, Fraction)


@dataclass(frozen=True)
class Option:
    """What an option's declaration says beyond its name, type and default.

    Attributes:
        description: one or more plain sentences or a noun phrase, for `--help` and the configuration reference.
        when: when to change it, for the configuration reference.
        choices: allowed values, read when they are needed: a registry (a mapping) that grows later counts as well.
        bounds: JSON schema keywords, such as `minimum`, `exclusiveMaximum`, `pattern`, `minLength` or `minItems`.
        items: bounds of a list's items.
        is_secret: the value is never shown in an error message.
        changes_result: whether another value gives another result. Options that only decide where or how fast a job
            runs rerun nothing.
        is_optional: the key may be missing although it has no default.
        is_partial: the groups of a mapping by name contain only what differs from a common group: no key of theirs is
            required or has a default.
        prefix: the field's dataclass is not a group of its own: its options stand in place of the field, each with
            this prefix.
    """

    description: str
    when: str = ""
    choices: Iterable[Any] | None = None
    bounds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    items: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_secret: bool = False
    changes_result: bool = True
    is_optional: bool = False
    is_partial: bool = False
    prefix: str = ""


def option(description: str, default: Any = MISSING, *, when: str = "", choices: Iterable[Any] | None = None,
           items: Mapping[str, Any] | None = None, is_secret: bool = False, changes_result: bool = True,
           **bounds: Any) -> Any:  # fmt: skip
    """A dataclass field that declares an option; see `Option`. Without a default the option is required."""
    facts = Option(description, when, choices, bounds, items or {}, is_secret, changes_result)
    metadata = {"option": facts}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def group(
    description: str,
    default: Any = MISSING,
    *,
    when: str = "",
    changes_result: bool = True,
    is_optional: bool = False,
    is_partial: bool = False,
    **bounds: Any,
) -> Any:
    """A dataclass field that holds further options: `default` is their dataclass, or None for a group left out."""
    facts = Option(
        description,
        when,
        bounds=bounds,
        changes_result=changes_result,
        is_optional=is_optional,
        is_partial=is_partial,
    )
    metadata = {"option": facts}
    if default is MISSING:
        return field(metadata=metadata)
    if default is None:
        return field(default=None, metadata=metadata)
    return field(default_factory=default, metadata=metadata)


def prefixed(prefix: str, cls: type) -> Any:
    """A dataclass field whose options stand in its place, each with a prefix."""
    return field(default_factory=cls, metadata={"option": Option("", prefix=prefix)})


def same_as(cls: type, name: str) -> Any:
    """A dataclass field that declares the same option as another dataclass."""
    _, one, facts = list_options(cls)[name]
    default = {"default": one.default} if one.default is not MISSING else {"default_factory": one.default_factory}
    return field(**default, metadata={"option": facts})


def list_options(cls: type) -> dict[str, tuple[Any, dataclasses.Field[Any], Option]]:
    """Name to (type, field, declaration) of each option of a dataclass, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    return {one.name: (hints[one.name], one, one.metadata["option"]) for one in dataclasses.fields(cls)
            if "option" in one.metadata}  # fmt: skip


def list_run_options(cls: type) -> tuple[str, ...]:
    """Names of the options that change how a job runs and not what it produces."""
    return tuple(name for name, (_, _, facts) in list_options(cls).items() if not facts.changes_result)


def get_default(one: dataclasses.Field[Any]) -> Any:
    """The default of a field; MISSING for a required one."""
    return one.default_factory() if one.default_factory is not MISSING else one.default


def is_mapping(kind: Any) -> bool:
    """Whether a type is a mapping of plain values, which command lines write as NAME=VALUE."""
    return typing.get_origin(kind) is dict and not dataclasses.is_dataclass(typing.get_args(kind)[1])


def get_branches(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union type; a tuple of the type itself for any other."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union else (
        kind,
    )  # fmt: skip


def as_json(value: Any) -> Any:
    """A default as JSON has it."""
    return float(value) if isinstance(value, Fraction) else value


def to_flag(name: str) -> str:
    """The flag of an option: `learning_rate` is `--learning-rate`."""
    return "--" + name.replace("_", "-")


def add_options(
    parser: Any,
    cls: type,
    prefix: str = "",
    *,
    only: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    required: bool = False,
) -> None:
    """Add the options of a dataclass to a command line; groups and mappings of groups are left out.

    Args:
        parser: an `argparse.ArgumentParser` or a group of one.
        cls: dataclass with fields from `option`.
        prefix: of the flags, such as `lora_`.
        only: names of the options that are added; all by default.
        defaults: values that replace the declared ones on this command line.
        required: the command line must give every option, whatever its default.
    """
    for name, (kind, one, facts) in list_options(cls).items():
        branches = [branch for branch in get_branches(kind) if branch is not type(None)]
        is_nested = any(
            dataclasses.is_dataclass(branch) or (typing.get_origin(branch) is dict and not is_mapping(branch))
            for branch in branches
        )
        if is_nested or (only is not None and name not in only):
            continue
        default = MISSING if required else (defaults or {}).get(name, get_default(one))
        shown = "" if default in (MISSING, None, "", [], {}) else f" Default: {format_default(default)}."
        settings: dict[str, Any] = {"help": (facts.description + shown).replace("%", "%%")}
        settings |= {"required": True} if default is MISSING else {"default": default}
        settings |= describe_argument(branches, facts)
        parser.add_argument(to_flag(prefix + name), **settings)


def format_default(value: Any) -> str:
    """A default as it is written on a command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else f"{as_json(value)}"


def describe_argument(branches: Sequence[Any], facts: Option) -> dict[str, Any]:
    """How argparse reads an option's value: its action, its number of values, its choices or its type."""
    if bool in branches:
        return {"action": argparse.BooleanOptionalAction}
    if any(map(is_mapping, branches)):
        return {"nargs": "+", "type": parse_pair, "action": StorePairs, "metavar": "NAME=VALUE"}
    lists = [branch for branch in branches if typing.get_origin(branch) is list]
    settings: dict[str, Any] = {"nargs": "+"} if lists else {}
    if facts.choices is not None:
        return settings | {"choices": tuple(facts.choices)}
    if lists:
        return settings
    return settings | {"type": ValueParser(tuple(branches), facts.bounds)}


def parse_pair(text: str) -> tuple[str, str | bool | int | float]:
    """Return the name and the value of `NAME=VALUE`; the value is JSON, or else text.

    >>> [parse_pair(text) for text in ("thinking=false", "budget=512", "style=brief")]
    [('thinking', False), ('budget', 512), ('style', 'brief')]

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        found = json.loads(value)
    except ValueError:
        return name, value
    if not isinstance(found, str | bool | int | float):
        raise argparse.ArgumentTypeError(f"expected text, a number, true or false after {name}=, found {value}")
    return name, found


class StorePairs(argparse.Action):
    """Stores pairs from `parse_pair` as a dictionary."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Store the pairs of one option, together with those of the same option before."""
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **dict(values)})


@dataclass(frozen=True, eq=False)
class ValueParser:
    """Reads a value of a command line and checks its bounds, as argparse's `type`.

    `auto`, where a number or that word is allowed, is None.
    """

    branches: tuple[Any, ...]
    bounds: Mapping[str, Any]

    def __call__(self, text: str) -> Any:
        """The value.

        Raises:
            argparse.ArgumentTypeError: the text is of another type or out of bounds; says what is expected.
        """
        words = [word for branch in self.branches for word in typing.get_args(branch)]
        if text in words:
            return None if text == "auto" else text
        (kind,) = [branch for branch in self.branches if branch in SCALARS]
        try:
            value = parse_fraction(text) if kind is Fraction else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(self.describe(kind, words, text)) from None
        if not self.is_within(value):
            raise argparse.ArgumentTypeError(self.describe(kind, words, text))
        return value

    def is_within(self, value: Any) -> bool:
        """Whether a value keeps the bounds; NaN and infinity keep none."""
        if isinstance(value, str):
            return True
        checks = {name: check for name, check in COMPARISONS.items() if name in self.bounds}
        return math.isfinite(value) and all(check(float(value), self.bounds[name]) for name, check in checks.items())

    def describe(self, kind: type, words: Sequence[str], text: str) -> str:
        """What was expected and what was found."""
        names = {int: "a whole number", float: "a number", Fraction: "a number", str: "text"}
        bounds = " and ".join(f"{sign} {self.bounds[word]}" for word, sign in BOUNDS.items() if word in self.bounds)
        expected = " or ".join([*words, f"{names[kind]} {bounds}".strip()])
        return f"expected {expected}, found {text!r}"


def read_options(args: argparse.Namespace, cls: type[T], prefix: str = "", **given: Any) -> T:
    """The dataclass from a parsed command line; options that the command line does not have keep their defaults.

    Args:
        args: from a parser with `add_options`.
        cls: the same dataclass.
        prefix: the same prefix.
        given: values that do not come from the command line.
    """
    names = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
    found = {name: getattr(args, prefix + name) for name in names if hasattr(args, prefix + name)}
    return cls(**(found | given))
