"""A dataset on the hub as the source: planned without a download, downloaded once, and distilled into a student."""

import pytest
from hub_server import HubServer
from reading import write_rows
from running import CONFIG, TEACHER, read_lines

from distill.records.shapes import SHAREGPT_ROLES

NAME = "hf:datasets/owner/holdings@main:{category}"
MIX = "artifacts/distill_data/raw/train_mix_{}.jsonl"
STUDENT = "output/student/banks/model.safetensors"


def to_sharegpt(record):
    """Return a raw record as a row of a dataset, whose columns have names of their own."""
    names = {role: name for name, role in reversed(SHAREGPT_ROLES.items())}
    turns = [{"from": names[turn["role"]], "value": turn["content"]} for turn in record["messages"]]
    return {"dialogue": turns, "delta": record.get("holding_log_delta"), "note": "not read"}


@pytest.fixture
def directory(fresh, tmp_path):
    """A directory with models and without records, which are in a dataset with a split for each category."""
    directory = fresh.copy(tmp_path / "run")
    for category in ("banks", "households"):
        records = read_lines(directory / f"artifacts/sft/sft_train_{category}.jsonl")
        folder = tmp_path / "hub/data"
        folder.mkdir(parents=True, exist_ok=True)
        for part in range(2):
            rows = [to_sharegpt(record) for record in records[part::2]]
            write_rows(folder / f"{category}-0000{part}-of-00002.parquet", rows)
    (directory / "artifacts").rename(tmp_path / "artifacts")
    columns = {"conversations": "dialogue", "holding_log_delta": "delta"}
    train = CONFIG["students"]["student_kd"]["train"]
    directory.configure(
        CONFIG
        | {"categories": ["banks", "households"], "teacher": TEACHER}
        | {"source": {"format": "sharegpt", "path": NAME, "columns": columns}}
        | {"students": {"student": {"model": "models/student", "method": "forward_kl", "train": train}}}
    )
    return directory


@pytest.fixture
def hub(tmp_path, directory, monkeypatch):
    from running import environment

    with HubServer({}, {"owner/holdings": tmp_path / "hub"}) as server:
        found = environment() | server.environment()
        monkeypatch.setattr("running.environment", lambda: found)
        yield server


@pytest.mark.slow
def test_a_dataset_is_downloaded_once_and_distilled(directory, hub, tmp_path):
    plan = directory.planned()
    assert plan.count(("download_dataset", "")) == 2
    assert {("mix_records", "banks"), ("train_student", "households")} <= set(plan)
    assert not hub.requests
    output = directory.run(STUDENT, MIX.format("households"))
    assert output.index("rule download_dataset") < output.index("rule mix_records") < output.index("rule generate_ans")
    assert (directory / STUDENT).exists()
    for category in ("banks", "households"):
        raw = read_lines(tmp_path / f"artifacts/sft/sft_train_{category}.jsonl")
        expected = sorted(record["messages"][1]["content"] for record in raw)
        mixed = read_lines(directory / MIX.format(category))
        assert sorted(record["messages"][1]["content"] for record in mixed) == expected
        assert {record["origin"] for record in mixed} == {"sft"}
    labels = {record["messages"][1]["content"]: record.get("holding_log_delta") for record in raw}
    assert all(record["holding_log_delta"] == labels[record["messages"][1]["content"]] for record in mixed)

    served = dict(hub.served)
    manifest = directory / "datasets/hf/owner/holdings@main/banks/download.json"
    manifest.touch()
    assert "Nothing to be done" in directory.run(STUDENT, MIX.format("households"))
    assert hub.served == served
    # The content of the manifest decides, and another revision is another download.
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"commit": "', '"commit": "0'))
    assert ("mix_records", "banks") in directory.planned()
    manifest.write_text(whole)
    source = directory.config["source"] | {"path": NAME.replace("@main", "@v1")}
    directory.configure(directory.config | {"source": source})
    assert directory.planned().count(("download_dataset", "")) == 2


def test_errors_name_what_the_dataset_has(directory, hub):
    columns = {"conversations": "dialog"}
    source = directory.config["source"] | {"columns": columns}
    directory.configure(directory.config | {"categories": ["banks", "funds"], "source": source})
    output = directory.run(MIX.format("banks"), MIX.format("funds"), "--keep-going", check=False)
    assert (
        "error: hf:datasets/owner/holdings@main:funds: expected a split of the dataset, one of banks, households,"
        in output
    )
    expected = "source.columns.conversations: expected a column of the file, found 'dialog'; the columns are dialogue, "
    assert expected in output
    assert "did you mean dialogue?" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_private_dataset_without_a_token_is_an_error_before_a_model_is_loaded(directory, hub):
    hub.token, hub.denial = "hf_secret", "RepoNotFound"
    output = directory.run("artifacts/distill_data/raw/teacher_outputs_banks.jsonl", check=False)
    assert "or it is private and needs HF_TOKEN" in output
    assert "rule generate_answers" not in output


@pytest.mark.slow
def test_local_tables_and_a_single_file_need_no_download(directory, tmp_path):
    rows = [{"prompt": f"Question {number}?", "completion": "Yes."} for number in range(6)]
    for kind in ("parquet", "arrow", "csv"):
        write_rows(directory.path / f"rows.{kind}", rows)
        source = {"format": "prompt_completion", "path": f"rows.{kind}", "system": "Answer {category}."}
        directory.configure(directory.config | {"categories": ["banks"], "source": source})
        assert ("download_dataset", "") not in directory.planned()
        directory.run(MIX.format("banks"))
        mixed = read_lines(directory / MIX.format("banks"))
        assert [record["original_output"] for record in mixed] == ["Yes."] * 6
        assert mixed[0]["messages"][0]["content"] == "Answer {category}."
