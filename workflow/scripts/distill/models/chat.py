"""Chat templates: text and token ids of prompts and completions."""

from typing import Any

from distill.common.errors import InputError

PROBE = "probe"  # content of the messages that a template is tested with


def render_prompt(tokenizer: Any, system: str, prompt: str) -> str:
    """Render a prompt with the chat template, up to the start of the assistant's turn.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path}: expected a tokenizer with a chat template, found none")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode_prompt(tokenizer: Any, system: str, prompt: str) -> list[int]:
    """Tokenize a prompt rendered by `render_prompt`; the template adds the special tokens."""
    return tokenizer(render_prompt(tokenizer, system, prompt), add_special_tokens=False)["input_ids"]


def get_end_of_turn_id(tokenizer: Any) -> int:
    """Return the token that ends an assistant's turn, which a model must generate to stop.

    It is taken from the chat template, since `eos_token` differs in some tokenizers: `<|endoftext|>`, where the
    template ends a turn with `<|im_end|>`.

    Raises:
        InputError: neither the template nor the tokenizer has such a token.
    """
    messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    end = text[text.rindex(PROBE) + len(PROBE) :].strip()
    if end:
        return tokenizer(end, add_special_tokens=False)["input_ids"][0]
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{tokenizer.name_or_path}: expected a chat template that ends turns, or an eos_token, found neither"
        )
    return tokenizer.eos_token_id


def encode_completion(tokenizer: Any, answer: str, is_whole: bool = True) -> list[int]:
    """Tokenize an assistant's answer.

    Args:
        tokenizer: the tokenizer.
        answer: text of the answer.
        is_whole: whether the end-of-turn token is added. An answer cut off at the maximum length has none, so that no
            model learns to stop there.
    """
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, get_end_of_turn_id(tokenizer)] if is_whole else ids


def shared_vocabulary_size(teacher: Any, student: Any) -> int:
    """Return the size of the vocabulary that teacher and student share: ids below it stand for the same tokens.

    The logits of both models are sliced to this size. Tokens are compared one by one, because sizes alone are not
    sufficient: models pad their vocabularies, and tokenizers of the same size may assign different ids.

    Raises:
        InputError: an id in the smaller vocabulary stands for different tokens.
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
            "probabilities; use method seqkd, or a student of the teacher's model family"
        )
    return size
