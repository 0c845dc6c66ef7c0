"""Splits (train, val, test): assign the teacher's answers to them, write their files, and read them back."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from distill.common.errors import InputError, describe, format_problem, raise_problems
from distill.common.files import dump_json, escape_line, read_jsonl, unescape_line, write_atomically
from distill.common.hashing import HASHES, hash_uid
from distill.records.conversations import (
    Fields,
    find_answer_start,
    find_order_problem,
    format_turns,
    pick_context,
    read_conversation,
    to_fields,
)
from distill.records.raw_records import check_context, check_message, get_split_key

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
FIELDS = {
    "id": int,
    "uid": str,
    "sample": int,
    "system": str,
    "prompt": str,
    "raw_output": str,
    "label": int | float | None,
    "origin": str,
    "usable": bool,
    "problem": str | None,
}


def get_split(key: str, seed: int, val_fraction: Fraction, test_fraction: Fraction) -> str:
    """Return a record's split. It depends on the hash of seed and key alone, so other records never change it.

    Test is the lower end of the hash range and val the upper end. A changed fraction therefore moves records between
    that split and train only.
    """
    place = hash_uid("split", seed, key)
    if place < test_fraction * HASHES:
        return "test"
    return "val" if place >= (1 - val_fraction) * HASHES else "train"


def check_answer(record: dict[str, Any], path: Path, line: int) -> None:
    """Check the fields of a teacher's answer.

    Raises:
        InputError: a field is missing or has another type; names file, line and field.
    """
    raise_problems(
        (
            format_problem(path, line, field, str(getattr(kind, "__name__", kind)), record.get(field, "nothing"))
            for field, kind in FIELDS.items()
            if field not in record or not isinstance(record[field], kind)
        ),
        "teacher's answers",
    )


def read_usable(path: Path, unusable: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the usable answers and count the others in `unusable` by their problem.

    Raises:
        InputError: a record is malformed, or the answers to a prompt are not consecutive and ordered by sample.
    """
    lines: dict[str, int] = {}
    last = ("", -1)
    for line, record in read_jsonl(path):
        record.setdefault("sample", 0)  # missing in files of versions with one answer per prompt
        check_answer(record, path, line)
        uid, sample = record["uid"], record["sample"]
        first = lines.setdefault(uid, line)
        if uid != last[0] and first != line:
            expected = f"the answers to a prompt on consecutive lines (line {first} has the same prompt)"
            raise InputError(format_problem(path, line, "uid", expected, uid))
        if uid == last[0] and sample <= last[1]:
            expected = f"a number above {last[1]} for another answer to the prompt of line {first}"
            raise InputError(format_problem(path, line, "sample", expected, sample))
        last = (uid, sample)
        if record["usable"]:
            yield record
        else:
            unusable[record["problem"] or "unknown"] += 1


def get_chat(record: dict[str, Any], target: str | None = None) -> dict[str, Any]:
    """Convert a teacher's answer to a record of a split's .jsonl file.

    Args:
        record: the teacher's answer.
        target: assistant turn: `teacher` for the teacher's raw output, `original` for the record's original output.
            None is like `teacher`, without a `target` field in the result.
    """
    answer = record["original_output"] if target == "original" else record["raw_output"]
    messages = [*read_conversation(record).messages, {"role": "assistant", "content": answer}]
    known = {key: record[key] for key in ("id", "uid", "sample", "origin", "label", "finish_reason")}
    if target == "original":
        known["finish_reason"] = "stop"  # an original answer is never cut off
    mixed = {"target": target} if target else {}
    original = {"original_output": record["original_output"]} if "original_output" in record else {}
    context = {name: value for name, value in pick_context(record).items() if name != "turns"}
    return {**known, **mixed, **original, "messages": messages, **context}


def read_chat(chat: dict[str, Any]) -> tuple[Fields, str]:
    """Return (fields of the prompt, answer) of a record of a split; see `records/conversations.py` for the fields."""
    *messages, answer = chat["messages"]
    return to_fields(messages, chat), answer["content"]


def choose_target(record: dict[str, Any], split: str, original_fraction: Fraction, seed: int) -> str | None:
    """Return the target that a record is trained on, `teacher` or `original`; None if targets are not mixed.

    Records in test and records without an original answer always have the teacher's answer as target.
    """
    if not original_fraction:
        return None
    is_original = hash_uid("target", seed, record["uid"]) < original_fraction * HASHES
    return "original" if split != "test" and is_original and record.get("original_output") else "teacher"


def get_lines(chat: dict[str, Any]) -> tuple[str, str]:
    """Return (source, target) of a chat record, not escaped: system text and turns with blank lines between; answer."""
    fields, answer = read_chat(chat)
    return f"{fields['system']}\n\n{format_turns(fields)}", answer


def write_chat(chat: dict[str, Any], files: dict[str, IO[str]]) -> None:
    """Write a record to the three files of its split."""
    source, target = get_lines(chat)
    files["source"].write(escape_line(source) + "\n")
    files["target"].write(escape_line(target) + "\n")
    files["jsonl"].write(dump_json(chat) + "\n")


@contextmanager
def open_splits(folder: Path) -> Iterator[dict[str, dict[str, IO[str]]]]:
    """Open the three files of each split for atomic writing, as `files[split][kind]`.

    If the block succeeds, the .jsonl files are renamed last; if it fails, no file is changed.
    """
    with ExitStack() as stack:
        # The stack closes files in reverse order, and closing a file renames it.
        files: dict[str, dict[str, IO[str]]] = {split: {} for split in SPLITS}
        for kind in ("jsonl", "target", "source"):
            for split in SPLITS:
                files[split][kind] = stack.enter_context(write_atomically(folder / f"{split}.{kind}"))
        yield files


@dataclass
class Counts:
    """What became of the answers.

    Attributes:
        records: records written, by split.
        unusable: unusable answers, by problem.
        further: usable answers left out because an earlier answer to the same prompt was written.
        originals: records whose target is the original answer.
    """

    records: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    further: int = 0
    originals: int = 0


def assign_answers(
    answers: Path,
    val_fraction: Fraction,
    test_fraction: Fraction,
    seed: int,
    original_fraction: Fraction,
    counts: Counts,
) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yield (split, target, teacher's answer) of each answer that a split contains; see `split_answers`.

    Args:
        answers, val_fraction, test_fraction, seed, original_fraction: see `split_answers`.
        counts: counts the answers that no split contains; `target` is that of `choose_target`.

    Raises:
        InputError: a record is malformed or duplicate.
    """
    last = ""
    for record in read_usable(answers, counts.unusable):
        split = get_split(get_split_key(record), seed, val_fraction, test_fraction)
        target = choose_target(record, split, original_fraction, seed)
        if (split != "train" or target == "original") and record["uid"] == last:
            counts.further += 1
            continue
        last = record["uid"]
        yield split, target, record


def split_answers(
    answers: Path,
    val_fraction: Fraction,
    test_fraction: Fraction,
    seed: int,
    out: Path,
    original_fraction: Fraction = Fraction(0),
) -> Counter[str]:
    """Write the usable answers as `{train,val,test}.{source,target,jsonl}` into a folder.

    If a prompt has several answers, train contains all of them; val and test contain the first, so that each prompt
    counts once. A prompt whose target is the original answer is written once in every split. Each file is written
    atomically, the .jsonl files last; on an error no file is changed.

    Args:
        answers: JSONL file of the teacher's answers.
        val_fraction: share of the prompts in val.
        test_fraction: share of the prompts in test.
        seed: seed that decides the split of each prompt.
        out: folder of the nine files.
        original_fraction: share of the prompts in train and val whose target is the original answer.

    Returns:
        Number of records by split.

    Raises:
        InputError: a record is malformed or duplicate, the fractions leave nothing for train, or train or test is
            empty.
    """
    if val_fraction + test_fraction >= 1:
        raise InputError(
            f"val_fraction + test_fraction: expected a sum below 1, found {val_fraction} + {test_fraction}"
        )
    counts = Counts()
    with open_splits(out) as files:
        for split, target, record in assign_answers(
            answers, val_fraction, test_fraction, seed, original_fraction, counts
        ):
            write_chat(get_chat(record, target), files[split])
            counts.records[split] += 1
            counts.originals += target == "original"
        check_counts(answers, counts, val_fraction, test_fraction)
        if original_fraction:
            text = "%s: %d of the records in train and val have the original answer as target"
            logger.info(text, answers, counts.originals)
    return counts.records


def check_counts(answers: Path, counts: Counts, val_fraction: Fraction, test_fraction: Fraction) -> None:
    """Log a summary; warn if val is empty although its fraction is not 0.

    Raises:
        InputError: train or test is empty.
    """
    records, unusable = counts.records, counts.unusable
    parts = " + ".join(f"{records[split]} {split}" for split in SPLITS)
    parts += f" + {counts.further} further answers to the same prompts" if counts.further else ""
    reasons = "".join(f"; {n} {problem}" for problem, n in unusable.most_common())
    total = records.total() + counts.further + unusable.total()
    summary = f"{answers}: {total} answers = {parts} + {unusable.total()} unusable{reasons}"
    if not records["train"] or not records["test"]:
        empty = " and ".join(split for split in ("train", "test") if not records[split])
        advice = "take more records (mix.grpo_fraction, mix.sft_fraction), raise split.test_fraction"
        if unusable.total() > records.total():
            advice = "look at raw_output of the unusable answers (teacher.model, teacher.adapter, max_new_tokens)"
        fractions = f"val_fraction {float(val_fraction):g}, test_fraction {float(test_fraction):g}"
        raise InputError(f"no record for {empty}; {summary}\n  {fractions}: {advice} or change split.seed")
    logger.info("%s", summary)
    if val_fraction and not records["val"]:
        logger.warning("%s: val is empty, so training cannot report a validation loss", answers)


def check_chat(chat: dict[str, Any], path: Path, line: int) -> None:
    """Check that a record's messages are system, user and assistant, each with text, with further turns between.

    Raises:
        InputError: they are not; names file and line.
    """
    messages = chat.get("messages")
    is_valid = (
        isinstance(messages, list)
        and not any(check_message(message, "messages") for message in messages)
        and find_answer_start(messages) == len(messages) - 1
        and isinstance(messages[-1].get("content"), str)
        and find_order_problem(messages) is None
    )
    if not is_valid:
        raise InputError(format_problem(path, line, "messages", "system, user and assistant with text", messages))
    raise_problems([format_problem(path, line, *fault) for fault in check_context(chat)], "split")


def read_line(file: IO[bytes], path: Path, line: int) -> str:
    """Read and unescape the next line of a .source or .target file.

    Raises:
        InputError: the file has no further whole line, or the line is not valid; names file and line.
    """
    raw = file.readline()
    if not raw.endswith(b"\n"):
        expected = "a whole line for each record of the .jsonl file"
        raise InputError(format_problem(path, line, "line", expected, raw or "the end of the file"))
    try:
        return unescape_line(raw[:-1].decode())
    except ValueError as error:
        raise InputError(format_problem(path, line, "line", f"escaped UTF-8 text ({error})", raw)) from None


def stream_split(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the chat records of a split (`train`, `val` or `test`).

    Each record is checked against its lines in .source and .target.

    Raises:
        InputError: a file is malformed, or the three files differ; names file and line.
    """
    paths = {kind: Path(folder) / f"{name}.{kind}" for kind in ("source", "target", "jsonl")}
    with open(paths["source"], "rb") as source, open(paths["target"], "rb") as target:
        number = 0
        for number, (line, chat) in enumerate(read_jsonl(paths["jsonl"]), start=1):
            check_chat(chat, paths["jsonl"], line)
            for file, kind, expected in zip((source, target), ("source", "target"), get_lines(chat), strict=True):
                found = read_line(file, paths[kind], number)
                if found != expected:
                    wanted = f"the text of {paths['jsonl'].name}, {describe(expected)}"
                    raise InputError(format_problem(paths[kind], number, "line", wanted, found))
            yield chat
        for file, kind in ((source, "source"), (target, "target")):
            if surplus := file.readline():
                raise InputError(format_problem(paths[kind], number + 1, "line", "the end of the file", surplus))


def read_split(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read all records of a split, checked as in `stream_split`.

    Each has `id`, `uid`, `sample`, `origin`, `label`, `finish_reason` and `messages`, and may have `tools` and
    `teacher_prompt`. Several records in train may have the same uid, each with a different sample.
    """
    return list(stream_split(folder, name))
