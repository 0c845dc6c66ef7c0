"""Train, val and test: which record goes where, the files of a split, and reading them back."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from distill.common.errors import InputError, describe, format_problem, raise_problems
from distill.common.files import dump_json, escape_line, read_jsonl, unescape_line, write_atomically
from distill.common.hashing import HASHES, hash_uid

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


def get_split(uid: str, seed: int, val_fraction: Fraction, test_fraction: Fraction) -> str:
    """The split of a record, by the hash of seed and uid alone: other records never move it.

    Test is the lower end of the unit interval, val the upper one, so that a changed fraction moves records between
    that split and train only, never between val and test.
    """
    place = hash_uid("split", seed, uid)
    if place < test_fraction * HASHES:
        return "test"
    return "val" if place >= (1 - val_fraction) * HASHES else "train"


def check_answer(record: dict[str, Any], path: Path, line: int) -> None:
    """Refuse what no teacher step writes.

    Raises:
        InputError: a field is missing or of another type; names file, line and field.
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
    """Yield the usable answers; counts the others in `unusable` by their problem.

    Raises:
        InputError: a record is malformed, or the answers of a prompt are not one after the other, by sample.
    """
    lines: dict[str, int] = {}
    last = ("", -1)
    for line, record in read_jsonl(path):
        record.setdefault("sample", 0)  # not there in files from before a prompt could have several answers
        check_answer(record, path, line)
        uid, sample = record["uid"], record["sample"]
        first = lines.setdefault(uid, line)
        if uid != last[0] and first != line:
            expected = f"a prompt's answers one after the other (line {first} has one of this prompt)"
            raise InputError(format_problem(path, line, "uid", expected, uid))
        if uid == last[0] and sample <= last[1]:
            expected = f"another answer of the prompt of line {first}, a number above {last[1]}"
            raise InputError(format_problem(path, line, "sample", expected, sample))
        last = (uid, sample)
        if record["usable"]:
            yield record
        else:
            unusable[record["problem"] or "unknown"] += 1


def get_chat(record: dict[str, Any], target: str | None = None) -> dict[str, Any]:
    """The line of a split's .jsonl: the teacher's raw output is the assistant turn.

    Args:
        target: `original` takes the record's original output instead. Where it is given, the line says which it has.
    """
    answer = record["original_output"] if target == "original" else record["raw_output"]
    texts = {"system": record["system"], "user": record["prompt"], "assistant": answer}
    messages = [{"role": role, "content": text} for role, text in texts.items()]
    known = {key: record[key] for key in ("id", "uid", "sample", "origin", "label", "finish_reason")}
    if target == "original":
        known["finish_reason"] = "stop"  # a person's answer is whole
    mixed = {"target": target} if target else {}
    original = {"original_output": record["original_output"]} if "original_output" in record else {}
    return {**known, **mixed, **original, "messages": messages}


def choose_target(record: dict[str, Any], split: str, original_fraction: Fraction, seed: int) -> str | None:
    """What a record is trained on, `teacher` or `original`; None where targets are not mixed.

    Test is the teacher's answer always, and so is a record without an original one.
    """
    if not original_fraction:
        return None
    is_original = hash_uid("target", seed, record["uid"]) < original_fraction * HASHES
    return "original" if split != "test" and is_original and record.get("original_output") else "teacher"


def get_lines(chat: dict[str, Any]) -> tuple[str, str]:
    """(source, target) of a chat record, not yet escaped: the prompt's texts with a blank line between, the answer."""
    system, user, assistant = (message["content"] for message in chat["messages"])
    return f"{system}\n\n{user}", assistant


def write_chat(chat: dict[str, Any], files: dict[str, IO[str]]) -> None:
    """Write one record to the three files of its split."""
    source, target = get_lines(chat)
    files["source"].write(escape_line(source) + "\n")
    files["target"].write(escape_line(target) + "\n")
    files["jsonl"].write(dump_json(chat) + "\n")


def split_answers(
    answers: Path,
    val_fraction: Fraction,
    test_fraction: Fraction,
    seed: int,
    out: Path,
    original_fraction: Fraction = Fraction(0),
) -> Counter[str]:
    """Write `{train,val,test}.{source,target,jsonl}` of the usable answers into `out`.

    Of a prompt with several, train takes all; val and test take the first, so that each prompt counts once. Of a prompt
    whose target is the original answer each split takes one.

    Args:
        original_fraction: share of the prompts in train and val whose target is the original answer.

    Each file appears whole or not at all, the .jsonl files last; on an error none of them is touched.

    Returns:
        How many records each split holds.

    Raises:
        InputError: malformed or duplicate records, fractions that leave nothing to train, empty train or test.
    """
    if val_fraction + test_fraction >= 1:
        raise InputError(f"val and test fraction must be below 1 together, found {val_fraction} and {test_fraction}")
    counts: Counter[str] = Counter()
    unusable: Counter[str] = Counter()
    with ExitStack() as stack:
        # The stack closes in reverse, and closing gives a file its name: what is opened first appears last.
        files: dict[str, dict[str, IO[str]]] = {split: {} for split in SPLITS}
        for kind in ("jsonl", "target", "source"):
            for split in SPLITS:
                files[split][kind] = stack.enter_context(write_atomically(out / f"{split}.{kind}"))
        further, originals, last = 0, 0, ""
        for record in read_usable(answers, unusable):
            split = get_split(record["uid"], seed, val_fraction, test_fraction)
            target = choose_target(record, split, original_fraction, seed)
            if (split != "train" or target == "original") and record["uid"] == last:
                further += 1
                continue
            last = record["uid"]
            write_chat(get_chat(record, target), files[split])
            counts[split] += 1
            originals += target == "original"
        check_counts(answers, counts, further, unusable, val_fraction, test_fraction)
        if original_fraction:
            logger.info("%s: %d of the records in train and val have the original answer as target", answers, originals)
    return counts


def check_counts(
    answers: Path,
    counts: Counter[str],
    further: int,
    unusable: Counter[str],
    val_fraction: Fraction,
    test_fraction: Fraction,
) -> None:
    """Log the summary; an empty val that was asked for is a warning.

    Args:
        further: usable answers to prompts that count once, beyond each one's first.

    Raises:
        InputError: train or test holds no record.
    """
    shares = " + ".join(f"{counts[split]} {split}" for split in SPLITS)
    reasons = "".join(f"; {n} {problem}" for problem, n in unusable.most_common())
    shares += f" + {further} further ones of prompts that count once" if further else ""
    total = counts.total() + further + unusable.total()
    summary = f"{answers}: {total} answers = {shares} + {unusable.total()} unusable{reasons}"
    if not counts["train"] or not counts["test"]:
        empty = " and ".join(split for split in ("train", "test") if not counts[split])
        advice = "take more records (mix.grpo_fraction, mix.sft_fraction), raise split.test_fraction"
        if unusable.total() > counts.total():
            advice = "look at raw_output of the unusable answers (teacher.model, teacher.adapter, max_new_tokens)"
        fractions = f"val_fraction {float(val_fraction):g}, test_fraction {float(test_fraction):g}"
        raise InputError(f"no record for {empty}; {summary}\n  {fractions}: {advice} or change split.seed")
    logger.info("%s", summary)
    if val_fraction and not counts["val"]:
        logger.warning("%s: val holds no record, so that training cannot report a validation loss", answers)


def check_chat(chat: dict[str, Any], path: Path, line: int) -> None:
    """Refuse a record whose messages are not system, user, assistant, each with a text.

    Raises:
        InputError: names file and line.
    """
    messages = chat.get("messages")
    turns = messages if isinstance(messages, list) and all(isinstance(m, dict) for m in messages) else []
    roles = [turn.get("role") for turn in turns if isinstance(turn.get("content"), str)]
    if roles != ["system", "user", "assistant"]:
        raise InputError(format_problem(path, line, "messages", "system, user and assistant with texts", messages))


def read_line(file: IO[bytes], path: Path, line: int) -> str:
    """The next line of a .source or .target file, unescaped.

    Raises:
        InputError: the file ends, or the line is not as `escape_line` writes it; names file and line.
    """
    raw = file.readline()
    if not raw.endswith(b"\n"):
        expected = "a whole line for each record of the .jsonl"
        raise InputError(format_problem(path, line, "line", expected, raw or "the end of the file"))
    try:
        return unescape_line(raw[:-1].decode())
    except ValueError as error:
        raise InputError(format_problem(path, line, "line", f"escaped UTF-8 text ({error})", raw)) from None


def stream_split(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the chat records of a split (`train`, `val` or `test`), checked line by line against .source and .target.

    Raises:
        InputError: the three files do not agree or one is malformed; names file and line.
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
    """The records of a split, as `stream_split` yields them.

    Each has `id`, `uid`, `sample`, `origin`, `label`, `finish_reason` and `messages`; in train, a uid may come several
    times, each with another sample.
    """
    return list(stream_split(folder, name))
