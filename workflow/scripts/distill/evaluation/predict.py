"""Predictions: a model's answers to the test prompts, with the likelihood of the teacher's answers."""

import shutil
from pathlib import Path
from typing import Any, cast

from distill.evaluation.likelihood import measure_likelihoods
from distill.generation.cached_engine import CachedEngine
from distill.generation.engine import Engine, ScoringEngine
from distill.generation.sampling import Request, make_request
from distill.records.answer_format import parse_answer
from distill.records.raw_records import get_uid
from distill.records.splits import read_chat

LIKELIHOODS = "likelihoods"  # the folder in a journal of answers


def predict(
    records: list[dict[str, Any]],
    engine: Engine,
    answer_key: str | None,
    likelihood: bool,
    journal: Path,
    is_teacher: bool = False,
) -> list[dict[str, Any]]:
    """Answer the prompts of a split, in its order.

    Args:
        records: records from `read_split`, each prompt once.
        engine: a `ScoringEngine` if `likelihood` is set.
        answer_key: key of the value in an answer; None accepts any text.
        likelihood: also measure the likelihood of the references, which costs another forward pass each.
        journal: folder that keeps the answers and likelihoods, so that a rerun resumes.
        is_teacher: whether the model is the teacher, which sees `teacher_prompt`.

    Returns:
        Each record's fields with `reference` (the teacher's answer), `prediction` and the values parsed from it. With
        `likelihood`, also `nll` (negative log-likelihood of the reference, nats), `nll_tokens` (its tokens) and
        `nll_hits` (tokens that the model ranks first).
    """
    tests = [get_test(record) for record in records]
    answers = generate_answers([make_request(test, to_teacher=is_teacher) for test in tests], engine, journal)
    likelihoods = measure_references(tests, cast(ScoringEngine, engine), journal, is_teacher) if likelihood else []
    predictions = []
    for position, test in enumerate(tests):
        answer = answers[test["uid"]]
        parsed = parse_answer(answer["raw_output"], answer_key)
        prediction = {name: value for name, value in test.items() if name != "is_whole"} | {
            "prediction": answer["raw_output"],
            "parsed_value": parsed.value,
            "usable": parsed.problem is None,
            "problem": parsed.problem,
            "finish_reason": answer["finish_reason"],
            "generated_tokens": answer["generated_tokens"],
        }
        predictions.append(prediction | (likelihoods[position] if likelihood else {}))
    return predictions


def find_journal(folder: Path, out: Path, code: str) -> Path:
    """The folder that keeps the answers of `…/{model}/{category}.{kind}.jsonl`, for one digest of the code.

    >>> str(find_journal(Path("kept"), Path("output/student/banks.predictions.jsonl"), "0a"))
    'kept/student/banks.predictions/0a'
    """
    return folder / out.parent.name / out.stem / code


def forget_others(journal: Path, engine: Engine, likelihood: bool = False) -> None:
    """Remove answers and likelihoods that earlier models or earlier code left for the same output.

    Args:
        journal, engine: see `predict`.
        likelihood: whether the engine is a `ScoringEngine` whose likelihoods are kept.
    """
    own = {journal, journal / engine.fingerprint()}
    others = {*journal.parent.iterdir(), *journal.iterdir()} - own
    if likelihood:
        kept = journal / LIKELIHOODS
        others -= {kept}
        others |= set(kept.iterdir()) - {kept / f"{cast(ScoringEngine, engine).score_fingerprint()}.jsonl"}
    for path in others:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # a leftover only takes space
        else:
            path.unlink(missing_ok=True)


def get_test(record: dict[str, Any]) -> dict[str, Any]:
    """A split's record with its messages as `system`, `prompt` and `reference`, see also `read_chat`."""
    fields, reference = read_chat(record)
    kept = {name: record[name] for name in ("id", "uid", "origin", "label")}
    is_whole = record["finish_reason"] != "length"
    return kept | fields | {"reference": reference, "is_whole": is_whole}


def generate_answers(requests: list[Request], engine: Engine, journal: Path) -> dict[str, dict[str, Any]]:
    """The engine's answers, as records of the cache by uid."""
    uids = {request.uid for request in requests}
    cached = CachedEngine(engine, journal / engine.fingerprint(), None, uids, "predictions")
    cached.generate(requests)
    return {uid: cached.get_answers(uid)[0] for uid in uids}


def measure_references(
    tests: list[dict[str, Any]], engine: ScoringEngine, journal: Path, is_teacher: bool
) -> list[dict[str, Any]]:
    """The likelihoods of the references; see `predict` and `measure_likelihoods`."""
    answers = [test | {"answer": test["reference"]} for test in tests]
    return measure_likelihoods(engine, answers, journal / LIKELIHOODS, "references", is_teacher)


def answer_questions(questions: list[str], system: str, engine: Engine, journal: Path) -> list[dict[str, Any]]:
    """Answer fixed questions, which have no reference, in their order; `id` counts from 1. See also `predict`."""
    asked: list[dict[str, Any]] = [
        {"id": number, "uid": get_uid(system, question), "system": system, "prompt": question}
        for number, question in enumerate(questions, start=1)
    ]
    answers = generate_answers([make_request(one) for one in asked], engine, journal)
    names = {"raw_output": "prediction", "finish_reason": "finish_reason", "generated_tokens": "generated_tokens"}
    return [one | {new: answers[one["uid"]][old] for old, new in names.items()} for one in asked]
