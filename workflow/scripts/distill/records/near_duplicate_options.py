"""Options and columns of the search for near-duplicate prompts.

They are apart from options.py, which other steps read, so that changing them reruns no other step.
"""

from dataclasses import dataclass

from distill.common.options import option

REPORT, DROP = "report", "drop"
COLUMNS = ("uid", "found_in", "other", "similarity", "text", "other_text")  # of the table of pairs


@dataclass(frozen=True)
class NearDuplicateOptions:
    """Which prompts count as near-duplicates, and what becomes of them."""

    threshold: float = option(
        "Jaccard similarity of their character n-grams from which two prompts are near-duplicates; 1 is equality after "
        "normalisation.",
        0.8,
        minimum=0.5,
        maximum=1,
        when="Higher for prompts that are filled-in templates, lower to find looser paraphrases.",
    )
    shingle_size: int = option(
        "Length of the n-grams in characters, without white space.",
        3,
        minimum=1,
        maximum=20,
        when="5 for long texts in alphabetic scripts, where many short n-grams coincide.",
    )
    action: str = option(
        "What to do with a training prompt that is a near-duplicate of a held-out prompt or of an earlier training "
        "prompt: report it, or drop it before the teacher is asked. Held-out prompts are never dropped.",
        REPORT,
        choices=(REPORT, DROP),
        when="`drop`, once you have read the report.",
    )
    against: list[str] = option(
        "Further files with held-out prompts, such as benchmarks, in JSONL or as a JSON array.",
        [],
        items={"minLength": 1},
        when="Students are also scored on other test sets.",
    )
