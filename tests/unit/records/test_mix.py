"""The mix: exact counts, duplicates, stability when files grow, errors with file and line, bounded memory."""

import json
import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import mix_records as script
from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.common.hashing import HASHES, hash_uid, parse_fraction
from distill.records.mix import Labels, Source, mix_records

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow" / "scripts"
LABELS = Labels(["label"], "value")


def make_record(name: str, **fields) -> dict:
    texts = {"system": "You are a manager.", "user": f"prompt {name}", "assistant": "[predicted_value]"}
    return {"messages": [{"role": role, "content": text} for role, text in texts.items()], **fields}


def write_lines(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def mix(folder: Path, grpo, sft, grpo_fraction="0.7", sft_fraction="0.3", seed=42) -> list[dict]:
    sources = [
        Source("grpo", write_lines(folder / "grpo.jsonl", grpo), parse_fraction(grpo_fraction)),
        Source("sft", write_lines(folder / "sft.jsonl", sft), parse_fraction(sft_fraction)),
    ]
    mix_records("banks", sources, seed, LABELS, folder / "mix.jsonl")
    return [record for _, record in read_jsonl(folder / "mix.jsonl")]


def name_prompts(records: list[dict]) -> list[str]:
    return [record["messages"][1]["content"].removeprefix("prompt ") for record in records]


def make_many(prefix: str, count: int) -> list[dict]:
    return [make_record(f"{prefix}{i}") for i in range(count)]


def test_design_counts(tmp_path):
    mixed = mix(tmp_path, make_many("g", 1000), make_many("s", 500))
    assert [record["origin"] for record in mixed] == ["grpo"] * 700 + ["sft"] * 150


@pytest.mark.parametrize(("fraction", "count"), [("0.29", 29), ("0.57", 57), ("0.58", 58), ("0.999", 99), ("1/3", 33)])
def test_counts_are_exact_where_floats_are_not(tmp_path, fraction, count):
    assert len(mix(tmp_path, make_many("g", 100), make_many("s", 1), fraction, "0")) == count


def test_float_error_is_real():
    assert int(100 * 0.29) == 28
    assert int(100 * parse_fraction("0.29")) == 29


def test_all_and_none(tmp_path):
    mixed = mix(tmp_path, make_many("g", 10), make_many("s", 10), "1", "0")
    assert name_prompts(mixed) == [f"g{i}" for i in range(10)]
    mixed = mix(tmp_path, make_many("g", 10), make_many("s", 10), "0.0", "1.0")
    assert name_prompts(mixed) == [f"s{i}" for i in range(10)]
    with pytest.raises(InputError, match=r"no record is taken \(grpo 0.01 of 10, sft 0 of 10\)"):
        mix(tmp_path, make_many("g", 10), make_many("s", 10), "0.01", "0")


def test_record_is_kept_whole_and_in_file_order(tmp_path):
    grpo = [make_record(f"g{i}", label=i / 7, nested={"a": ["↓", None]}) for i in range(50)]
    mixed = mix(tmp_path, grpo, make_many("s", 50))
    names = name_prompts(mixed)
    assert names == sorted(names, key=lambda name: (name[0], int(name[1:])))
    for record in mixed[:35]:
        raw = grpo[int(record["messages"][1]["content"].removeprefix("prompt g"))]
        assert record == {**raw, "origin": "grpo", "uid": record["uid"]}


def test_seed_decides_and_repeats(tmp_path):
    first, again, other = (mix(tmp_path, make_many("g", 100), make_many("s", 100), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert name_prompts(first) != name_prompts(other)


def test_an_added_record_changes_little_and_order_nothing(tmp_path):
    grpo, sft = make_many("g", 400), make_many("s", 200)
    before = set(name_prompts(mix(tmp_path, grpo, sft)))
    for extra in range(20):
        grown = [*grpo[:100], make_record(f"new{extra}"), *grpo[100:]]
        assert len(before ^ set(name_prompts(mix(tmp_path, grown, sft)))) <= 2
    assert set(name_prompts(mix(tmp_path, grpo[::-1], sft[::-1]))) == before


def test_duplicates_are_dropped_and_n_counts_what_is_left(tmp_path, caplog):
    grpo = [make_record(f"g{i % 10}", label=i) for i in range(30)]
    sft = [make_record("g3"), *make_many("s", 4), make_record("s0")]
    with caplog.at_level(logging.INFO):
        mixed = mix(tmp_path, grpo, sft, "1", "0.5")
    assert [record["label"] for record in mixed[:10]] == list(range(10))
    assert len(mixed) == 12
    assert len({record["uid"] for record in mixed}) == 12
    assert "30 records = 10 taken + 0 not taken + 20 duplicate" in caplog.text
    assert "6 records = 2 taken + 2 not taken + 2 duplicate" in caplog.text


def test_answer_of_a_duplicate_prompt_does_not_matter(tmp_path):
    other = make_record("g0")
    other["messages"][2]["content"] = "another answer"
    assert len(mix(tmp_path, [make_record("g0"), other], make_many("s", 1), "1", "0")) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"messages": [}', ":2: line: expected a JSON object (Expecting value"),
        (b'"text"', ":2: line: expected a JSON object, found 'text'"),
        (b'{"messages": "\xff"}', ":2: line: expected UTF-8 text"),
        (b'{"prompt": "x"}', ":2: messages: expected a list of messages, found None"),
        (json.dumps(make_record("x", label="0.5")).encode(), ":2: label: expected a finite number, found '0.5'"),
        (
            b'{"label": NaN, ' + json.dumps(make_record("x")).encode()[1:],
            ":2: label: expected a finite number, found nan",
        ),
        (b'{"other": NaN, ' + json.dumps(make_record("x")).encode()[1:], ":2: record: expected values that JSON"),
        (b'{"other": "\\ud800", ' + json.dumps(make_record("x")).encode()[1:], ":2: record: expected values that JSON"),
        (b'{"other": 1e999, ' + json.dumps(make_record("x")).encode()[1:], ":2: record: expected values that JSON"),
        (
            b'{"other": ' + b"[" * 900 + b"]" * 900 + b", " + json.dumps(make_record("x")).encode()[1:],
            ":2: record: expected values that JSON",
        ),
        (
            json.dumps({"messages": make_record("x")["messages"][1:]}).encode(),
            ":2: messages: expected one system message",
        ),
    ],
)
def test_bad_line_is_named_and_the_old_output_stays(tmp_path, line, said):
    mix(tmp_path, make_many("g", 4), make_many("s", 4))
    before = (tmp_path / "mix.jsonl").read_bytes()
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(json.dumps(make_record("a")).encode() + b"\n" + line + b"\n")
    sources = [Source("grpo", tmp_path / "grpo.jsonl", Fraction(1)), Source("sft", bad, Fraction(1))]
    with pytest.raises(InputError) as error:
        mix_records("banks", sources, 42, LABELS, tmp_path / "mix.jsonl")
    assert f"{bad}{said}" in str(error.value)
    assert (tmp_path / "mix.jsonl").read_bytes() == before


def test_bad_records_of_both_files_are_named_together(tmp_path):
    bad = [{"messages": i} for i in range(15)]
    with pytest.raises(InputError) as error:
        mix(tmp_path, bad, [make_record("good"), *bad])
    text = str(error.value)
    assert "30 problems in the raw records of banks" in text
    assert "grpo.jsonl:15: messages" in text
    assert "sft.jsonl:2: messages" in text
    assert "and 10 more" in text


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path, content):
    (tmp_path / "sft.jsonl").write_bytes(content)
    grpo = write_lines(tmp_path / "grpo.jsonl", make_many("g", 3))
    sources = [Source("grpo", grpo, Fraction(1)), Source("sft", tmp_path / "sft.jsonl", Fraction(1))]
    with pytest.raises(InputError, match=r"sft.jsonl:1: file: expected at least one record, found 'an empty file'"):
        mix_records("banks", sources, 42, LABELS, tmp_path / "mix.jsonl")


def test_bom_blank_lines_and_missing_last_line_feed(tmp_path):
    lines = [json.dumps(record).encode() for record in make_many("g", 3)]
    (tmp_path / "grpo.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\n".join(lines))
    sft = write_lines(tmp_path / "sft.jsonl", make_many("s", 1))
    sources = [Source("grpo", tmp_path / "grpo.jsonl", Fraction(1)), Source("sft", sft, Fraction(1))]
    assert mix_records("banks", sources, 42, LABELS, tmp_path / "mix.jsonl") == {"grpo": 3, "sft": 1}
    assert len(list(read_jsonl(tmp_path / "mix.jsonl"))) == 4


def test_missing_file_is_an_input_error(tmp_path):
    sources = [Source("grpo", tmp_path / "none.jsonl", Fraction(1))]
    with pytest.raises(InputError, match="none.jsonl: no such file"):
        mix_records("banks", sources, 42, LABELS, tmp_path / "mix.jsonl")


def test_mix_and_splits_are_independent():
    # With the same hash for both, the 70 % taken would all have a hash in the lower 70 % of the range.
    uids = [f"{i:032x}" for i in range(4000)]
    taken = sorted(uids, key=lambda uid: hash_uid("mix", 42, uid))[:2800]
    upper = sum(hash_uid("split", 42, uid) >= 0.7 * HASHES for uid in taken)
    assert 0.25 < upper / len(taken) < 0.35


@pytest.mark.parametrize("text", ["1.5", "-0.1", "nan", "inf", "1/0", "half", ""])
def test_bad_fraction_ends_the_script(capsys, text):
    argv = ["--category", "c", "--grpo", "a", "--sft", "b", "--seed", "1", "--out", "o"]
    with pytest.raises(SystemExit):
        script.main([*argv, f"--grpo-fraction={text}", "--sft-fraction=0"])
    assert f"expected a number from 0 to 1, found {text!r}" in capsys.readouterr().err


def test_script_does_not_read_a_source_with_share_0(tmp_path, capsys):
    write_lines(tmp_path / "grpo.jsonl", make_many("g", 10))
    argv = [
        "--category",
        "c",
        "--grpo",
        str(tmp_path / "grpo.jsonl"),
        "--sft",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "o"),
    ]
    script.main([*argv, "--grpo-fraction", "0.7", "--sft-fraction", "0"])
    assert len(list(read_jsonl(tmp_path / "o"))) == 7
    with pytest.raises(SystemExit):
        script.main([*argv, "--grpo-fraction", "0.7", "--sft-fraction", "0.3"])
    assert "--sft is required" in capsys.readouterr().err
    with pytest.raises(InputError, match="no record is taken"):
        script.main([*argv, "--grpo-fraction", "0", "--sft-fraction", "0"])


def run_script(folder: Path, count: int) -> int:
    """Mix two files of `count` records each in a new process and return its peak resident memory in bytes."""
    for name in ("grpo", "sft"):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for i in range(count):
                file.write(json.dumps(make_record(f"{name} {i}", label=0.5)) + "\n")
    paths = [f"--{name}={folder / name}.jsonl" for name in ("grpo", "sft")]
    code = (
        "import re, sys; import mix_records; mix_records.main(sys.argv[1:])\n"
        # VmHWM and not ru_maxrss, which starts at the peak of the parent process.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    argv = ["--category=c", *paths, "--grpo-fraction=0.7", "--sft-fraction=0.3", "--seed=1", f"--out={folder / 'o'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (folder / "o").read_bytes().count(b"\n") == int(count * 7) // 10 + int(count * 3) // 10
    return int(done.stdout) * 1024


def test_memory_does_not_grow_with_the_records(tmp_path):
    small, large = run_script(tmp_path, 1_000), run_script(tmp_path, 100_000)
    # Measured: 8 MiB more, 10 MiB with 400,000 records per file; 13 MiB with the database in memory.
    assert large - small < 11 * 2**20


def test_data_scripts_import_no_torch():
    code = (
        "import sys, mix_records, make_prompts, split_answers; print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
