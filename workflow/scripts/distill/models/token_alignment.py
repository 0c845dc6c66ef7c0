"""Two tokenizers: which of their tokens can be compared, and which tokens of an answer stand for the same text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate
from distill.models.token_bytes import TokenBytes, join_bytes, read_token_bytes

OTHER, END_OF_TURN, FIRST_COMMON = range(3)  # groups of tokens; the common tokens are numbered from FIRST_COMMON
END_BYTE = b"\xff"  # stands for the end of a turn; no text in UTF-8 contains it
CONTEXT = "\n"  # precedes texts whose tokens depend on the start of a text

Span = tuple[int, int]  # first token of the student, first token of the teacher


@dataclass(frozen=True)
class TokenGroups:
    """The events that the distributions of two vocabularies are compared over.

    A token whose bytes are in both vocabularies is a group of its own. A token of one vocabulary alone belongs to the
    group of the common token that its text begins with, in the tokens of the other vocabulary: where the teacher says
    `hello`, a student without this token says `hel`, then `lo`. The tokens that end a turn are a group. OTHER has the
    control tokens, unused ids, and tokens whose text begins with no common token.

    Attributes:
        student, teacher: group of each token id.
        size: number of groups.
    """

    student: list[int]
    teacher: list[int]
    size: int


class TokenAlignment:
    """Aligns the tokens of answers between a student's and a teacher's tokenizer.

    Args:
        student, teacher: the chat templates.

    Attributes:
        groups: the events that distributions are compared over.

    Raises:
        InputError: see `read_token_bytes`; or the vocabularies have no token in common.
    """

    def __init__(self, student: ChatTemplate, teacher: ChatTemplate):
        self.chats = student, teacher
        self.token_bytes = read_token_bytes(student), read_token_bytes(teacher)
        self.groups = group_tokens(self.chats, self.token_bytes)

    def find_spans(self, student: Sequence[int], teacher: Sequence[int]) -> list[Span] | None:
        """Return the first tokens of the shortest spans of an answer that have the same bytes in both tokenizations.

        Args:
            student, teacher: token ids of the answer, with or without the end of the turn.

        Returns:
            One pair for each span, in order; a span ends where the next one starts. None if the tokens do not have the
            same bytes: a tokenizer has changed the text, or one of the answers is only what follows a tag such as
            `<think>`, which the model's chat template writes at the start of each answer.
        """
        mine, theirs = (
            self.cut(ids, chat.end_of_turn, known)
            for ids, chat, known in zip((student, teacher), self.chats, self.token_bytes, strict=True)
        )
        return match_boundaries(mine, theirs) if mine is not None and theirs is not None else None

    def is_comparable(self, student: int, teacher: int) -> bool:
        """Whether the first tokens of a span belong to the same group, so that the distributions can be compared."""
        return self.groups.student[student] == self.groups.teacher[teacher]

    def describe(self) -> str:
        """Return a sentence about the vocabularies, for the log."""
        shares = []
        for chat, groups in zip(self.chats, (self.groups.student, self.groups.teacher), strict=True):
            grouped = sum(group != OTHER for group in groups)
            shares.append(f"{grouped} of {len(groups)} tokens of {chat.name}")
        return (
            f"cross_tokenizer: {self.groups.size - FIRST_COMMON} tokens are common to both vocabularies; with those "
            f"that begin with a common token, {shares[0]} and {shares[1]} are compared"
        )

    @staticmethod
    def cut(ids: Sequence[int], end_of_turn: int, token_bytes: TokenBytes) -> list[bytes] | None:
        """Return the bytes of each token of an answer; None if a token has none."""
        ends = len(ids) > 0 and ids[-1] == end_of_turn
        text = ids[:-1] if ends else ids
        if join_bytes(text, token_bytes) is None:
            return None
        return [*(token_bytes[index] or b"" for index in text), *([END_BYTE] if ends else [])]


def match_boundaries(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[Span] | None:
    """Return the pairs of tokens that start at the same byte; None if the bytes differ.

    >>> match_boundaries([b"a", b"bc", b"d"], [b"ab", b"c", b"d"])
    [(0, 0), (2, 2)]
    """
    if b"".join(student) != b"".join(teacher):
        return None
    starts = ({start: at for at, start in enumerate(find_starts(tokens))} for tokens in (student, teacher))
    mine, theirs = starts
    return [(at, theirs[start]) for start, at in mine.items() if start in theirs]


def find_starts(tokens: Sequence[bytes]) -> Iterator[int]:
    """Yield the byte at which each token starts."""
    yield from list(accumulate(map(len, tokens), initial=0))[:-1]


def list_spans(spans: Sequence[Span], student_tokens: int, teacher_tokens: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, end, teacher's start, teacher's end) of spans from `find_spans`.

    >>> list(list_spans([(0, 0), (2, 2)], 3, 3))
    [(0, 2, 0, 2), (2, 3, 2, 3)]
    """
    for (start, theirs), (end, their_end) in pairwise([*spans, (student_tokens, teacher_tokens)]):
        yield start, end, theirs, their_end


def group_tokens(chats: tuple[ChatTemplate, ChatTemplate], token_bytes: tuple[TokenBytes, TokenBytes]) -> TokenGroups:
    """Return the groups of both vocabularies.

    Args:
        chats: the chat templates of student and teacher.
        token_bytes: the bytes of their tokens.

    Raises:
        InputError: no token is in both vocabularies.
    """
    ids = [{spelled: index for index, spelled in enumerate(known) if spelled} for known in token_bytes]
    groups = {spelled: FIRST_COMMON + number for number, spelled in enumerate(sorted(ids[0].keys() & ids[1].keys()))}
    if not groups:
        raise InputError(
            f"{chats[0].name} and {chats[1].name} have no token in common: expected cross_tokenizer: false, and method "
            "seqkd"
        )
    first = []  # the first token of each text of one vocabulary, in the tokens of the other
    for side, other in ((0, 1), (1, 0)):
        texts = [spelled for spelled in ids[side] if spelled not in groups]
        first.append(find_first_tokens(texts, chats[other], token_bytes[other], ids[other]))

    def find_group(spelled: bytes | None, side: int) -> int:
        while spelled is not None and spelled not in groups:  # each text is shorter than the one before
            spelled, side = first[side].get(spelled), 1 - side
        return OTHER if spelled is None else groups[spelled]

    student, teacher = ([find_group(spelled, side) for spelled in known] for side, known in enumerate(token_bytes))
    for found, chat in ((student, chats[0]), (teacher, chats[1])):
        if chat.end_of_turn < len(found):
            found[chat.end_of_turn] = END_OF_TURN
    return TokenGroups(student, teacher, FIRST_COMMON + len(groups))


def find_first_tokens(
    texts: Sequence[bytes], chat: ChatTemplate, token_bytes: TokenBytes, ids: dict[bytes, int]
) -> dict[bytes, bytes]:
    """Return the bytes of the first token of each text, as it follows other text.

    A text that is part of a character, or that the tokenizer changes, has its longest beginning among the tokens.

    Args:
        texts: the texts, none of them a token.
        chat: the tokenizer's chat template.
        token_bytes: bytes of its tokens.
        ids: token ids by bytes.

    Returns:
        The first tokens by text; texts that begin with no token are left out.
    """
    readable = [text for text in texts if is_utf8(text)]
    context = CONTEXT if chat.depends_on_start else ""
    skipped = len(chat.tokenize(context)) if context else 0
    joined = [context + text.decode() for text in readable]
    encoded = chat.tokenizer(joined, add_special_tokens=False)["input_ids"] if joined else []
    found = {}
    for text, tokens in zip(readable, encoded, strict=True):
        first = token_bytes[tokens[skipped]] if len(tokens) > skipped and tokens[skipped] < len(token_bytes) else None
        if first and text.startswith(first):
            found[text] = first
    for text in texts:
        if text not in found:
            beginnings = (text[:length] for length in range(len(text) - 1, 0, -1))
            longest = next((one for one in beginnings if one in ids), None)
            if longest is not None:
                found[text] = longest
    return found


def is_utf8(text: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
