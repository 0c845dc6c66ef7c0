"""Examples on disk: made once for equal records and tokenizers, reported in every job, and made again if damaged."""

import errno
import fcntl
import logging
import os
import threading
from dataclasses import replace

import pytest
from tiny import CHATML, SPECIAL, build_tokenizer
from training_runs import write_splits

from distill.common.errors import InputError
from distill.models import example_cache, example_folders, examples
from distill.models.chat import ChatTemplate
from distill.models.example_cache import TABLE
from distill.models.example_folders import INDEX, is_current, list_folders, read_facts
from distill.models.examples import encode_examples
from distill.models.token_alignment import TokenAlignment
from distill.records.split_reader import SplitReader

THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
DATED = CHATML + "{{ strftime_now('%Y') }}"
SETTINGS = {"max_length": 1000, "vocabulary": 320}


def make_record(answer="0.1", prompt="U", uid="0", **others):
    contents = {"system": "S", "user": prompt, "assistant": answer}
    messages = [{"role": role, "content": content} for role, content in contents.items()]
    return {"uid": uid, "finish_reason": "stop", "messages": messages} | others


RECORDS = [make_record(f"0.{n}", uid=str(n)) for n in range(3)]


@pytest.fixture
def chats():
    return ChatTemplate(build_tokenizer()), ChatTemplate(build_tokenizer())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "examples"


@pytest.fixture
def tokenized(monkeypatch):
    """The uids of the records that are tokenized to a table, as they are."""
    found = []
    make = examples.Encoder.make

    def spy(self, records, path=None):
        found.extend(record["uid"] for record in records)
        return make(self, records, path)

    monkeypatch.setattr(examples.Encoder, "make", spy)
    return found


def test_the_second_job_reads_what_the_first_one_made(chats, cache, tokenized):
    first = encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)
    assert tokenized == ["0", "1", "2"]
    others = ChatTemplate(build_tokenizer()), ChatTemplate(build_tokenizer())  # of another student
    second = encode_examples(RECORDS, *others, **SETTINGS, cache=cache)
    assert tokenized == ["0", "1", "2"]
    assert list(first) == list(second) == list(encode_examples(RECORDS, *chats, **SETTINGS))
    assert len(list(cache.iterdir())) == 1  # no lock and no temporary folder is left


def test_the_place_of_the_tokenizer_does_not_count(cache, tokenized, tmp_path):
    for name in ("one", "other"):
        tokenizer = build_tokenizer()
        tokenizer.name_or_path = str(tmp_path / name)
        encode_examples(RECORDS, ChatTemplate(tokenizer), None, 1000, cache=cache)
    assert len(tokenized) == 3


OTHERS = {
    "record": lambda records, student, teacher: ([*records[:2], make_record("0.7", uid="2")], student, teacher, {}),
    "order": lambda records, student, teacher: (records[::-1], student, teacher, {}),
    "finish": lambda records, *chats: ([*records[:2], records[2] | {"finish_reason": "length"}], *chats, {}),
    "max_length": lambda *given: (*given, {"max_length": 999}),
    "vocabulary": lambda *given: (*given, {"vocabulary": 319}),
    "no teacher": lambda records, student, teacher: (records, student, None, {}),
    "is_teacher": lambda *given: (*given, {"is_teacher": True}),
    "template": lambda records, student, teacher: (records, change(student, template=THINKING), teacher, {}),
    "teacher's template": lambda records, student, teacher: (records, student, change(teacher, THINKING), {}),
    "arguments": lambda records, student, teacher: (records, student, replace(teacher, arguments={"day": 1}), {}),
    "rows": lambda records, student, teacher: (records, replace(student, rows=400), teacher, {}),
    "tokenizer": lambda records, student, teacher: (records, add_token(student), teacher, {}),
    "alignment": lambda records, *chats: (records, *chats, {"alignment": TokenAlignment(*chats)}),
}


def change(chat, template):
    return replace(chat, tokenizer=build_tokenizer(template=template))


def add_token(chat):
    tokenizer = build_tokenizer(special=[*SPECIAL])
    tokenizer.add_tokens(["<new>"])
    return replace(chat, tokenizer=tokenizer)


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_decides_the_tokens_makes_other_examples(cache, tokenized, name):
    template = CHATML + "{{ day }}"
    given = RECORDS, *(ChatTemplate(build_tokenizer(template=template)) for _ in range(2))
    records, student, teacher, settings = OTHERS[name](*given)
    wanted = list(encode_examples(records, student, teacher, **SETTINGS | settings))
    for each in ((*given, {}), (records, student, teacher, settings)):
        found = encode_examples(each[0], *each[1:3], **SETTINGS | each[3], cache=cache)
    assert len(list_folders(cache)) == 2
    assert list(found) == wanted


@pytest.mark.parametrize(("template", "folders"), [(CHATML, 1), (DATED, 2)])
def test_the_date_counts_where_the_template_reads_it(cache, template, folders):
    for date in ("2024-01-01", "2025-01-01"):
        encode_examples(RECORDS, ChatTemplate(build_tokenizer(template=template), date=date), None, 1000, cache=cache)
    assert len(list_folders(cache)) == folders


def test_other_code_and_other_libraries_make_other_examples(chats, cache, monkeypatch):
    encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(example_folders, "code_digest", lambda *_: "0" * 64)
        encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)
    assert len(list_folders(cache)) == 2
    monkeypatch.setattr(example_folders, "version", lambda name: "0")
    encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)
    assert len(list_folders(cache)) == 3


def test_a_python_tokenizer_counts_by_what_it_saves(cache):
    """Those without a Rust backend have no text of their whole state."""

    class Saved:
        backend_tokenizer = None

        def __init__(self, tokenizer, text):
            self.tokenizer, self.text = tokenizer, text

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def save_pretrained(self, folder):
            (example_cache.Path(folder) / "vocab.txt").write_text(self.text)

    first, same, other = (
        example_cache.describe_chat(ChatTemplate(Saved(build_tokenizer(), text))) for text in ("a", "a", "b")
    )
    assert first == same
    assert first != other


# ---- Reports ----


def test_each_job_reports_what_is_left_out(cache, caplog):
    tokenizer = build_tokenizer(template=THINKING, special=[*SPECIAL])
    rows = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    chat = ChatTemplate(tokenizer, rows=rows)
    records = [*RECORDS, make_record("a <new> one"), make_record("x" * 900), make_record(prompt="<|im_end|>")]
    found = []
    for folder in (None, cache, cache):
        caplog.clear()
        chat = ChatTemplate(tokenizer, rows=rows)
        encode_examples(records, chat, None, 500, what="training records", cache=folder)
        found.append(sorted(caplog.messages))
    assert found[0] == found[1] == found[2]
    text = "\n".join(found[0])
    assert "6 of 6 training records have an answer that does not begin with <think>" in text
    assert "1 of 6 records have control tokens in their text" in text
    assert "that the student's model lacks, first '<new>'" in text
    assert "1 of 6 training records are left out: they are longer than max_length = 500" in text


def test_what_the_template_says_of_itself_is_logged_in_each_job(cache, caplog):
    caplog.set_level(logging.INFO, logger="distill")
    template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}<|im_end|>{% endfor %}"
    for _ in range(2):
        caplog.clear()
        encode_examples(RECORDS, ChatTemplate(build_tokenizer(template=template)), None, 1000, cache=cache)
        assert "the chat template has no system role" in caplog.text


@pytest.mark.parametrize("job", ["first", "second"])
def test_no_record_left_is_an_error_in_each_job(chats, cache, job):
    if job == "second":
        encode_examples(RECORDS, *chats, **SETTINGS | {"max_length": 3}, may_be_empty=True, cache=cache)
    with pytest.raises(InputError, match="no records are left: 3 of 3 are longer than max_length = 3"):
        encode_examples(RECORDS, *chats, **SETTINGS | {"max_length": 3}, cache=cache)


def test_a_record_that_cannot_be_tokenized_leaves_nothing_in_the_cache(cache):
    chat = ChatTemplate(build_tokenizer(), rows=5)
    for _ in range(2):
        with pytest.raises(InputError, match="expected token ids below 5"):
            encode_examples(RECORDS, chat, None, 1000, cache=cache)
    assert list(cache.iterdir()) == []


# ---- Damage ----


def flip(folder):
    raw = bytearray((folder / TABLE).read_bytes())
    raw[-200] ^= 1
    (folder / TABLE).write_bytes(raw)


def put_other_tokens(folder):
    """A whole folder of other examples, as if the fingerprint did not cover what has changed."""
    other = folder.parent / "other"
    encode_examples(RECORDS[1:], *(ChatTemplate(build_tokenizer()) for _ in range(2)), **SETTINGS, cache=other)
    (made,) = list_folders(other)
    for name in (TABLE, INDEX):
        os.replace(made / name, folder / name)


DAMAGES = {
    "a flipped bit": flip,
    "a truncated table": lambda folder: os.truncate(folder / TABLE, (folder / TABLE).stat().st_size // 2),
    "no table": lambda folder: (folder / TABLE).unlink(),
    "no index": lambda folder: (folder / INDEX).unlink(),
    "half an index": lambda folder: os.truncate(folder / INDEX, 20),
    "another index": lambda folder: (folder / INDEX).write_text("[]"),
    "other tokens": put_other_tokens,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_examples_are_made_again_with_a_warning(chats, cache, tokenized, caplog, name):
    wanted = list(encode_examples(RECORDS, *chats, **SETTINGS, cache=cache))
    (folder,) = list_folders(cache)
    DAMAGES[name](folder)
    tokenized.clear()
    caplog.clear()
    assert list(encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)) == wanted
    assert tokenized == ["0", "1", "2"]
    assert f"{folder}: damaged examples" in caplog.text
    caplog.clear()
    assert list(encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)) == wanted
    assert "damaged" not in caplog.text
    assert len(tokenized) == 3


# ---- Several jobs ----


def test_jobs_that_begin_at_once_tokenize_once(chats, cache, tokenized, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="distill")
    has_begun, may_go_on = threading.Event(), threading.Event()
    encode = examples.Encoder.encode

    def slow(self, records, counts):
        has_begun.set()
        assert may_go_on.wait(60)
        return encode(self, records, counts)

    def wait(file, operation):
        try:
            flock(file, operation)
        except BlockingIOError:
            may_go_on.set()  # the second job has found the first one at work
            raise

    flock = fcntl.flock
    monkeypatch.setattr(examples.Encoder, "encode", slow)
    monkeypatch.setattr(example_cache.fcntl, "flock", wait)
    found = {}

    def work(name):
        found[name] = list(encode_examples(RECORDS, *chats, **SETTINGS, cache=cache))

    first = threading.Thread(target=work, args=["first"])
    first.start()
    assert has_begun.wait(60)
    work("second")
    first.join()
    assert found["first"] == found["second"] == list(encode_examples(RECORDS, *chats, **SETTINGS))
    assert tokenized == ["0", "1", "2"] * 2  # once to the cache, and once for the comparison
    assert "another job tokenizes the same records" in caplog.text


def test_without_locks_one_of_the_results_is_kept(chats, cache, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(example_cache.fcntl, "flock", fail)
    make, inner = examples.Encoder.make, []

    def meet(self, records, path=None):
        if not inner:
            inner.append(None)
            inner[0] = list(encode_examples(RECORDS, *chats, **SETTINGS, cache=cache))
        return make(self, records, path)

    monkeypatch.setattr(examples.Encoder, "make", meet)
    assert list(encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)) == inner[0]
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_job_leaves_is_not_used_and_removed(chats, cache, monkeypatch):
    process = os.fork()
    if not process:
        monkeypatch.setattr(examples.Encoder, "encode", lambda *_: os._exit(0))
        encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)
        os._exit(1)
    assert os.waitpid(process, 0)[1] == 0
    assert list(cache.glob(".*.tmp"))
    assert list_folders(cache) == []
    found = encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)
    assert list(found) == list(encode_examples(RECORDS, *chats, **SETTINGS))
    assert list(cache.glob(".*")) == []


def test_the_temporary_folder_of_a_running_job_stays(chats, cache):
    running = cache / example_folders.name_unfinished("0" * 32)
    elsewhere = cache / f".{'0' * 32}@another-machine@1@0.tmp"
    for folder in (running, elsewhere):
        folder.mkdir(parents=True)
    encode_examples(RECORDS, *chats, **SETTINGS, cache=cache)
    assert running.exists()
    assert elsewhere.exists()


# ---- Splits that change ----


def test_examples_of_earlier_records_of_a_split_are_removed(chats, cache, tmp_path, records):
    paths = tmp_path / "data", tmp_path / "others"
    for path in paths:
        encode_examples(SplitReader(write_splits(path, records, records[:2]), "train"), chats[0], None, 10_000,
                        cache=cache)  # fmt: skip
    (folder,) = list_folders(cache)  # of both, which have the same records
    encode_examples(SplitReader(paths[0], "val"), chats[0], None, 10_000, cache=cache)
    (val,) = set(list_folders(cache)) - {folder}
    assert all(is_current(one, read_facts(one), {}) for one in (folder, val))
    for path in paths[0].iterdir():
        path.unlink()
    paths[0].rmdir()
    write_splits(paths[0], records[1:], records[:2])
    assert not is_current(folder, read_facts(folder), {})
    found = encode_examples(SplitReader(paths[0], "train"), chats[0], None, 10_000, cache=cache)
    assert [one["uid"] for one in found] == [record["uid"] for record in records[1:]]
    assert folder not in list_folders(cache)
    assert val in list_folders(cache)
    assert len(list_folders(cache)) == 2


def test_examples_of_earlier_software_stay_for_trainings_that_read_them(chats, cache, tmp_path, records, monkeypatch):
    reader = SplitReader(write_splits(tmp_path / "data", records, []), "train")
    encode_examples(reader, chats[0], None, 10_000, cache=cache)
    (folder,) = list_folders(cache)
    monkeypatch.setattr(example_folders, "version", lambda name: "0")
    encode_examples(reader, chats[0], None, 10_000, cache=cache)
    assert folder in list_folders(cache)
    assert len(list_folders(cache)) == 2
