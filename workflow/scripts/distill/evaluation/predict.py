"""A model's answers to test prompts, beside the teacher's."""

import shutil
from pathlib import Path
from typing import Any, cast

from distill.generation.cached_engine import CachedEngine
from distill.generation.engine import Engine, ScoringEngine
from distill.generation.sampling import Request
from distill.records.answer_format import parse_answer
from distill.records.raw_records import get_uid


def predict(
    records: list[dict[str, Any]], engine: Engine, answer_key: str | None, likelihood: bool, journal: Path
) -> list[dict[str, Any]]:
    """Answer the prompts of a split, in its order.

    Args:
        records: of `read_split`, each prompt once.
        engine: a `ScoringEngine` if `likelihood` is set.
        answer_key: of the answer contract; None accepts every text.
        likelihood: measure it; it costs another pass over the model.
        journal: folder where answers are kept, so that a run that was stopped goes on, and one again is a read.

    Returns:
        For each record its own fields with `reference` (the teacher's answer), `prediction` and what was parsed of
        it, and with `likelihood` of the reference `nll` (negative log-likelihood in nats), `nll_tokens` (its tokens)
        and `nll_hits` (those of them that are the model's likeliest).
    """
    tests = [get_test(record) for record in records]
    answers = generate_answers(tests, engine, journal)
    likelihoods = measure_likelihoods(tests, "reference", cast(ScoringEngine, engine)) if likelihood else []
    predictions = []
    for position, test in enumerate(tests):
        generated = answers[test["uid"]]
        text = generated["raw_output"]
        parsed = parse_answer(text, answer_key)
        found = {"prediction": text, "parsed_value": parsed.value, "usable": parsed.problem is None}
        found |= {"problem": parsed.problem}
        found |= {name: generated[name] for name in ("finish_reason", "generated_tokens")}
        if likelihood:
            found |= likelihoods[position]
        predictions.append({name: value for name, value in test.items() if name != "is_whole"} | found)
    return predictions


def find_journal(folder: Path, out: Path, code: str) -> Path:
    """Where the answers of `…/{model}/{category}.{kind}.jsonl` are kept, apart for each digest of the code.

    >>> str(find_journal(Path("kept"), Path("output/student/banks.predictions.jsonl"), "0a"))
    'kept/student/banks.predictions/0a'
    """
    return folder / out.parent.name / out.stem / code


def forget_others(journal: Path, engine: Engine) -> None:
    """Remove the kept answers of models and code that were there before for the same output."""
    own = {journal, journal / engine.fingerprint()}
    for path in {*journal.parent.iterdir(), *journal.iterdir()} - own:
        shutil.rmtree(path, ignore_errors=True)  # it is in no one's way


def get_test(record: dict[str, Any]) -> dict[str, Any]:
    """A split's record with its messages by name."""
    system, prompt, reference = (message["content"] for message in record["messages"])
    kept = {name: record[name] for name in ("id", "uid", "origin", "label")}
    is_whole = record["finish_reason"] != "length"
    return kept | {"system": system, "prompt": prompt, "reference": reference, "is_whole": is_whole}


def generate_answers(tests: list[dict[str, Any]], engine: Engine, journal: Path) -> dict[str, dict[str, Any]]:
    """The engine's answer to each test prompt, by uid, as the cache keeps it."""
    requests = [Request(test["id"], test["uid"], test["system"], test["prompt"]) for test in tests]
    uids = {request.uid for request in requests}
    cached = CachedEngine(engine, journal / engine.fingerprint(), None, uids, "predictions")
    cached.generate(requests)
    return {uid: cached.get_answers(uid)[0] for uid in uids}


def measure_likelihoods(tests: list[dict[str, Any]], field: str, engine: ScoringEngine) -> list[dict[str, Any]]:
    """`nll`, `nll_tokens` and `nll_hits` of a field of each test: see `predict`."""
    from distill.evaluation.likelihood import answer_likelihoods  # imports transformers

    answers = [test | {"answer": test[field]} for test in tests]
    found = answer_likelihoods(engine, answers)
    return [{"nll": one.nll, "nll_tokens": one.tokens, "nll_hits": one.hits} for one in found]


def answer_questions(questions: list[str], system: str, engine: Engine, journal: Path) -> list[dict[str, Any]]:
    """Answer questions that have no reference, in their order; `id` counts from 1. See `predict`."""
    asked: list[dict[str, Any]] = [
        {"id": number, "uid": get_uid(system, question), "system": system, "prompt": question}
        for number, question in enumerate(questions, start=1)
    ]
    answers = generate_answers(asked, engine, journal)
    names = {"raw_output": "prediction", "finish_reason": "finish_reason", "generated_tokens": "generated_tokens"}
    return [one | {new: answers[one["uid"]][old] for old, new in names.items()} for one in asked]
