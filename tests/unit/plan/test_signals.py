"""Cached teacher signals: their names, and which students share one."""

import pytest

from distill.plan import signals
from distill.plan.schema import check_config


def make_config(students, quantization="none"):
    teacher = {"model": "owner/t", "adapter": "lora/{category}", "quantization": quantization}
    return check_config({"categories": ["banks", "funds"], "teacher": teacher, "students": students})


@pytest.mark.parametrize(
    ("student", "answering", "name"),
    [
        ({}, "none", None),
        ({"signal": "topk", "method": "seqkd"}, "none", None),
        ({"signal": "hidden"}, "none", "hidden"),
        ({"signal": "hidden", "top_k": 8}, "int8", "hidden"),
        ({"signal": "topk"}, "none", "topk_64_t2"),
        ({"signal": "topk", "top_k": 8, "teacher_quantization": "int8"}, "none", "topk_8_t2_int8"),
        ({"signal": "topk", "temperature": 1.5, "teacher_quantization": "int8"}, "int8", "topk_64_t1_5"),
        ({"signal": "topk", "top_k": 32, "tail_samples": 12}, "none", "topk_32_s12_t2"),
        ({"signal": "hidden", "teacher_quantization": "none"}, "nf4", "hidden_none"),
    ],
)
def test_signals_are_named_by_what_they_hold(student, answering, name):
    config = make_config({"one": {"model": "s"} | student}, quantization=answering)
    assert signals.get_signal(config, "one") == name
    assert list(signals.get_signals(config)) == ([name] if name else [])


def test_a_signal_serves_all_students_of_its_name():
    topk = {"model": "s", "signal": "topk"}
    students = {
        "one": topk,
        "two": topk | {"temperature": 1, "train": {"max_length": 512}},
        "three": topk | {"temperature": 2.0, "train": {"max_length": 4096}, "method": "tvd"},
        "other": topk | {"top_k": 8},
        "answers": topk | {"method": "seqkd", "temperature": 9.0},
    }
    found = signals.get_signals(make_config(students, quantization="int8"))
    assert list(found) == ["topk_64_t2", "topk_64_t1", "topk_8_t2"]
    assert found["topk_64_t1"] == {
        "kind": "topk", "top_k": 64, "temperatures": [1.0], "tail_samples": None, "quantization": "int8",
    }  # fmt: skip
    # No student's setting changes what another one's signal is.
    alone = signals.get_signals(make_config({"one": topk}, quantization="int8"))
    assert alone == {"topk_64_t2": found["topk_64_t2"]}
    hidden = make_config({"one": {"model": "s", "signal": "hidden", "teacher_quantization": "nf4"}})
    (signal,) = signals.get_signals(hidden).values()
    assert (signal["quantization"], signal["top_k"], signal["temperatures"]) == ("nf4", None, None)
