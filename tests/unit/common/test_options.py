"""Options declared once: the command line that is made of a dataclass."""

import argparse
from dataclasses import dataclass
from fractions import Fraction

import pytest
from declared_options import Outer

from distill.common.options import add_options, list_run_options, option, parse_pair, read_options
from distill.plan.json_schema import to_schema


def parse(*argv, **settings):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Outer, **settings)
    return parser.parse_args(["--name", "n", *argv])


def test_the_command_line_has_the_declared_defaults():
    args = parse()
    expected = {"name": "n", "size": None, "share": Fraction("0.29"), "rate": None, "fast": False, "kinds": ["a"]}
    assert vars(args) == expected
    assert read_options(args, Outer, name="other") == Outer("other", size=None)


@dataclass(frozen=True)
class Named:
    pairs: dict[str, str | bool | int | float] = option("Values by name.", {})


def test_a_mapping_of_values_is_written_as_pairs():
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Named)
    assert parser.parse_args([]).pairs == {}
    found = parser.parse_args(["--pairs", "think=false", "budget=5", "style=a=b", 'quoted="1"']).pairs
    assert found == {"think": False, "budget": 5, "style": "a=b", "quoted": "1"}
    assert to_schema(Named)["properties"]["pairs"]["additionalProperties"]["type"] == [
        "string", "boolean", "integer", "number",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["think", "=1", "a=[1]", "a=null", 'a={"b": 1}'])
def test_a_pair_has_a_name_and_a_plain_value(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        parse_pair(text)


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


def test_options_that_change_no_result_are_listed():
    assert list_run_options(Outer) == ("size",)
