"""A dataclass with every kind of declared option."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from distill.common.options import group, option, prefixed


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
