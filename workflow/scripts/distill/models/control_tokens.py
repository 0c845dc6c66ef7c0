"""Control tokens, such as `<|im_start|>`, in the text of messages: found, counted and read as ordinary text."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import chat_template_utils

from distill.common.errors import InputError

logger = logging.getLogger(__name__)

TAG = re.compile(r"</?([^<>/|\s]+)>")
OPENING = re.compile(r"([<\[])([^<>\[\]/|\s]+[>\]])")


def compile_control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of the tokens that only the chat template may write.

    They are the tokenizer's special tokens and the added tokens in the template. Pairs of tags such as `<think>` and
    `</think>` are no control tokens: they are part of an answer.
    """
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    named, template = set(tokenizer.special_tokens_map.values()), str(tokenizer.chat_template)
    tags = {token: added[token] for token in added if token not in named}  # `<s>` and `</s>` are no tags
    found = [
        token
        for token, is_special in added.items()
        if token in named
        or ((is_special or token in template) and not token.isspace() and not is_paired_tag(token, tags))
    ]
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or "(?!)")


def is_paired_tag(token: str, tokens: Mapping[str, Any]) -> bool:
    """Whether a token is an opening or closing tag and both are tokens.

    >>> [is_paired_tag(token, {"<think>": 1, "</think>": 2, "<bos>": 3}) for token in ("<think>", "</think>", "<bos>")]
    [True, True, False]
    """
    found = TAG.fullmatch(token)
    return found is not None and f"<{found[1]}>" in tokens and f"</{found[1]}>" in tokens


def find_special_tags(tokenizer: Any) -> list[str]:
    """Return the opening tags, such as `<think>` or `[THINK]`, that are special tokens, as are their closing tags."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = (OPENING.fullmatch(token) for token in special)
    return sorted(tag[0] for tag in found if tag and f"{tag[1]}/{tag[2]}" in special)


def mark(pattern: re.Pattern[str], *values: Any) -> tuple[Any, ...]:
    """Return texts with marks around their control tokens, for `tokenize_marked`; as they are if they have none.

    Args:
        pattern: from `compile_control_tokens`.
        values: texts, or lists and objects of texts such as messages.

    Raises:
        InputError: a name in an object, such as one of a tool's parameters, has a control token.
    """
    if not any(pattern.search(text) for text in list_texts(values)):
        return values
    if found := next((name for name in list_names(values) if pattern.search(name)), None):
        raise InputError(f"expected names of parameters without control tokens, found {found!r}")
    return tuple(chat_template_utils.mark_control_tokens(value, pattern) for value in values)


def list_texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value, with the names in its objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from list_texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from list_texts(one)


def list_names(value: Any) -> Iterator[str]:
    """Yield the names in all objects in a value."""
    if isinstance(value, Mapping):
        yield from value
        yield from list_names([*value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from list_names(one)


def tokenize_marked(tokenizer: Any, text: str) -> list[int]:
    """Tokenize text in which `mark` has marked control tokens: those become ordinary text, all others stay tokens.

    Raises:
        InputError: the tokenizer has no other tokens for the text of a control token.
    """
    # Looked up here: transformers 5.17, with which the benchmarks run, does not have them.
    encode = chat_template_utils.encode_marked_chat
    start, end = chat_template_utils._CONTROL_TOKEN_START, chat_template_utils._CONTROL_TOKEN_END
    try:
        return encode(tokenizer, text)
    except ValueError:  # a Unigram tokenizer has the token as a word of its own: it is broken after its first character
        text = re.sub(f"{start}(.)(.*?){end}", rf"\1{start}\2", text, flags=re.DOTALL)
    try:
        return encode(tokenizer, text)
    except ValueError as error:
        raise InputError(f"{tokenizer.name_or_path}: a message contains a control token: {error}") from error


@dataclass
class ControlTokens:
    """How many records have control tokens in their texts, and which.

    Attributes:
        total, affected: numbers of records, and of those with control tokens.
        counts: how often each token occurs.
    """

    total: int = 0
    affected: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, pattern: re.Pattern[str], texts: Iterable[str]) -> None:
        """Count the control tokens, see `compile_control_tokens`, in the texts of a record."""
        found = [token for text in texts for token in pattern.findall(text)]
        for token in found:
            self.counts[token] = self.counts.get(token, 0) + 1
        self.affected += bool(found)
        self.total += 1

    def log(self) -> None:
        """Warn of the tokens if there are any."""
        if self.affected:
            counts = Counter(self.counts).most_common()
            listed = ", ".join(f"{token} {count} times" for token, count in counts)
            text = "%d of %d records have control tokens in their text, which are read as ordinary text: %s"
            logger.warning(text, self.affected, self.total, listed)


def log_control_tokens(pattern: re.Pattern[str], records: Iterable[Iterable[str]]) -> None:
    """Log how many records have control tokens in their texts, and which."""
    found = ControlTokens()
    for texts in records:
        found.add(pattern, texts)
    found.log()
