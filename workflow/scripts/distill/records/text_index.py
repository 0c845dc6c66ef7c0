"""Near-duplicate texts: similarity of character n-grams, and an index that finds texts above a threshold.

Locality-sensitive hashing of MinHash signatures (rensa) finds candidates, the signatures estimate their similarity, and
the exact Jaccard similarity of those near the threshold or above decides, so that every text found is a near-duplicate.
One at the threshold is found with a probability above 99.9%, a more similar one with a higher probability.
"""

import math
from collections import defaultdict
from heapq import nlargest
from typing import Any, NamedTuple
from unicodedata import normalize

from distill.common.errors import InputError

MOST_HASH_VALUES = 256  # of a MinHash signature
SEED = 1  # of the hash functions
RECALL = 0.9995  # least probability that a text at the threshold is a candidate
# How far an estimate may be below the threshold: standard deviations, and hash values, for thresholds near 1.
DEVIATIONS, VALUES = 4.0, 2
# Texts that share a template have candidates without number, of which only the most similar ones are compared exactly.
MOST_COMPARED = 200


class Text(NamedTuple):
    """A text to compare.

    Attributes:
        name: uid of a prompt, or file and place of another record.
        text: the text as it is written.
        group: texts of one group are not compared; empty if all are.
    """

    name: str
    text: str
    group: str = ""


class Sketch(NamedTuple):
    """What a text is compared by: its n-grams and their MinHash signature (`rensa.RMinHash`)."""

    shingles: set[str]
    signature: Any


def normalise(text: str) -> str:
    """Return a text as it is compared: in Unicode compatibility form, without case and white space.

    Full-width letters are like others. Punctuation and digits remain.

    >>> normalise("What is  ＡＢＣ-12？") == normalise("what is abc-12?")
    True
    """
    return "".join(normalize("NFKC", text).casefold().split())


def get_shingles(text: str, size: int) -> set[str]:
    """Return the character n-grams of a text after normalisation; a text that is not longer is one itself."""
    plain = normalise(text)
    return {plain[start : start + size] for start in range(max(1, len(plain) - size + 1))}


def measure_similarity(one: set[str], other: set[str]) -> float:
    """Return the Jaccard similarity of two sets that are not both empty: common elements among all elements."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def choose_bands(threshold: float) -> tuple[int, int]:
    """Return (bands, hash values in each) for which a text at the threshold is a candidate with probability RECALL.

    The signatures of candidates agree in all values of a band. The bands are as long as possible, which leaves the
    fewest candidates below the threshold.
    """

    def find_recall(length: int) -> float:
        return 1 - (1 - threshold**length) ** (MOST_HASH_VALUES // length)

    length = max(length for length in range(1, MOST_HASH_VALUES + 1) if find_recall(length) >= RECALL)
    return MOST_HASH_VALUES // length, length


def find_least_estimate(threshold: float, hash_values: int) -> float:
    """Return the least estimate of similarities at the threshold, except for a probability of about 0.0001.

    The estimate is the share of equal hash values, each of which is equal with the similarity as probability.
    """
    deviation = math.sqrt(threshold * (1 - threshold) / hash_values)
    return threshold - DEVIATIONS * deviation - VALUES / hash_values


class Sketcher:
    """Makes sketches of texts, and indexes to search them.

    Args:
        threshold: least Jaccard similarity of a near-duplicate, from 0.5 to 1.
        size: length of the n-grams in characters.

    Raises:
        InputError: rensa cannot be imported.
    """

    def __init__(self, threshold: float, size: int):
        try:
            import rensa
        except ImportError as error:
            text = "near_duplicates: expected the package rensa, which cannot be imported"
            raise InputError(f"{text} ({error}); install it with `pip install rensa`") from None
        self.rensa, self.threshold, self.size = rensa, threshold, size
        self.bands, length = choose_bands(threshold)
        self.hash_values = self.bands * length
        self.least_estimate = find_least_estimate(threshold, self.hash_values)

    def get_shingles(self, text: str) -> set[str]:
        """Return the n-grams of a text."""
        return get_shingles(text, self.size)

    def sketch(self, text: str) -> Sketch:
        """Return the sketch of a text."""
        shingles = self.get_shingles(text)
        signature = self.rensa.RMinHash(self.hash_values, SEED)
        signature.update(list(shingles))
        return Sketch(shingles, signature)

    def make_index(self) -> "TextIndex":
        """Return an empty index."""
        return TextIndex(self, self.rensa.RMinHashLSH(self.threshold, self.hash_values, self.bands))


class TextIndex:
    """Texts among which near-duplicates of others are found; see `Sketcher.make_index`.

    Args:
        sketcher: makes the sketches of texts that are added or looked for.
        hashing: an empty `rensa.RMinHashLSH`.

    Attributes:
        texts: the texts, in the order in which they were added.
        incomplete: searches without result that left out candidates, see MOST_COMPARED.
    """

    def __init__(self, sketcher: Sketcher, hashing: Any):
        self.sketcher, self.hashing = sketcher, hashing
        self.texts: list[Text] = []
        self.signatures: list[Any] = []
        self.groups: dict[str, set[int]] = defaultdict(set)
        self.incomplete = 0

    def add(self, text: Text, sketch: Sketch) -> None:
        """Add a text."""
        row = len(self.texts)
        self.hashing.insert(row, sketch.signature)
        self.texts.append(text)
        self.signatures.append(sketch.signature)
        if text.group:
            self.groups[text.group].add(row)

    def find(self, text: Text, sketch: Sketch) -> tuple[Text, float] | None:
        """Return the most similar text and its similarity, or None if no text reaches the threshold.

        Of equally similar texts it is the one that was added first.
        """
        candidates = set(self.hashing.query(sketch.signature)) - self.groups.get(text.group, set())
        estimate, least = sketch.signature.jaccard, self.sketcher.least_estimate
        estimates = [(estimate(self.signatures[row]), -row) for row in candidates]
        near = [found for found in estimates if found[0] >= least]
        is_cut = len(near) > MOST_COMPARED
        rows = [-row for _, row in (nlargest(MOST_COMPARED, near) if is_cut else near)]
        similarity, row = max(((self.measure(sketch, row), -row) for row in rows), default=(0.0, 0))
        if similarity >= self.sketcher.threshold:
            return self.texts[-row], similarity
        self.incomplete += is_cut
        return None

    def measure(self, sketch: Sketch, row: int) -> float:
        """Return the similarity with a text of the index, whose n-grams are not kept since they need much memory."""
        return measure_similarity(sketch.shingles, self.sketcher.get_shingles(self.texts[row].text))
