"""The JSON schema made from the declarations of options."""

import pytest
from declared_options import Outer
from jsonschema import Draft202012Validator

from distill.plan.json_schema import to_schema


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
