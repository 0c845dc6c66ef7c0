"""The examples of several folders in one sequence, and trainings that share them."""

import logging

import numpy as np
import pytest
from training_runs import assert_same_weights, change_run, make_arguments, train_student, weights, write_splits

import train_student as script
from distill.common.errors import InputError
from distill.common.hashing import hash_uid
from distill.models import examples as encoding
from distill.models.example_folders import list_folders
from distill.models.example_table import write_table
from distill.student import train_student as student_module
from distill.student.training_examples import TrainingExamples, balance, check_signals, get_signal_key

SIZES = (7, 3, 0, 5)  # records of each folder


def make_example(folder, number):
    tokens = [folder] * (number + 1)
    return {"uid": f"{folder}-{number}", "prompt": tokens, "completion": [9, number], "teacher_prompt": [8]}


FOLDERS = [[make_example(folder, number) for number in range(size)] for folder, size in enumerate(SIZES)]
LIST = [example | {"folder": folder} for folder, members in enumerate(FOLDERS) for example in members]


@pytest.fixture(params=["disk", "memory"])
def tables(request, tmp_path):
    places = [tmp_path / f"{number}.arrow" if request.param == "disk" else None for number in range(len(SIZES))]
    columns = ("uid", "prompt", "completion", "teacher_prompt")
    return [write_table(members, columns, place) for members, place in zip(FOLDERS, places, strict=True)]


def test_the_folders_follow_one_another(tables):
    examples = TrainingExamples(tables)
    assert list(examples) == examples[:] == [examples[place] for place in range(len(examples))] == LIST
    assert (len(examples), examples[-1], examples[3:9:2]) == (len(LIST), LIST[-1], LIST[3:9:2])
    assert examples.get_lengths("prompt", "completion").tolist() == [len(one["prompt"]) + 2 for one in LIST]
    assert examples.get_folders().tolist() == [one["folder"] for one in LIST]
    for place in (len(LIST), -len(LIST) - 1):
        with pytest.raises(IndexError):
            examples[place]


def test_without_folders_there_are_no_examples():
    examples = TrainingExamples([])
    assert (len(examples), list(examples), examples.get_lengths("prompt").tolist()) == (0, [], [])
    assert not examples


def test_chosen_examples_have_their_own_numbers(tables):
    chosen = TrainingExamples(tables).choose(np.array([14, 2, 2])).number()
    assert list(chosen) == [LIST[place] | {"index": index} for index, place in enumerate((14, 2, 2))]
    assert chosen.get_lengths("prompt").tolist() == [len(LIST[place]["prompt"]) for place in (14, 2, 2)]
    assert chosen.get_folders().tolist() == [3, 0, 0]
    assert list(chosen.choose(np.array([1]))) == [LIST[2] | {"index": 0}]


def test_signals_have_the_key_of_what_the_teacher_reads(tables):
    examples = TrainingExamples(tables, has_signals=True)
    assert [one["signal"] for one in examples] == [(one["folder"], get_signal_key(one)) for one in LIST]
    assert len({key for _, key in (one["signal"] for one in examples)}) < len(LIST)  # equal tokens, equal key


def test_missing_signals_are_counted_and_the_first_is_named(tables):
    class Reader(set):
        folder = "signals"

    known = Reader(get_signal_key(one) for one in FOLDERS[0])
    check_signals(tables[0], known)
    known.remove(get_signal_key(FOLDERS[0][2]))
    known.remove(get_signal_key(FOLDERS[0][4]))
    with pytest.raises(InputError, match="2 of 7 have none, first uid 0-2"):
        check_signals(tables[0], known)


def balance_list(examples, seed):
    """The same as lists."""
    folders = {}
    for example in examples:
        folders.setdefault(example["folder"], []).append(example)
    largest = max(map(len, folders.values()), default=0)
    found = []
    for number, members in folders.items():
        order = sorted(members, key=lambda one: hash_uid(f"balance{number}", seed, one["uid"]))
        repeats, rest = divmod(largest, len(members))
        found += members * repeats + order[:rest]
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_a_balanced_pool_has_as_many_records_from_each_folder(tables, seed):
    found = list(balance(TrainingExamples(tables), seed))
    assert [sum(one["folder"] == folder for one in found) for folder in range(len(SIZES))] == [7, 7, 0, 7]
    assert sorted(sum(one["uid"] == f"1-{n}" for one in found) for n in range(3)) == [2, 2, 3]
    assert found == balance_list(LIST, seed)
    assert found != list(balance(TrainingExamples(tables), seed + 1))


# ---- Trainings ----


@pytest.fixture
def tokenized(monkeypatch):
    """The number of records of each table that is made."""
    found = []
    make = encoding.Encoder.make

    def spy(self, records, path=None):
        found.append(len(records))
        return make(self, records, path)

    monkeypatch.setattr(encoding.Encoder, "make", spy)
    return found


def test_students_share_the_examples_and_train_as_without_them(options, records, tokenized):
    alone = change_run(options(out="alone"), examples=None)
    train_student(alone, records, records[:3])
    assert tokenized == [10, 3]
    tokenized.clear()
    for out, changes in (("first", {}), ("second", {}), ("third", {"seed": 7, "learning_rate": 1e-4, "method": "jsd"})):
        run = change_run(options(out=out), **changes)
        train_student(run, records, records[:3])
        if not changes:
            assert_same_weights(weights(run), weights(alone), rtol=0, atol=0)
    assert tokenized == [10, 3]
    assert len(list_folders(run.examples)) == 2


def test_pooled_students_use_the_examples_of_the_categories(options, records, tokenized):
    parts = records[:6], records[6:]
    for part in parts:
        train_student(options(out=f"of_{len(part)}"), part, [])
    assert tokenized == [6, 0, 4]  # an empty split is the same for both
    pooled = options(out="pooled", category="all")
    student_module.train_student(pooled, parts, [[], []])
    assert tokenized == [6, 0, 4]


def test_a_training_reads_the_splits_again_instead_of_keeping_them(tmp_path, models, records, monkeypatch):
    """The script's records are a `SplitReader`, and its student is that of records in memory."""
    data = write_splits(tmp_path / "data", records, records[:3])
    kept = []
    monkeypatch.setattr(student_module, "train_student", lambda run, train, val: kept.append((run, train, val)))
    script.main(make_arguments(tmp_path, models, data=data))
    monkeypatch.undo()
    ((run, train, val),) = kept
    assert not any(isinstance(one, list) for one in (*train, *val))
    student_module.train_student(run, train, val)
    other = change_run(run, out=tmp_path / "other", checkpoints=tmp_path / "other_checkpoints", examples=None)
    train_student(other, records, records[:3])
    assert_same_weights(weights(run), weights(other), rtol=0, atol=0)


def test_damaged_examples_do_not_change_the_student(options, records, caplog):
    run = options(out="first")
    train_student(run, records, records[:3])
    for folder in list_folders(run.examples):
        path = folder / "examples.arrow"
        path.write_bytes(path.read_bytes()[:-100])
    caplog.set_level(logging.WARNING, logger="distill")
    again = options(out="second")
    train_student(again, records, records[:3])
    assert caplog.text.count("damaged examples") == 2
    assert_same_weights(weights(run), weights(again), rtol=0, atol=0)
