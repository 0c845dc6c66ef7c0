"""Selection of records by hash: the same seed selects the same records, whatever other records there are."""

import argparse
import hashlib
from fractions import Fraction

HASHES = 2**64  # number of hash values


def parse_fraction(text: str) -> Fraction:
    """Parse a number from 0 to 1 exactly, so that int(100 · 0.29) is 29; with floats it is 28.

    Raises:
        argparse.ArgumentTypeError: the text is not a number from 0 to 1.
    """
    try:
        fraction = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(-1)
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return fraction


def hash_uid(purpose: str, seed: int, uid: str) -> int:
    """Hash a record's uid to an integer in [0, HASHES).

    The purpose is part of the hash, which makes selections with the same seed independent. Otherwise the records that
    the mix takes for their small hashes would all fall into the same split.
    """
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}:{uid}".encode()).digest()[:8])
