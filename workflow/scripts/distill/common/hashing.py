"""Shares of the records and the hash that says who falls into them."""

import argparse
import hashlib
from fractions import Fraction

HASHES = 2**64


def parse_fraction(text: str) -> Fraction:
    """An exact fraction of 0 to 1 from a command line, so that int(100 · 0.29) is 29 (in floats it is 28).

    Raises:
        argparse.ArgumentTypeError: the text is no number of 0 to 1.
    """
    try:
        fraction = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(-1)
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"expected a number of 0 to 1, found {text!r}")
    return fraction


def hash_uid(purpose: str, seed: int, uid: str) -> int:
    """A number of [0, HASHES) for a record. With the purpose in it, one choice with a seed says nothing of another:
    the records that mixing takes for their small hash would else all lie at the lower end of the splits.
    """
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}:{uid}".encode()).digest()[:8])
