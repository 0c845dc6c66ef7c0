"""Names of replicas."""

import re

import pytest

from distill.common.replicas import drop_seed, get_replica_name, is_replica, list_replicas
from distill.common.variants import split_name
from distill.plan.settings import NAME_PATTERN


def test_a_replicas_name_fits_the_wildcards_and_is_read_back():
    name = get_replica_name("student-kd_2", 42)
    assert re.fullmatch(NAME_PATTERN, name)
    assert (is_replica(name), drop_seed(name)) == (True, "student-kd_2")
    assert split_name(f"{name}_int8") == (name, "int8")


@pytest.mark.parametrize("name", ["student", "student-seed", "student-seed4x", "-seed4", "student-seed4_int8", "seed4"])
def test_other_names_stay(name):
    assert not is_replica(name)
    assert drop_seed(name) == name


def test_a_name_stands_for_the_model_or_for_the_replicas():
    models = ["teacher", "a-seed1", "a-seed2", "a_base", "a-seed1_int8", "ab-seed1"]
    assert list_replicas("a", models) == ["a-seed1", "a-seed2"]
    assert list_replicas("a-seed2", models) == ["a-seed2"]
    assert list_replicas("a", ["a", "a-seed1"]) == ["a"]
    assert list_replicas("b", models) == []
