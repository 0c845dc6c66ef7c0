"""Vocabularies: which token ids a tokenizer uses, and which two tokenizers share."""

from typing import Any

from distill.common.errors import InputError


def vocabulary_size(tokenizer: Any) -> int:
    """Return the largest token id plus one; the model's larger ids are padding.

    It exceeds `len(tokenizer)` where ids have holes.
    """
    return max(tokenizer.get_vocab().values()) + 1


def find_unused_ids(tokenizer: Any) -> list[int]:
    """Return the ids below `vocabulary_size` that stand for no token."""
    return sorted(set(range(vocabulary_size(tokenizer))) - set(tokenizer.get_vocab().values()))


def check_tokenizers_differ(teacher: Any, student: Any, rows: int | None = None) -> None:
    """Check that two tokenizers need `cross_tokenizer`; for the arguments see `shared_vocabulary_size`.

    Raises:
        InputError: token ids stand for the same tokens.
    """
    try:
        size = shared_vocabulary_size(teacher, student, rows)
    except InputError:
        return
    raise InputError(
        f"expected cross_tokenizer: false, since teacher ({teacher.name_or_path}) and student "
        f"({student.name_or_path}) have the same tokenizer: all of their {size} shared token ids stand for the same "
        "tokens"
    )


def shared_vocabulary_size(teacher: Any, student: Any, rows: int | None = None) -> int:
    """Return the size of the vocabulary that teacher and student share: ids below it stand for the same tokens.

    The logits of both models are sliced to this size. Tokens are compared one by one, because sizes alone are not
    sufficient: models pad their vocabularies, and tokenizers of the same size may assign different ids.

    Args:
        teacher, student: the tokenizers.
        rows: the smaller number of logits of both models; None if it is unknown. A tokenizer may have more tokens.

    Raises:
        InputError: an id in the smaller vocabulary stands for different tokens.
    """
    by_id = [{index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (teacher, student)]
    sizes = [max(ids) + 1 for ids in by_id]
    size = min(sizes if rows is None else [*sizes, rows])
    different = [i for i in range(size) if by_id[0].get(i) != by_id[1].get(i)]
    if different:
        first = different[0]
        raise InputError(
            f"teacher ({teacher.name_or_path}) and student ({student.name_or_path}) must have the same tokenizer: "
            f"{len(different)} of {size} token ids stand for different tokens, first {first} "
            f"({by_id[0].get(first)!r} and {by_id[1].get(first)!r}). Methods other than seqkd compare next-token "
            "probabilities; set cross_tokenizer: true, which compares those of equal texts, use method seqkd, or a "
            "student of the teacher's model family"
        )
    return size
