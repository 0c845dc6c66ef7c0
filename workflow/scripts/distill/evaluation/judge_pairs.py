"""Verdicts of a judge on a category's answers: asked once each, kept in a journal, and combined over both orders."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError, cut, raise_problems
from distill.common.files import read_jsonl
from distill.evaluation.judge_client import JudgeClient
from distill.evaluation.pairs import (
    PLACES,
    Pair,
    find_folder,
    is_contradictory,
    pair_answers,
    read_verdict,
    score_verdicts,
)
from distill.evaluation.pairwise_options import PairwiseOptions
from distill.evaluation.prediction_files import check_same_records, find_problems, is_count, is_string, load_predictions
from distill.generation.cached_engine import CachedEngine
from distill.generation.engine import CONCURRENCY
from distill.generation.openai_engine import OpenAIEngine

logger = logging.getLogger(__name__)

MOST_UNREADABLE = 0.1  # share of the verdicts; more say that the judge or its settings do not fit
LEAST_UNREADABLE = 3  # fewer are no reason to stop, unless all are unreadable
SHOWN = 300  # characters of an unreadable verdict in messages
ASKED = {"id": ("a whole number from 0", is_count)} | dict.fromkeys(("system", "prompt"), ("a string", is_string))

Record = dict[str, Any]


def load_answers(predictions: Path, against: Path) -> tuple[list[Record], list[Record]]:
    """Load the predictions of two models.

    Raises:
        InputError: a record is broken, or the files hold different prompts or several categories.
    """
    both = {}
    for path in map(str, (predictions, against)):
        raise_problems(find_problems(path, read_jsonl(path), ASKED), "predictions")
        both[path] = load_predictions([path])
        if len(names := sorted({record["category"] for record in both[path]})) > 1:
            raise InputError(f"{path}: expected predictions of one category, found {', '.join(names)}")
    check_same_records(both)
    return both[str(predictions)], both[str(against)]


def judge_pairs(
    predictions: Sequence[Record],
    against: Sequence[Record],
    instruction: str,
    options: PairwiseOptions,
    journal: Path,
) -> list[Record]:
    """Judge the answers of a model against those of another one.

    Args:
        predictions, against: from `load_answers`.
        instruction: from `read_instruction`.
        options: the judge.
        journal: folder that keeps all verdicts, so that a rerun resumes and asks for changed answers only.

    Returns:
        Records from `combine`, of the chosen test records in the order of `predictions`.

    Raises:
        InputError: the server fails, or too many verdicts are unreadable; what was answered stays in the journal.
    """
    pairs = pair_answers(predictions, against, instruction, options.records)
    requests = {request.uid: request for pair in pairs for request in pair.requests}
    concurrency = options.concurrency if isinstance(options.concurrency, int) else CONCURRENCY["openai"]
    engine = OpenAIEngine(JudgeClient(options), concurrency)
    folder = find_folder(journal, predictions[0]["category"], options)
    cached = CachedEngine(engine, folder, None, requests, "verdicts", "skip", options.max_new_tokens)
    cached.generate(list(requests.values()))
    judged = [combine(pair, cached, options.against) for pair in pairs]
    check_readable(judged)
    return judged


def combine(pair: Pair, cached: CachedEngine, against: str) -> Record:
    """Return the verdicts on a pair of answers.

    Args:
        pair: the answers.
        cached: has the judge's replies.
        against: name of the model that the answer is compared with.

    Returns:
        `uid` and `category`; `against`; `answers`, the digests of both answers; `score`, see `score_verdicts`;
        `is_contradictory`; and `verdicts` in both orders, each with the `place` of the model's answer, the `verdict`,
        why there is none (`problem`) and the judge's reply (`raw_output`). Identical answers are a tie without
        verdicts.
    """
    both = [digest_of(record["prediction"]) for record in (pair.model, pair.against)]
    verdicts = []
    for place, request in zip(PLACES, pair.requests, strict=False):
        verdict: str | None = None
        problem: str | None = "refused by the server"
        text = None
        for reply in cached.get_answers(request.uid):
            text = reply["raw_output"]
            verdict, problem = read_verdict(text, reply["finish_reason"])
        verdicts.append({"place": place, "verdict": verdict, "problem": problem, "raw_output": text})
    read = [one["verdict"] for one in verdicts]
    return {
        "uid": pair.model["uid"],
        "category": pair.model["category"],
        "against": against,
        "answers": both,
        "score": score_verdicts(read) if read else 0.5,
        "is_contradictory": is_contradictory(read) if read else None,
        "verdicts": verdicts,
    }


def list_unreadable(judged: Sequence[Record]) -> Iterator[str]:
    """Yield a line for each verdict that is unreadable, with its text."""
    for record in judged:
        for one in record["verdicts"]:
            if one["problem"]:
                text = f": {cut(repr(one['raw_output']), SHOWN)}" if one["raw_output"] is not None else ""
                yield f"uid {record['uid']}, model's answer as {one['place']}: {one['problem']}{text}"


def check_readable(judged: Sequence[Record]) -> None:
    """Log the verdicts that are unreadable.

    Raises:
        InputError: there are too many of them; shows one.
    """
    asked, unreadable = sum(len(record["verdicts"]) for record in judged), list(list_unreadable(judged))
    count = len(unreadable)
    if count and (count == asked or (count >= LEAST_UNREADABLE and count > MOST_UNREADABLE * asked)):
        found = f"{count} of {asked} unreadable (at most {MOST_UNREADABLE:.0%} may be)"
        remedy = "raise evaluation.pairwise.max_new_tokens if they are cut off, or choose another judge or instruction"
        raise InputError(f"expected readable verdicts, found {found}, for example\n  {unreadable[0]}\n{remedy}")
    if count:
        logger.warning("%d of %d verdicts are unreadable; their records do not count:", count, asked)
    for line in unreadable:
        logger.warning("  %s", line)


def describe_verdicts(judged: Sequence[Record]) -> str:
    """Return the numbers of a category's verdicts as one sentence, for the log."""
    scores = [record["score"] for record in judged if record["score"] is not None]
    wins, losses = (sum(one > 0.5 for one in scores), sum(one < 0.5 for one in scores))
    same = sum(not record["verdicts"] for record in judged)
    contradictory = sum(record["is_contradictory"] is True for record in judged)
    ties = f"{len(scores) - wins - losses} ties ({same} with identical answers, {contradictory} contradictory)"
    return f"{len(judged)} records: {wins} wins, {losses} losses, {ties}"
