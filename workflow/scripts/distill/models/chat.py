"""Chat templates: the text and the tokens of prompts and completions."""

from typing import Any

from distill.common.errors import InputError

PROBE = "probe"


def render_prompt(tokenizer: Any, system: str, prompt: str) -> str:
    """The chat template's text up to where the assistant's answer begins.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path}: expected a tokenizer with a chat template, found none")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode_prompt(tokenizer: Any, system: str, prompt: str) -> list[int]:
    """Token ids of `render_prompt`; the template has placed the special tokens already."""
    return tokenizer(render_prompt(tokenizer, system, prompt), add_special_tokens=False)["input_ids"]


def get_end_of_turn_id(tokenizer: Any) -> int:
    """The token with which the chat template ends an assistant's turn, which a model must produce to stop.

    It is read off the template, since `eos_token` is something else in some tokenizers (`<|endoftext|>` where
    the template ends a turn with `<|im_end|>`).

    Raises:
        InputError: neither the template nor the tokenizer has an end.
    """
    messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    end = text[text.rindex(PROBE) + len(PROBE) :].strip()
    if end:
        return tokenizer(end, add_special_tokens=False)["input_ids"][0]
    if tokenizer.eos_token_id is None:
        raise InputError(f"{tokenizer.name_or_path}: the chat template does not end a turn and there is no eos_token")
    return tokenizer.eos_token_id


def encode_completion(tokenizer: Any, answer: str, is_whole: bool = True) -> list[int]:
    """Token ids of an assistant's answer with the end of its turn.

    An answer that is not whole was cut off at its longest; nobody is to learn to stop there, so it has no end.
    """
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, get_end_of_turn_id(tokenizer)] if is_whole else ids


def shared_vocabulary_size(teacher: Any, student: Any) -> int:
    """How many ids, from 0, mean the same token in both tokenizers.

    The logits of both models are sliced to this size. Sizes alone prove nothing (a model's own vocabulary is
    padded, and tokenizers of equal size may number their tokens differently), so the token-to-id maps are compared.

    Raises:
        InputError: an id below the smaller vocabulary's end stands for different tokens.
    """
    by_id = [{index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (teacher, student)]
    size = min(max(ids) for ids in by_id) + 1
    different = [i for i in range(size) if by_id[0].get(i) != by_id[1].get(i)]
    if different:
        first = different[0]
        raise InputError(
            f"teacher ({teacher.name_or_path}) and student ({student.name_or_path}) must have the same tokenizer: "
            f"{len(different)} of {size} token ids stand for different tokens, first {first} "
            f"({by_id[0].get(first)!r} and {by_id[1].get(first)!r}). Methods other than seqkd compare next-token "
            "probabilities; choose method seqkd, or a student of the teacher's family"
        )
    return size
