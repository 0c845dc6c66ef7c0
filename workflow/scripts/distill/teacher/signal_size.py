"""What a cached teacher signal stores of a token, and the disk space that it takes. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.records.options import SplitOptions
from distill.records.raw_records import get_split_key
from distill.records.splits import Counts, assign_answers, get_split

ID_BYTES, HALF_BYTES = 4, 2  # int32, and bfloat16 or float16
LOG_BITS = 15  # of a negative float16 number, without its sign
MAX_BITS = 24  # of a packed number


@dataclass(frozen=True)
class SignalShape:
    """What a signal stores of each completion token.

    Attributes:
        kind: `hidden` or `topk`.
        width: size of the teacher's hidden states, for `hidden`.
        top_k, temperatures: settings of `topk`.
        vocabulary: size of the teacher's vocabulary, for `topk`; it may be larger than needed in an estimate.
        tail_samples: tokens of `topk` that are sampled from all others, for each temperature.
    """

    kind: str
    width: int | None = None
    top_k: int | None = None
    temperatures: Sequence[float] = ()
    vocabulary: int | None = None
    tail_samples: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of a record's tensors, without the tokens themselves."""
        if self.kind == "hidden":
            return ("hidden",)
        return ("ids", "logprobs", "log_tail", *(("tail_ids", "tail_entropy") if self.tail_samples else ()))

    @property
    def kept(self) -> int:
        """Number of tokens that `topk` stores exactly."""
        return min(self.top_k or 0, self.vocabulary or 0)

    @property
    def id_bits(self) -> int:
        """Bits of a token id of `topk`."""
        return max(1, ((self.vocabulary or 0) - 1).bit_length())

    @property
    def is_known(self) -> bool:
        """Whether the model's sizes that decide the signal's size are known."""
        return (self.width if self.kind == "hidden" else self.vocabulary) is not None

    @property
    def bytes_per_token(self) -> int:
        """Bytes per completion token, including the token's id.

        `hidden` takes 2 bytes per element of the hidden state and 4 for the id. `topk` takes the bits of its ids, its
        log-probabilities as ascending numbers (see `bit_packing`), and 2 bytes for the tail at each temperature; with
        a sampled tail also 2 bytes for its entropy, and its ids as ascending numbers.
        """
        if self.kind == "hidden":
            return HALF_BYTES * (self.width or 0) + ID_BYTES
        tokens = count_bytes(self.kept, self.id_bits) + count_ascending_bytes(self.kept, LOG_BITS)
        tail = HALF_BYTES
        if self.tail_samples:
            tail += HALF_BYTES + count_ascending_bytes(self.tail_samples, self.id_bits)
        return tokens + tail * len(self.temperatures) + count_bytes(1, self.id_bits)


def count_bytes(count: int, bits: int) -> int:
    """Return the bytes that numbers take without gaps between them."""
    return (count * bits + 7) // 8


def split_bits(count: int, bits: int) -> tuple[int, int]:
    """Return how ascending numbers are packed: lower bits of each, and bits of the map of the upper ones."""
    low = max(0, bits - (count - 1).bit_length())
    return low, 2 ** (bits - low) + count - 1


def count_ascending_bytes(count: int, bits: int) -> int:
    """Return the bytes that ascending numbers below 2^bits take, see `pack_ascending` of bit_packing.py."""
    low, marks = split_bits(count, bits)
    return count_bytes(count, low) + count_bytes(marks, 1)


def count_tokens(
    answers: str | Path,
    prompts: str | Path,
    longest: int,
    split: SplitOptions,
    original_fraction: Fraction = Fraction(0),
) -> tuple[int, str]:
    """Estimate the completion tokens of a category's train and val splits, which a signal covers.

    Args:
        answers: the teacher's answers.
        prompts: the prompts; without answers, each counts as `longest` tokens.
        longest: maximum number of tokens of a prompt's answers together.
        split: which prompts are in train and val.
        original_fraction: share of them whose target is the original answer.

    Returns:
        The number of tokens and its qualifier, `about ` or `at most `. It is (0, "") if neither file exists, or if one
        is malformed, which the job that reads it reports.
    """
    try:
        if Path(answers).exists():
            return count_answer_tokens(Path(answers), split, original_fraction), "about "
        if Path(prompts).exists():
            splits = (choose_split(record, split) for _, record in read_jsonl(prompts))
            return sum(name != "test" for name in splits) * longest, "at most "
    except (InputError, LookupError):
        pass
    return 0, ""


def choose_split(prompt: dict[str, Any], split: SplitOptions) -> str:
    """Return the split that a prompt's answers will be in."""
    return get_split(get_split_key(prompt), split.seed, split.val_fraction, split.test_fraction)


def count_answer_tokens(answers: Path, split: SplitOptions, original_fraction: Fraction) -> int:
    """Estimate the completion tokens of the answers in train and val; see `count_tokens`.

    Original answers, whose tokens nobody has counted, are taken to have as many a character as the teacher's.
    """
    tokens = originals = teacher_tokens = characters = 0
    options = split.val_fraction, split.test_fraction, split.seed, original_fraction
    for name, target, record in assign_answers(answers, *options, Counts()):
        teacher_tokens += record["generated_tokens"]
        characters += len(record["raw_output"])
        if name != "test" and target == "original":
            originals += len(record["original_output"])
        elif name != "test":
            tokens += record["generated_tokens"]
    return tokens + (round(originals * teacher_tokens / characters) if characters else 0)


def read_sizes(model: str) -> tuple[int | None, int | None]:
    """Return the size of a model's hidden states and its number of logits.

    Both are None if the model is neither a local folder nor downloaded.
    """
    path: Any = Path(model) / "config.json"
    if not path.exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            path = None
    if not isinstance(path, str | Path):
        return None, None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, None  # the job that loads the model reports the error
    text = config.get("text_config", config) if isinstance(config, dict) else {}
    width, vocabulary = (text.get(name) for name in ("hidden_size", "vocab_size"))
    return width if isinstance(width, int) else None, vocabulary if isinstance(vocabulary, int) else None


def describe_storage(name: str, shape: SignalShape, tokens: int, qualifier: str = "") -> str:
    """Return a line with bytes per token, tokens and gigabytes (10⁹ bytes).

    Args:
        name: name of the signal in the line.
        shape: what it stores.
        tokens: number of completion tokens; 0 if it is unknown.
        qualifier: text before the number of tokens, with a space: `about `, `at most `.
    """
    if not shape.is_known:
        return f"teacher signal {name}: its bytes per token are unknown until the teacher's config.json is there"
    size = shape.bytes_per_token
    if not tokens:
        return f"teacher signal {name}: {size:,} bytes per completion token (total unknown until the prompts exist)"
    total = f"{qualifier}{tokens:,} tokens, {size * tokens / 1e9:.3g} GB"
    return f"teacher signal {name}: {size:,} bytes per token, {total}"
