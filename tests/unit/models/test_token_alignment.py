"""The bytes of tokens, the groups that two vocabularies are compared over, and the spans of equal bytes."""

import pytest
from tiny import CHATML, LINES, SPECIAL, build_sentencepiece, build_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate
from distill.models.examples import encode_examples
from distill.models.token_alignment import (
    END_OF_TURN,
    FIRST_COMMON,
    OTHER,
    TokenAlignment,
    group_tokens,
    list_spans,
    match_boundaries,
)
from distill.models.token_bytes import join_bytes, read_token_bytes

PROSE = [*LINES, "The holding_log_delta is 0.25 → more", "naïve café 你好，世界", "return 12345  # spaces"] * 2
ANSWERS = [
    '<think>me↑ → more</think>\n<answer>\n{"holding_log_delta": 0.12}\n</answer>',
    "你好，世界 👍🏽 naïve café\n\n  def f(x):\n\treturn 12345",
    "The answer → 0.25",
    "",
]


def build_smollm2_like(texts=PROSE, size=420):
    """Byte-level BPE with the pre-tokenizer of SmolLM2 and its special tokens, ChatML with another order of ids."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def build_qwen_like():
    """Byte-level BPE with the pre-tokenizer, the normalizer and the special tokens of Qwen2.5, which come last."""
    return build_tokenizer(PROSE, 700, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


BUILDERS = {
    "demo": build_tokenizer,
    "qwen": build_qwen_like,
    "smollm2": build_smollm2_like,
    "sentencepiece": build_sentencepiece,
}
PAIRS = [("smollm2", "qwen"), ("demo", "smollm2"), ("qwen", "sentencepiece"), ("sentencepiece", "demo")]


@pytest.fixture(scope="module")
def chats():
    return {name: ChatTemplate(build()) for name, build in BUILDERS.items()}


def make_record(answer):
    contents = zip(("system", "user", "assistant"), ("S", "U", answer), strict=True)
    messages = [{"role": role, "content": content} for role, content in contents]
    return {"uid": answer, "finish_reason": "stop", "messages": messages}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_bytes_of_tokens_are_those_of_the_text(chats, name, answer):
    found = join_bytes(chats[name].encode_completion(answer, is_whole=False), read_token_bytes(chats[name]))
    assert found == answer.encode()


def test_control_tokens_have_no_bytes_and_tags_do(chats):
    tokenizer = build_tokenizer(special=[*SPECIAL, "<think>", "</think>"])
    found = read_token_bytes(ChatTemplate(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<think>"])
    assert [found[index] for index in ids] == [None, b"<think>"]


def test_a_tokenizer_that_changes_texts_is_refused():
    tokenizer = build_tokenizer()
    core = tokenizer.backend_tokenizer
    core.decoder = decoders.Sequence([decoders.Metaspace()])  # claims to be SentencePiece
    with pytest.raises(InputError, match="expected tokens whose bytes give the text"):
        read_token_bytes(ChatTemplate(tokenizer))
    core.decoder = decoders.WordPiece()
    with pytest.raises(InputError, match="found one with the decoder WordPiece"):
        read_token_bytes(ChatTemplate(tokenizer))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_spans_have_equal_bytes_and_are_the_shortest(chats, student, teacher):
    alignment = TokenAlignment(chats[student], chats[teacher])
    known = alignment.token_bytes
    for answer in ANSWERS:
        mine, theirs = (chat.encode_completion(answer) for chat in alignment.chats)
        spans = alignment.find_spans(mine, theirs)
        cuts = list(list_spans(spans, len(mine), len(theirs)))
        assert cuts[-1] == (len(mine) - 1, len(mine), len(theirs) - 1, len(theirs))  # both ends of the turn
        for start, end, their_start, their_end in cuts[:-1]:
            one, other = mine[start:end], theirs[their_start:their_end]
            assert join_bytes(one, known[0]) == join_bytes(other, known[1])
            parts = [
                {join_bytes(ids[:count], table) for count in range(1, len(ids))}
                for ids, table in zip((one, other), known, strict=True)
            ]
            assert not parts[0] & parts[1]
        assert all(alignment.is_comparable(mine[start], theirs[other]) for start, _, other, _ in cuts)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_the_groups_are_common_tokens_that_texts_begin_with(chats, student, teacher):
    alignment = TokenAlignment(chats[student], chats[teacher])
    (mine, theirs), groups = alignment.token_bytes, alignment.groups
    common = sorted(set(filter(None, mine)) & set(filter(None, theirs)))
    assert groups.size == FIRST_COMMON + len(common)
    for known, found, chat in zip((mine, theirs), (groups.student, groups.teacher), alignment.chats, strict=True):
        assert found[chat.end_of_turn] == END_OF_TURN
        assert found.count(END_OF_TURN) == 1
        for index, spelled in enumerate(known):
            if spelled in common:
                assert common[found[index] - FIRST_COMMON] == spelled
            elif spelled and found[index] != OTHER:
                assert spelled.startswith(common[found[index] - FIRST_COMMON])
            elif index != chat.end_of_turn:
                assert found[index] == OTHER


def test_a_token_of_one_vocabulary_belongs_to_the_token_that_the_other_begins_with(chats):
    alignment = TokenAlignment(chats["demo"], chats["qwen"])
    teacher, student = alignment.chats[1].tokenizer, alignment.chats[0].tokenizer
    (word,) = teacher(" 你好，世界".strip()[:2], add_special_tokens=False)["input_ids"][:1]
    first = student(alignment.token_bytes[1][word].decode(), add_special_tokens=False)["input_ids"]
    assert len(first) > 1
    assert alignment.groups.teacher[word] == alignment.groups.student[first[0]] != OTHER


def test_a_vocabulary_may_be_part_of_the_other(chats):
    smaller = ChatTemplate(build_tokenizer(size=300))
    alignment = TokenAlignment(smaller, chats["demo"])
    mine, theirs = (chat.encode_completion(ANSWERS[0]) for chat in alignment.chats)
    assert len(mine) > len(theirs)
    assert len(alignment.find_spans(mine, theirs)) == len(theirs)
    assert OTHER not in [alignment.groups.student[token] for token in mine]


def test_characters_that_are_split_over_tokens_are_aligned_by_bytes():
    arrow = "→".encode()
    assert match_boundaries([arrow[:1], arrow[1:], b"a"], [arrow[:2], arrow[2:] + b"a"]) == [(0, 0)]
    assert match_boundaries([arrow[:1], arrow[1:], b"a"], [arrow[:1], arrow[1:2], arrow[2:], b"a"]) == [
        (0, 0),
        (1, 1),
        (2, 3),
    ]
    assert match_boundaries([b"ab"], [b"a"]) is None
    assert match_boundaries([], []) == []


def test_records_whose_bytes_differ_are_left_out_and_counted(chats, caplog):
    """Qwen2's tokenizer composes a letter and its accent, the other one does not."""
    alignment = TokenAlignment(chats["smollm2"], chats["qwen"])
    settings = {"alignment": alignment, "vocabulary": len(alignment.groups.student)}
    (kept,) = encode_examples([make_record("cafe\u0301"), make_record("café")], *alignment.chats, 1000, **settings)
    assert kept["uid"] == "café"
    assert "1 of 2 records are left out: they have an answer whose tokens do not have the same bytes" in caplog.text
    with pytest.raises(InputError, match="1 of 1 have an answer whose tokens do not have the same bytes"):
        encode_examples([make_record("cafe\u0301")], *alignment.chats, 1000, **settings)


def test_the_length_of_the_teachers_tokens_counts(chats):
    alignment = TokenAlignment(chats["qwen"], chats["demo"])
    record = make_record(ANSWERS[0])
    settings = {"alignment": alignment, "vocabulary": len(alignment.groups.student)}
    (kept,) = encode_examples([record], *alignment.chats, 1000, **settings)
    longest = len(kept["teacher_prompt"]) + len(kept["teacher_completion"])
    assert longest > len(kept["prompt"]) + len(kept["completion"])
    assert len(encode_examples([record], *alignment.chats, longest, **settings)) == 1
    with pytest.raises(InputError, match="1 of 1 are longer than max_length"):
        encode_examples([record], *alignment.chats, longest - 1, **settings)


def test_vocabularies_without_a_common_token_are_refused(chats):
    with pytest.raises(InputError, match="have no token in common"):
        group_tokens((chats["demo"], chats["qwen"]), ([b"a"], [b"b"]))
