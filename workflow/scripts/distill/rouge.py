"""ROUGE F1 by the rouge-score package, with a tokenizer that keeps every script.

The package's own tokenizer knows the letters a-z and digits only, so that a Chinese answer would score 0.
"""

import functools
import re

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

METRICS = ("rouge1", "rouge2", "rougeL")
# Scripts written without blanks between words: Chinese characters and Japanese kana stand as a token each.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
TOKEN = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")


class AnyScriptTokenizer(Tokenizer):
    """Lower-case words and numbers of a text in any script, without punctuation."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; on ASCII the same as the package's own."""
        return TOKEN.findall(text.lower())


SCORER = RougeScorer(METRICS, tokenizer=AnyScriptTokenizer())


@functools.cache
def rouge_f1(reference: str, prediction: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of one answer, 0 to 100 (C.-Y. Lin, 2004); 0 where a text has no token.

    Kept, not to be changed: a comparison asks for each pair once in its category and once for all of them.
    """
    scores = SCORER.score(reference, prediction)
    return {name: 100 * scores[name].fmeasure for name in METRICS}
