"""Cached teacher signals: their names, and which students share one."""

import re

import pytest

from distill.common.files import write_jsonl
from distill.plan import signals
from distill.plan.schema import check_config
from distill.plan.start_cache import StartCache


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
        ({"signal": "topk"}, "none", "topk_64_t1"),
        ({"signal": "topk", "top_k": 8, "teacher_quantization": "int8"}, "none", "topk_8_t1_int8"),
        ({"signal": "topk", "temperature": 1.5, "teacher_quantization": "int8"}, "int8", "topk_64_t1_5"),
        ({"signal": "topk", "top_k": 32, "tail_samples": 12}, "none", "topk_32_s12_t1"),
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
        "two": topk | {"temperature": 2, "train": {"max_length": 512}},
        "three": topk | {"temperature": 1.0, "train": {"max_length": 4096}, "method": "tvd"},
        "other": topk | {"top_k": 8},
        "answers": topk | {"method": "seqkd", "temperature": 9.0},
    }
    found = signals.get_signals(make_config(students, quantization="int8"))
    assert list(found) == ["topk_64_t1", "topk_64_t2", "topk_8_t1"]
    assert found["topk_64_t2"] == {
        "kind": "topk", "top_k": 64, "temperatures": [2.0], "tail_samples": None, "quantization": "int8",
    }  # fmt: skip
    # No student's setting changes what another one's signal is.
    alone = signals.get_signals(make_config({"one": topk}, quantization="int8"))
    assert alone == {"topk_64_t1": found["topk_64_t1"]}
    hidden = make_config({"one": {"model": "s", "signal": "hidden", "teacher_quantization": "nf4"}})
    (signal,) = signals.get_signals(hidden).values()
    assert (signal["quantization"], signal["top_k"], signal["temperatures"]) == ("nf4", None, None)


def write_questions(folder, count):
    """Write prompts, which are the maximum length long, and a teacher of known sizes."""
    path = folder / "artifacts/distill_data/raw/banks_teacher_prompts_base.jsonl"
    write_jsonl(path, ({"uid": f"{number:032x}", "system": "S", "prompt": str(number)} for number in range(count)))
    (folder / "teacher").mkdir()
    (folder / "teacher/config.json").write_text('{"hidden_size": 3584, "vocab_size": 152064}')


def test_hidden_states_have_the_size_of_topk_beside_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path, 100)
    config = {
        "categories": ["banks"],
        "teacher": {"model": "teacher", "generation": {"max_new_tokens": 400}, "samples": 2},
        "students": {"one": {"model": "s", "signal": "hidden"}},
        "signals": "large/disk",
    }
    (line,) = signals.describe_signals(check_config(config), ["banks"], StartCache())
    kept = int(re.search(r"at most ([\d,]+) tokens", line)[1].replace(",", ""))
    assert 60_000 < kept < 80_000  # all but the test split
    assert line == (
        f"teacher signal hidden of banks: 7,172 bytes per token, at most {kept:,} tokens, {kept * 7172 / 1e9:.3g} GB "
        f"(signal topk with top_k 64: 237 bytes per token, {kept * 237 / 1e6:.3g} MB)"
    )
    monkeypatch.setattr(signals, "find_free", lambda folder: 20_000_000 if folder == "large/disk" else 10**15)
    _, shortage = signals.describe_signals(check_config(config), ["banks"], StartCache())
    assert shortage.startswith(
        f"teacher signals: {kept * 7172 / 1e6:.3g} MB to compute, but only 20 MB are free in large"
    )
    config["students"]["one"]["signal"] = "topk"
    assert len(signals.describe_signals(check_config(config), ["banks"], StartCache())) == 1


def test_signals_that_exist_need_no_more_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path, 10)
    students = {"one": {"model": "s", "signal": "topk"}}
    teacher = {"model": "teacher", "generation": {"max_new_tokens": 400}}
    config = check_config({"categories": ["banks"], "teacher": teacher, "students": students})
    monkeypatch.setattr(signals, "find_free", lambda _: 0)
    assert len(signals.describe_signals(config, ["banks"], StartCache())) == 2
    data = tmp_path / "artifacts/distill_data/teacher_signal/banks/topk_64_t1/data"
    data.mkdir(parents=True)
    (data / "00000.safetensors").write_bytes(b"x" * 237 * 4000)
    assert len(signals.describe_signals(config, ["banks"], StartCache())) == 1
