"""What a judge costs: how many verdicts a run may ask for, and how many are not stored yet, before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.evaluation.pairs import (
    JOURNAL,
    JSON_FORM,
    PLACES,
    Pair,
    find_folder,
    format_question,
    pair_answers,
    read_instruction,
)
from distill.evaluation.pairwise_options import PairwiseOptions
from distill.evaluation.prediction_files import Check, find_problems, is_count, is_string
from distill.evaluation.record_choice import choose_records
from distill.generation.answer_cache import read_cache
from distill.generation.sampling import Request
from distill.plan.experiment import (
    Config,
    get_against,
    get_category_config,
    get_judged_models,
    get_pairwise,
    get_prompts,
)
from distill.plan.signals import read_split_options
from distill.plan.start_cache import StartCache
from distill.teacher.signal_size import choose_split

BYTES_PER_TOKEN = 4  # of UTF-8, about
PROMPT: dict[str, Check] = dict.fromkeys(("uid", "system", "prompt"), ("a string", is_string))
ANSWER = PROMPT | {"prediction": ("a string", is_string), "id": ("a whole number from 0", is_count)}

Record = dict[str, Any]


class Cost(NamedTuple):
    """Requests and the tokens that the judge reads.

    Attributes:
        most: the most requests that a run can send.
        most_tokens: about how many tokens they have.
        missing: those that the answers as they are now still need; all of a model whose answers do not exist. Models
            with the same answers share verdicts, but are counted each.
        missing_tokens: about how many tokens they have.
        is_known: whether the prompts exist that the tokens were counted of.
    """

    most: int = 0
    most_tokens: int = 0
    missing: int = 0
    missing_tokens: int = 0
    is_known: bool = True


def add(costs: Sequence[Cost]) -> Cost:
    """Return the sum of costs."""
    most, most_tokens, missing, missing_tokens = (sum(cost[place] for cost in costs) for place in range(4))
    return Cost(most, most_tokens, missing, missing_tokens, all(cost.is_known for cost in costs))


def count_text(*texts: str) -> int:
    """Return about how many tokens texts have."""
    return sum(len(text.encode("utf-8", "replace")) for text in texts) // BYTES_PER_TOKEN


def read_records(path: str | Path, fields: Mapping[str, Check]) -> list[Record]:
    """Return the records of a file; none if it is missing or malformed, which the job that reads it reports."""
    try:
        lines = list(read_jsonl(path))
    except (InputError, OSError):
        return []
    return [] if find_problems(path, lines, fields) else [record for _, record in lines]


def list_prompts(config: Config, category: str) -> list[Record]:
    """Return the test prompts of a category, from the answers to them, or else from all prompts."""
    (against,) = get_against(config)
    if records := read_records(get_predictions(against, category), ANSWER):
        return records
    split, _ = read_split_options(config)
    prompts = read_records(get_prompts(config, category), PROMPT)
    return [prompt for prompt in prompts if choose_split(prompt, split) == "test"]


def get_predictions(model: str, category: str) -> Path:
    """Return the file of a model's answers."""
    return Path(f"output/evaluation/{model}/{category}.predictions.jsonl")


def count_requests(requests: Iterable[Request]) -> int:
    """Return about how many tokens the judge reads in requests."""
    return sum(count_text(request.system, JSON_FORM, request.prompt) for request in requests)


def count_model(pairs: Sequence[Pair] | None, folder: Path, most: int, most_tokens: int) -> Cost:
    """Return the cost of a model.

    Args:
        pairs: its answers with those that they are compared with; None if they do not exist.
        folder: the stored verdicts.
        most: the most requests.
        most_tokens: about how many tokens they have, if all answers are as long as they may be.
    """
    if pairs is None:
        return Cost(most, most_tokens, most, most_tokens)
    requests = {request.uid: request for pair in pairs for request in pair.requests}
    stored = {uid for uid, _ in read_cache(folder, requests)}
    missing = [request for uid, request in requests.items() if uid not in stored]
    # Some texts have more bytes per token than the estimate.
    tokens = max(most_tokens, count_requests(requests.values()))
    return Cost(most, tokens, len(missing), count_requests(missing))


def pair_files(config: Config, model: str, category: str, instruction: str) -> list[Pair] | None:
    """Return the pairs of the answers that exist; None without, or while files that do not match are made again."""
    settings, (against,) = config["evaluation"]["pairwise"], get_against(config)
    mine, theirs = (read_records(get_predictions(name, category), ANSWER) for name in (model, against))
    try:
        return pair_answers(mine, theirs, instruction, settings["records"]) if mine and theirs else None
    except LookupError:
        return None


def count_category(config: Config, category: str, instruction: str, options: PairwiseOptions) -> Cost:
    """Return the cost of a category."""
    answers = 2 * config["evaluation"]["max_new_tokens"]
    prompts = choose_records(list_prompts(config, category), options.records)
    texts = [count_text(instruction, JSON_FORM, format_question(prompt, "", "")) + answers for prompt in prompts]
    most = len(PLACES) * (len(texts) or options.records)
    folder = find_folder(JOURNAL, category, options)
    costs = [
        count_model(pair_files(config, model, category, instruction), folder, most, len(PLACES) * sum(texts))
        for model in get_judged_models(config)
    ]
    return add(costs)._replace(is_known=bool(texts))


def list_files(config: Config, category: str, options: PairwiseOptions) -> list[Path]:
    """Return the files that decide a category's cost."""
    models = [*get_against(config), *get_judged_models(config)]
    stored = sorted(find_folder(JOURNAL, category, options).glob("*.jsonl"))
    return [Path(get_prompts(config, category)), *(get_predictions(model, category) for model in models), *stored]


def describe_pairwise(config: Config, categories: Sequence[str], cache: StartCache) -> list[str]:
    """Describe how many verdicts a judge may be asked for, and how many are not stored; no line without a judge.

    Raises:
        InputError: the file with the judge's instruction is missing or empty.
    """
    settings = get_pairwise(config)
    if settings is None:
        return []
    options, instruction = PairwiseOptions(**settings), read_instruction(settings["prompt"])
    costs = []
    for category in categories:
        own = get_category_config(config, category)
        files = list_files(own, category, options)
        # The list of files is part of the key, since the verdicts of each job are in a file of their own.
        decisive = [instruction, own["evaluation"], config["split"], list(map(str, files))]
        counted = f"verdicts of {category}: {digest_of(decisive)}"
        costs.append(Cost(*cache.get(counted, partial(count_category, own, category, instruction, options), files)))
    return [render(add(costs), options, len(get_judged_models(config)), len(categories))] if costs else []


def render(cost: Cost, options: PairwiseOptions, models: int, categories: int) -> str:
    """Return the line of a cost."""
    tokens = f"about {cost.most_tokens:,} tokens to read" if cost.is_known else "tokens unknown until the prompts exist"
    written = f"at most {cost.most * options.max_new_tokens:,} to write"
    still = "all verdicts are stored"
    if cost.missing:
        known = f" (about {cost.missing_tokens:,} tokens to read)" if cost.is_known else ""
        still = f"at most {cost.missing:,} are still to be sent{known}"
    numbers = f"{models} model{'s' * (models != 1)} against {options.against}"
    places = f"{categories} categor{'y' if categories == 1 else 'ies'}"
    return (
        f"Judge {options.model}: at most {cost.most:,} requests for {numbers} in {places}, {tokens} and {written}; for "
        f"the answers as they are now, {still}"
    )
