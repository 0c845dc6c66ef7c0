"""Questions in Alpaca format: arrays and JSONL, errors with file and record, and original outputs up to the splits."""

import json
from fractions import Fraction

import pytest
from reading import read_alpaca

import read_records as script
from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.records.prompts import make_prompts
from distill.records.raw_records import get_uid
from distill.records.splits import read_split, split_answers
from distill.teacher.generate_answers import to_output

QUESTIONS = [
    {"instruction": "何谓缘起？", "input": "", "output": "诸法因缘而生。"},
    {"instruction": "Summarise.", "input": "A long text.", "output": "Short.", "source": "a", "weight": 1.5},
    {"instruction": "Who?", "output": " ", "system": "Answer with a name."},
]


def write(path, questions, is_array):
    lines = [json.dumps(one, ensure_ascii=False) for one in questions]
    path.write_text("[\n" + ",\n".join(lines) + "\n]" if is_array else "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(params=[True, False], ids=["array", "JSONL"])
def is_array(request):
    return request.param


def test_questions_become_records(tmp_path, is_array):
    out = tmp_path / "out.jsonl"
    assert read_alpaca("c", write(tmp_path / "q.json", QUESTIONS, is_array), "Be brief.", out) == 3
    first, second, third = (record for _, record in read_jsonl(out))
    assert first == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "何谓缘起？"}],
        "original_output": "诸法因缘而生。",
        "origin": "alpaca",
        "uid": get_uid("Be brief.", "何谓缘起？"),
    }
    assert second["messages"][1]["content"] == "Summarise.\nA long text."
    assert (second["source"], second["weight"]) == ("a", 1.5)  # a float, not a decimal
    assert third["messages"][0]["content"] == "Answer with a name."
    assert third["original_output"] is None


def test_both_shapes_give_the_same_bytes(tmp_path):
    for is_array in (True, False):
        read_alpaca("c", write(tmp_path / f"{is_array}.json", QUESTIONS, is_array), "x", tmp_path / f"{is_array}.jsonl")
    assert (tmp_path / "True.jsonl").read_bytes() == (tmp_path / "False.jsonl").read_bytes()


def test_a_byte_order_mark_and_space_before_the_array_are_skipped(tmp_path):
    (tmp_path / "q.json").write_bytes(b"\xef\xbb\xbf \n" + json.dumps(QUESTIONS).encode())
    assert read_alpaca("c", tmp_path / "q.json", "x", tmp_path / "out") == 3


def test_the_first_of_equal_questions_is_kept(tmp_path, is_array):
    twice = [*QUESTIONS, QUESTIONS[0] | {"output": "another"}]
    assert read_alpaca("c", write(tmp_path / "q.json", twice, is_array), "x", tmp_path / "out") == 3
    assert next(read_jsonl(tmp_path / "out"))[1]["original_output"] == "诸法因缘而生。"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": " "}, "instruction: expected text that is not blank, found ' '"),
        ({"instruction": None}, "instruction: expected text that is not blank, found None"),
        ({"input": 3}, "input: expected text or nothing, found 3"),
        ({"output": None}, "output: expected text, found None"),
        ({"history": [["a", "b"]]}, "history: expected nothing (only single-turn records are supported)"),
    ],
)
def test_bad_records_are_named_with_file_and_place(tmp_path, is_array, change, message):
    path = write(tmp_path / "q.json", [QUESTIONS[0], QUESTIONS[1] | change], is_array)
    place = "record 2" if is_array else "2"
    with pytest.raises(InputError) as refused:
        read_alpaca("c", path, "x", tmp_path / "out")
    assert f"{path}:{place}: {message}" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"instruction": "a", "output": "b"}, {"instr',
            "record 2: record: expected a JSON array in UTF-8 (Unterminated string starting at), found '{\"instr'",
        ),
        ('[{"instruction": "a", "output": "b"} {', "record 2: record: expected a JSON array in UTF-8 (, or ]"),
        ("[1]", "record 1: record: expected an object with instruction and output, found 1"),
        ("[]", "expected at least one record, found 'an empty file'"),
        ("", "expected at least one record, found 'an empty file'"),
        ('{"instruction": "a", "output": "b"}\n{', "2: line: expected a JSON object"),
    ],
)
def test_broken_files_are_errors(tmp_path, text, message):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(InputError) as refused:
        read_alpaca("c", tmp_path / "q.json", "x", tmp_path / "out")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (r'"instruction": "Say \ud83d hi"', "{place}: record: expected values that JSON in UTF-8 can represent"),
        (r'"instruction": "a", "note": ["\udc00"]', "{place}: record: expected values that JSON"),
        ('"instruction": "a", "score": NaN', "{place}: record: expected "),
        ('"instruction": "a", "score": 1e999', "{place}: record: expected values that JSON in UTF-8 can represent"),
        ('"instruction": "a", "x": ' + "[" * 900 + "]" * 900, "{place}: record: expected values that JSON"),
        ('"instruction": "a", "x": ' + "[" * 9000 + "]" * 9000, "{place}: {what}: expected "),
        ('"instruction": "a", "x": ' + "9" * 5000, "{place}: {what}: expected "),
        ('"instruction": "a", "x": "\x01"', "{place}: {what}: expected "),
        ('"instruction": "a", "instruction": "b"', "{place}: instruction: expected the key once in its object"),
        ('"instruction": "a", "x": [{"k": 1, "k": 1}]', "{place}: k: expected the key once in its object"),
        ('"instruction": "a", "label": "12"', "{place}: label: expected a finite number, found '12'"),
        ('"instruction": "a", "label": true', "{place}: label: expected a finite number, found True"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_values_that_cannot_be_copied_are_errors(tmp_path, is_array, field, message):
    lines = ['{"instruction": "first", "output": "b"}', "{" + field + ', "output": "b"}']
    path = tmp_path / "q.json"
    path.write_text("[" + ", ".join(lines) + "]" if is_array else "\n".join(lines))
    with pytest.raises(InputError) as refused:
        read_alpaca("c", path, "x", tmp_path / "out", ["label"])
    expected = message.format(place="record 2" if is_array else "2", what="record" if is_array else "line")
    assert f"{path}:{expected}" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_text_that_is_not_utf8_is_an_error(tmp_path, is_array):
    path = write(tmp_path / "q.json", QUESTIONS, is_array)
    path.write_bytes(path.read_bytes().replace("缘".encode(), b"\xe7\xbc"))
    with pytest.raises(InputError, match=r"q\.json:(record )?1: \w+: expected .*UTF-8"):
        read_alpaca("c", path, "x", tmp_path / "out")


def test_escaped_pairs_of_surrogates_are_one_character(tmp_path, is_array):
    path = tmp_path / "q.json"
    path.write_text(r'{"instruction": "\ud83d\ude00", "output": ""}'.join("[]" if is_array else ("", "\n")))
    read_alpaca("c", path, "x", tmp_path / "out")
    assert next(read_jsonl(tmp_path / "out"))[1]["messages"][1]["content"] == "\N{GRINNING FACE}"


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="q.json: no such file"):
        read_alpaca("c", tmp_path / "q.json", "x", tmp_path / "out")


def test_memory_does_not_grow_with_the_file(tmp_path):
    import tracemalloc

    peaks = []
    for count in (200, 4000):
        many = [{"instruction": f"{n}", "input": "", "output": "x" * 2000} for n in range(count)]
        path = write(tmp_path / f"{count}.json", many, True)
        del many
        tracemalloc.start()
        read_alpaca("c", path, "x", tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000_000  # the file is 8 MB larger


def answers(tmp_path, count=400):
    """Write teacher answers to questions, of which every tenth has no original answer."""
    questions = [{"instruction": f"q{n}", "output": f"original {n}" if n % 10 else ""} for n in range(count)]
    read_alpaca("c", write(tmp_path / "q.json", questions, True), "x", tmp_path / "mix.jsonl")
    make_prompts(tmp_path / "mix.jsonl", [], None, tmp_path / "prompts.jsonl")
    answer = {"raw_output": "the teacher's", "sample": 0, "finish_reason": "length", "generated_tokens": 3}
    outputs = [to_output(prompt, answer, None) for _, prompt in read_jsonl(tmp_path / "prompts.jsonl")]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in outputs))
    return tmp_path / "answers.jsonl"


def test_the_original_output_reaches_the_splits(tmp_path):
    path = answers(tmp_path)
    split_answers(path, Fraction(1, 10), Fraction(1, 10), 42, tmp_path / "out")
    for record in read_split(tmp_path / "out", "train"):
        assert record["messages"][2]["content"] == "the teacher's"
        assert "target" not in record
        number = record["messages"][1]["content"][1:]
        assert record["original_output"] == (f"original {number}" if int(number) % 10 else None)


def test_targets_are_mixed_by_share(tmp_path, caplog):
    caplog.set_level("INFO")
    path = answers(tmp_path)
    split_answers(path, Fraction(1, 10), Fraction(2, 10), 42, tmp_path / "out", Fraction(3, 10))
    records = {name: read_split(tmp_path / "out", name) for name in ("train", "val", "test")}
    for name, found in records.items():
        for record in found:
            is_original = record["target"] == "original"
            assert record["messages"][2]["content"] == (record["original_output"] if is_original else "the teacher's")
            assert record["finish_reason"] == ("stop" if is_original else "length")
            assert not (is_original and name == "test")
    mixed = records["train"] + records["val"]
    originals = sum(record["target"] == "original" for record in mixed)
    assert originals / len(mixed) == pytest.approx(0.27, abs=0.06)  # 30 % of the 90 % with an original answer
    assert f"{originals} of the records in train and val have the original answer" in caplog.text
    assert sum(map(len, records.values())) == 400
    again = tmp_path / "again"
    split_answers(path, Fraction(1, 10), Fraction(2, 10), 42, again, Fraction(3, 10))
    assert (again / "train.jsonl").read_bytes() == (tmp_path / "out/train.jsonl").read_bytes()


def test_an_original_target_is_written_once_per_prompt(tmp_path):
    lines = answers(tmp_path, 60).read_text().splitlines()
    doubled = [json.dumps(json.loads(line) | {"sample": sample}) for line in lines for sample in (0, 1)]
    (tmp_path / "answers.jsonl").write_text("\n".join(doubled) + "\n")
    split_answers(tmp_path / "answers.jsonl", Fraction(0), Fraction(1, 5), 42, tmp_path / "out", Fraction(1, 2))
    train = read_split(tmp_path / "out", "train")
    by_uid = {}
    for record in train:
        by_uid.setdefault(record["uid"], []).append(record["target"])
    assert set(map(tuple, by_uid.values())) == {("original",), ("teacher", "teacher")}


def test_the_script_reads_a_file(tmp_path):
    path = write(tmp_path / "q.json", QUESTIONS, True)
    options = ["--system", "x", "--label-fields", "weight", "--out", str(tmp_path / "out")]
    script.main(["--category", "c", "--format", "alpaca", "--records", str(path), *options])
    assert len(list(read_jsonl(tmp_path / "out"))) == 3
