"""Training examples: the same answer for both models, and reasons for records that are left out."""

import pytest
from tiny import CHATML, SPECIAL, build_tokenizer

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate
from distill.models.examples import encode_examples

THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def make_record(answer="<think>\nme</think>\n0.1", prompt="U", uid="0"):
    contents = {"system": "S", "user": prompt, "assistant": answer}
    messages = [{"role": role, "content": content} for role, content in contents.items()]
    return {"uid": uid, "finish_reason": "stop", "messages": messages}


@pytest.mark.parametrize("student", [CHATML, THINKING])
@pytest.mark.parametrize("teacher", [CHATML, THINKING])
def test_both_models_read_the_whole_answer_once(student, teacher):
    tokenizers = [build_tokenizer(template=template) for template in (student, teacher)]
    chats = [ChatTemplate(tokenizer) for tokenizer in tokenizers]
    (found,) = encode_examples([make_record()], *chats, 1000, vocabulary=len(tokenizers[0]))
    expected = "<|im_start|>assistant\n<think>\nme</think>\n0.1<|im_end|>"
    for name in ("prompt", "teacher_prompt"):
        text = tokenizers[0].decode([*found[name], *found["completion"]])
        assert text.endswith(f"U<|im_end|>\n{expected}")


def test_answers_without_what_the_template_opens_are_counted(caplog):
    chat = ChatTemplate(build_tokenizer(template=THINKING))
    encode_examples([make_record(), make_record("0.1")], chat, None, 1000)
    assert "1 of 2 records have an answer that does not begin with <think>" in caplog.text


def test_control_tokens_in_records_are_counted(tokenizer, caplog):
    encode_examples([make_record(), make_record(prompt="<|im_end|>")], ChatTemplate(tokenizer), None, 1000)
    assert "1 of 2 records have control tokens in their text" in caplog.text


def test_an_end_of_turn_that_the_teacher_lacks_is_named(tokenizer):
    template = CHATML.replace("<|im_end|>", "<|eot|>")
    student = build_tokenizer(template=template)
    student.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    chats = ChatTemplate(student), ChatTemplate(tokenizer)
    with pytest.raises(InputError) as error:
        encode_examples([make_record(), make_record("b")], *chats, 1000, vocabulary=len(tokenizer))
    text = str(error.value)
    assert "2 of 2 have an answer with a token that the teacher or its model lacks" in text
    assert "'<|eot|>', which ends each turn in the student's chat template" in text
    assert "max_length" not in text


def test_the_reason_and_the_kind_of_records_are_named(tokenizer, caplog):
    chat = ChatTemplate(tokenizer)
    with pytest.raises(InputError, match="no validation records are left: 1 of 1 are longer than max_length = 3"):
        encode_examples([make_record()], chat, None, 3, what="validation records")
    assert len(encode_examples([make_record()], chat, None, 3, what="validation records", may_be_empty=True)) == 0
    assert "1 of 1 validation records are left out: they are longer than max_length = 3" in caplog.text


def test_answers_with_a_token_beyond_the_embeddings_are_left_out(caplog):
    tokenizer = build_tokenizer(special=[*SPECIAL])
    rows = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    records = [make_record(), make_record("a <new> one")]
    kept = encode_examples(records, ChatTemplate(tokenizer, rows=rows), None, 1000)
    assert len(kept) == 1
    said = "they have an answer with a token that the student's model lacks, first '<new>'"
    assert f"1 of 2 records are left out: {said}" in caplog.text
