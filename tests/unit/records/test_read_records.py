"""Records of one file: each shape in each format of files, columns by other names, and errors that name the column."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import FORMATS, write_rows
from running import SCRIPTS

import read_records as script
from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.records.prompts import make_prompts
from distill.records.raw_records import get_uid
from distill.records.read_records import Reading, read_records

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "何?"}
ANSWER = {"role": "assistant", "content": "答。"}
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "何?"},
    {"from": "gpt", "value": "答。"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
# A record of each shape, its format and what is read besides the messages.
RECORDS = {
    "messages": ("messages", {"messages": [SYSTEM, ASKED, ANSWER]}, {}),
    "sharegpt": ("sharegpt", {"conversations": SHAREGPT}, {}),
    "texts": ("prompt_completion", {"prompt": "何?", "completion": "答。"}, {"original_output": "答。"}),
    "lists": ("prompt_completion", {"prompt": [SYSTEM, ASKED], "completion": [ANSWER]}, {"original_output": "答。"}),
}
SECOND = {
    "messages": {"messages": [ASKED]},
    "sharegpt": {"conversations": [SHAREGPT[1], SHAREGPT[2], {"from": "user", "value": "And?"}]},
    "texts": {"prompt": "And?", "completion": ""},
    "lists": {"prompt": [ASKED, ANSWER, {"role": "user", "content": "And?"}], "completion": [ANSWER]},
}


def read(tmp_path, rows, format, kind="json", **reading):
    """Return the mixed records of rows in a file."""
    path = write_rows(tmp_path / f"rows.{kind}", rows)
    reading.setdefault("system", "Be brief.")
    read_records("c", path, tmp_path / "out.jsonl", Reading(format, **reading))
    return [record for _, record in read_jsonl(tmp_path / "out.jsonl")]


def refuse(tmp_path, rows, format, kind="json", **reading):
    """Return the message of the error that rows in a file give."""
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(InputError) as error:
        read(tmp_path, rows, format, kind, **reading)
    assert not (tmp_path / "out.jsonl").exists()
    return str(error.value)


@pytest.mark.parametrize("shape", RECORDS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_shape_is_read_from_every_file(tmp_path, shape, kind):
    name, record, more = RECORDS[shape]
    first, second = read(tmp_path, [record, SECOND[shape]], name, kind, system="Another.")
    system = "Be brief." if shape != "texts" else "Another."
    messages = [{"role": "system", "content": system}, ASKED, ANSWER]
    assert first == {"messages": messages, **more, "origin": "sft", "uid": get_uid(system, "何?")}
    assert second["messages"][:1] == [{"role": "system", "content": "Another."}]
    make_prompts(tmp_path / "out.jsonl", [], None, tmp_path / "prompts.jsonl")
    prompts = [prompt for _, prompt in read_jsonl(tmp_path / "prompts.jsonl")]
    assert [prompt["uid"] for prompt in prompts] == [first["uid"], second["uid"]]
    assert prompts[0]["prompt"] == "何?"


@pytest.mark.parametrize("kind", [*FORMATS, "csv"])
def test_columns_are_mapped_to_fields(tmp_path, kind):
    rows = [{"question": "Q", "answer": "A", "input": "dropped", "context": "C", "delta": 0.5}]
    columns = {"instruction": "question", "output": "answer", "input": "context", "label": "delta"}
    (record,) = read(tmp_path, rows, "alpaca", kind, columns=columns, label_fields=["label"])
    assert record["messages"][1]["content"] == "Q\nC"
    assert (record["original_output"], record["label"]) == ("A", 0.5)
    assert not {"question", "answer", "context", "delta", "input"} & record.keys()


def test_a_csv_file_holds_text_and_numbers_as_labels(tmp_path):
    rows = [{"prompt": "007", "completion": "NA", "label": "-1.5e0"}, {"prompt": "x", "completion": "y", "label": ""}]
    first, second = read(tmp_path, rows, "prompt_completion", "csv", label_fields=["label"])
    assert (first["messages"][1]["content"], first["original_output"], first["label"]) == ("007", "NA", -1.5)
    assert second["label"] is None
    text = refuse(tmp_path / "other", [rows[0] | {"label": "much"}], "prompt_completion", "csv", label_fields=["label"])
    assert "rows.csv:record 1: label: expected a finite number, found 'much'" in text


def test_csv_that_is_not_utf8_is_an_error(tmp_path):
    (tmp_path / "f.csv").write_bytes(b"prompt,completion\nQ,A\n\xff,A\n")
    with pytest.raises(InputError, match=r"f.csv:record 2: record: expected values that JSON in UTF-8 can represent"):
        read_records("c", tmp_path / "f.csv", tmp_path / "out", Reading("prompt_completion", "x"))


def test_a_system_text_comes_from_message_field_or_configuration(tmp_path):
    rows = [
        {"conversations": SHAREGPT, "system": "Field."},
        {"conversations": SHAREGPT[1:], "system": "Field."},
        {"conversations": SHAREGPT[1:], "system": ""},
        {"conversations": [{"from": "system", "value": " "}, *SHAREGPT[1:]], "system": "Blank."},
    ]
    found = [record["messages"][0]["content"] for record in read(tmp_path, rows, "sharegpt", system="Default.")]
    assert found == ["Be brief.", "Field.", "Default.", "Blank."]
    text = refuse(tmp_path / "other", rows, "sharegpt", system=None)
    assert "record 3: conversations: expected a system text: a system message, the field `system`, or source.sy" in text
    assert "1 problem" in text


@pytest.mark.parametrize("kind", FORMATS)
def test_calls_and_tools_are_read(tmp_path, kind):
    call = {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"x": 1}})}
    turns = [SHAREGPT[1], call, {"from": "observation", "value": "12"}, SHAREGPT[2]]
    (record,) = read(tmp_path, [{"conversations": turns, "tools": json.dumps([TOOL["function"]])}], "sharegpt", kind)
    assert record["messages"][2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert record["messages"][3] == {"role": "tool", "content": "12"}
    assert record["tools"] == [TOOL]
    messages = [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "12"}]
    (same,) = read(tmp_path, [{"messages": [*messages, ANSWER], "tools": [TOOL]}], "messages", kind)
    assert (same["tools"], same["uid"]) == (record["tools"], record["uid"])
    (pair,) = read(tmp_path, [{"prompt": messages, "completion": [ANSWER], "tools": [TOOL]}], "prompt_completion", kind)
    assert pair["uid"] == record["uid"]


def test_turns_of_weight_0_are_no_targets(tmp_path):
    turns = [SHAREGPT[1], SHAREGPT[2] | {"weight": 0}, SHAREGPT[1] | {"weight": None}, SHAREGPT[2] | {"weight": 1}]
    (record,) = read(tmp_path, [{"conversations": turns}], "sharegpt")
    assert [message.get("loss") for message in record["messages"]] == [None, None, False, None, None]


def test_other_fields_of_json_are_kept_and_labels_are_in_answers(tmp_path):
    answer = SHAREGPT[2] | {"value": '<answer>{"delta": 0.25}</answer>'}
    (record,) = read(tmp_path, [{"conversations": [*SHAREGPT[:2], answer], "id": "a", "uid": "b"}], "sharegpt")
    assert record["id"] == "a"
    make_prompts(tmp_path / "out.jsonl", [], "delta", tmp_path / "prompts.jsonl")
    ((_, prompt),) = read_jsonl(tmp_path / "prompts.jsonl")
    assert prompt["label"] == 0.25


def test_the_first_of_equal_prompts_is_kept(tmp_path):
    rows = [{"prompt": "Q", "completion": "A"}, {"prompt": "Q", "completion": "B"}]
    (record,) = read(tmp_path, rows, "prompt_completion", "parquet")
    assert record["original_output"] == "A"


@pytest.mark.parametrize("kind", [*FORMATS, "csv"])
def test_a_column_that_is_missing_is_named_with_those_that_there_are(tmp_path, kind):
    rows = [{"question": "Q", "answer": "A"}] * 3
    text = refuse(tmp_path, rows, "alpaca", kind, columns={"instruction": "questions"})
    path = tmp_path / f"rows.{kind}"
    assert (
        f"{path}: source.columns.instruction: expected a column of the file, found 'questions'; the columns are "
        in text
    )
    assert "question, answer; did you mean question?" in text
    assert (
        f"{path}: expected a column 'output', or another one named in source.columns.output; the columns are " in text
    )
    assert "2 problems in the columns" in text


@pytest.mark.parametrize(("kind", "place"), [("jsonl", "2"), ("json", "record 2"), ("parquet", "record 2")])
@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("messages", [{"chat": [ASKED]}, {"chat": None}], "chat: expected a list of messages, found None"),
        ("messages", [{"chat": [ASKED]}, {"chat": []}], "chat: expected a user message that is not blank, found '0"),
        (
            "messages",
            [{"chat": [ASKED]}, {"chat": [ASKED, {"role": "bot", "content": "x"}]}],
            "chat[1].role: expected system | user | assistant | tool, found 'bot'",
        ),
        (
            "messages",
            [{"chat": [ASKED]}, {"chat": [ASKED, ANSWER, ASKED, ASKED]}],
            "chat: expected assistant after a message of user (chat[3]), found ['system', 'user', ",
        ),
        (
            "sharegpt",
            [{"chat": SHAREGPT}, {"chat": [SHAREGPT[0], {"from": "bing", "value": None}]}],
            "chat[1].from: expected system | human | user | gpt | assistant | function_call | observation | tool, "
            "found 'bing'",
        ),
        (
            "sharegpt",
            [{"chat": SHAREGPT}, {"chat": [SHAREGPT[0], {"from": "human"}]}],
            "chat[1].value: expected text, found None",
        ),
        (
            "sharegpt",
            [{"chat": SHAREGPT}, {"chat": [SHAREGPT[1], {"from": "function_call", "value": "f(x)"}]}],
            "chat[1].value: expected JSON of a call with name and arguments, or a list of calls, found 'f(x)'",
        ),
        (
            "sharegpt",
            [{"chat": SHAREGPT}, {"chat": [SHAREGPT[0], SHAREGPT[2], SHAREGPT[1]]}],
            "chat: expected user after a message of system (chat[1]), found ['system', 'assistant', 'user']",
        ),
        (
            "sharegpt",
            [{"chat": SHAREGPT}, {"chat": [SHAREGPT[0], SHAREGPT[1] | {"value": " "}]}],
            "chat: expected a user message that is not blank, found ' '",
        ),
    ],
)
def test_a_wrong_value_is_named_with_file_record_and_column(tmp_path, kind, place, name, rows, message):
    field = {"messages": "messages", "sharegpt": "conversations"}[name]
    text = refuse(tmp_path, rows, name, kind, columns={field: "chat"})
    assert f"{tmp_path / f'rows.{kind}'}:{place}: {message}" in text
    assert "in the raw records of c" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ask": None}, "ask: expected text, or a list of messages, found None"),
        ({"ask": " "}, "ask: expected text that is not blank, found ' '"),
        ({"ask": 3}, "ask: expected text, or a list of messages, found 3"),
        ({"completion": None}, "completion: expected text, or a list of messages, found None"),
        ({"completion": [ASKED]}, "completion: expected messages of assistant alone, found {"),
        ({"ask": [ASKED, ANSWER]}, "ask: expected a message of user or tool at the end, which the completion answers"),
        ({"ask": [ASKED, {"role": "user"}]}, "ask[1].content: expected text, found None"),
        ({"ask": [ASKED, ASKED]}, "ask: expected assistant after a message of user (ask[1])"),
        ({"ask": []}, "ask: expected a user message that is not blank"),
        ({"system": 3}, "system: expected text or nothing, found 3"),
        ({"tools": "f"}, "tools: expected a list of JSON schemas, objects with function.name, found 'f'"),
        ({"teacher_prompt": " "}, "teacher_prompt: expected text that is not blank, found ' '"),
        ({"x": "\ud83d"}, "record: expected values that JSON in UTF-8 can represent"),
    ],
)
def test_a_wrong_prompt_or_completion_is_named(tmp_path, change, message):
    rows = [{"ask": "Q", "completion": "A"}]
    text = refuse(tmp_path, [*rows, rows[0] | change], "prompt_completion", columns={"prompt": "ask"})
    assert f"rows.json:record 2: {message}" in text


def test_values_that_json_lacks_are_errors(tmp_path):
    times = pa.array([0], pa.timestamp("s"))
    pq.write_table(pa.table({"prompt": ["Q"], "completion": ["A"], "label": times}), tmp_path / "f.parquet")
    reading = Reading("prompt_completion", "x", label_fields=["label"])
    with pytest.raises(InputError, match=r"f.parquet:record 1: label: expected a finite number, found datetime"):
        read_records("c", tmp_path / "f.parquet", tmp_path / "out", reading)
    messages = pa.array([[{"role": "user", "content": "Q", "extra": b"\1"}]])
    pq.write_table(pa.table({"messages": messages}), tmp_path / "f.parquet")
    with pytest.raises(InputError, match=r"f.parquet:record 1: record: expected values that JSON"):
        read_records("c", tmp_path / "f.parquet", tmp_path / "out", Reading("messages", "x"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_without_records_is_an_error(tmp_path, kind):
    if kind in ("json", "jsonl"):
        write_rows(tmp_path / f"rows.{kind}", [])
    else:
        table = pa.table({"messages": pa.array([], pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})))})
        if kind == "parquet":
            pq.write_table(table, tmp_path / "rows.parquet")
        else:
            with pa.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as writer:
                writer.write_table(table)
    with pytest.raises(InputError, match="expected at least one record, found 'an empty file'"):
        read_records("c", tmp_path / f"rows.{kind}", tmp_path / "out", Reading("messages"))


def test_the_files_of_a_download_are_read_in_order(tmp_path):
    files = []
    for number, kind in enumerate(("parquet", "jsonl", "csv")):
        path = write_rows(tmp_path / f"{number}.{kind}", [{"prompt": f"Q{number}", "completion": "A"}])
        files.append({"name": path.name, "size": path.stat().st_size, "sha256": "0"})
    (tmp_path / "download.json").write_text(json.dumps({"source": "s", "commit": "c", "files": files}))
    options = ["--system", "x", "--label-fields", "label", "--out", str(tmp_path / "out")]
    script.main(
        ["--category", "c", "--format", "prompt_completion", "--records", str(tmp_path / "download.json"), *options]
    )
    assert [record["messages"][1]["content"] for _, record in read_jsonl(tmp_path / "out")] == ["Q0", "Q1", "Q2"]
    write_rows(tmp_path / "2.csv", [{"prompt": "", "completion": "ABC"}])
    with pytest.raises(InputError, match=r"2.csv:record 1: prompt: expected text that is not blank"):
        script.main(
            ["--category", "c", "--format", "prompt_completion", "--records", str(tmp_path / "download.json"), *options]
        )


def test_the_script_reads_tables_without_torch(tmp_path):
    """Importing it would take longer than most data steps."""
    write_rows(tmp_path / "f.parquet", [{"prompt": "Q", "completion": "A"}])
    files = ["--records", "f.parquet", "--out", "out.jsonl"]
    arguments = ["--category", "c", "--format", "prompt_completion", "--system", "x", *files]
    code = f"""import runpy, sys; sys.path.insert(0, {str(SCRIPTS)!r}); sys.argv = ["read_records.py", *{arguments}]
runpy.run_path({str(SCRIPTS / "read_records.py")!r}, run_name="__main__"); print("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert len(list(read_jsonl(tmp_path / "out.jsonl"))) == 1


def test_memory_does_not_grow_with_a_table(tmp_path):
    import tracemalloc

    peaks = []
    for count in (200, 4000):
        rows = [{"prompt": f"{n}", "completion": "x" * 2000} for n in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{count}.parquet", row_group_size=100)
        del rows
        tracemalloc.start()
        read_records("c", tmp_path / f"{count}.parquet", tmp_path / "out", Reading("prompt_completion", "x"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000_000  # the file is 8 MB larger
