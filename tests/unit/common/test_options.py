"""Options declared once: the command line and the JSON schema that are made of a dataclass."""

import argparse
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import pytest
from jsonschema import Draft202012Validator

from distill.common.options import add_options, group, list_run_options, option, prefixed, read_options, to_schema


@dataclass(frozen=True)
class Inner:
    """A group."""

    depth: int = option("Depth.", 2, minimum=1)


@dataclass(frozen=True)
class Outer:
    """All kinds of options."""

    name: str = option("Name.", minLength=1)
    size: int | Literal["auto"] = option("Size.", "auto", minimum=1, changes_result=False)
    share: Fraction = option("Share.", Fraction("0.29"), minimum=0, exclusiveMaximum=1)
    rate: float | None = option("Rate, 50% or so.", None, exclusiveMinimum=0)
    fast: bool = option("Fast.", False)
    kinds: list[str] = option("Kinds.", ["a"], choices=("a", "b"), minItems=1)
    inner: Inner = group("Inner.", Inner)
    other: Inner | None = group("Other.", None)
    flat: Inner = prefixed("flat_", Inner)


def parse(*argv, **settings):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Outer, **settings)
    return parser.parse_args(["--name", "n", *argv])


def test_the_command_line_has_the_declared_defaults():
    args = parse()
    expected = {"name": "n", "size": None, "share": Fraction("0.29"), "rate": None, "fast": False, "kinds": ["a"]}
    assert vars(args) == expected
    assert read_options(args, Outer, name="other") == Outer("other", size=None)


def test_values_are_read_as_declared():
    args = parse("--size", "3", "--share", "0.5", "--rate", "2e-3", "--fast", "--kinds", "b", "a")
    assert (args.size, args.share, args.rate, args.fast, args.kinds) == (3, Fraction(1, 2), 0.002, True, ["b", "a"])
    assert parse("--size", "auto").size is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "0"], "expected auto or a whole number >= 1, found '0'"),
        (["--size", "big"], "expected auto or a whole number >= 1, found 'big'"),
        (["--size", "1.5"], "expected auto or a whole number >= 1, found '1.5'"),
        (["--share", "1"], "expected a number >= 0 and < 1, found '1'"),
        (["--rate", "nan"], "expected a number > 0, found 'nan'"),
        (["--rate", "inf"], "expected a number > 0, found 'inf'"),
        (["--kinds", "c"], "invalid choice: 'c'"),
    ],
)
def test_what_is_not_allowed_is_refused(argv, message):
    with pytest.raises(argparse.ArgumentError) as error:
        parse(*argv)
    assert message in str(error.value)


def test_a_command_line_may_have_a_prefix_fewer_options_and_other_defaults():
    parser = argparse.ArgumentParser()
    add_options(parser, Outer, "x_", only=["size", "kinds"], defaults={"kinds": ["b"]})
    args = parser.parse_args([])
    assert vars(args) == {"x_size": None, "x_kinds": ["b"]}
    assert read_options(args, Outer, "x_", name="n").kinds == ["b"]


def test_choices_are_read_when_they_are_needed():
    registry = {"a": 1}

    @dataclass
    class Choosing:
        """One option."""

        kind: str = option("Kind.", "a", choices=registry)

    registry["b"] = 2
    parser = argparse.ArgumentParser()
    add_options(parser, Choosing)
    assert parser.parse_args(["--kind", "b"]).kind == "b"
    assert to_schema(Choosing)["properties"]["kind"]["enum"] == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "is_valid"),
    [
        ({"name": "n"}, True),
        ({}, False),
        ({"name": ""}, False),
        ({"name": "n", "size": "auto", "share": 0.5, "rate": None, "kinds": ["b"], "inner": {"depth": 1}}, True),
        ({"name": "n", "size": "big"}, False),
        ({"name": "n", "kinds": []}, False),
        ({"name": "n", "kinds": ["a", "a"]}, False),
        ({"name": "n", "inner": {"depth": 0}}, False),
        ({"name": "n", "inner": None}, False),
        ({"name": "n", "other": None, "flat_depth": 3}, True),
        ({"name": "n", "flat": {}}, False),
        ({"name": "n", "unknown": 1}, False),
    ],
)
def test_the_schema_allows_what_is_declared(values, is_valid):
    schema = to_schema(Outer)
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(values) == is_valid


def test_options_that_change_no_result_are_listed():
    assert list_run_options(Outer) == ("size",)
