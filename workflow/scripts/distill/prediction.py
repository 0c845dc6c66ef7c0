"""A model's answers to test prompts, beside the teacher's."""

from typing import Any

from distill.answers import parse_answer
from distill.generation import Generated, Sampling, generate_records
from distill.likelihood import reference_likelihoods
from distill.model_source import ModelSource
from distill.models import load_tokenizer
from distill.progress import Progress


def predict(
    records: list[dict[str, Any]],
    source: ModelSource,
    sampling: Sampling,
    batch_size: int | None,
    answer_key: str | None,
    likelihood: bool = True,
) -> list[dict[str, Any]]:
    """Answer the prompts of a split, in its order.

    Args:
        records: of `read_split`.
        batch_size: None for a size by device.
        answer_key: of the answer contract; None accepts every text.
        likelihood: measure it; it costs another pass over the model.

    Returns:
        For each record its own fields with `reference` (the teacher's answer), `prediction` and what was parsed of
        it, and `nll`, `nll_tokens`: the reference's negative log-likelihood in nats and its tokens.
    """
    tests = []
    for record in records:
        system, prompt, reference = (message["content"] for message in record["messages"])
        kept = {name: record[name] for name in ("id", "uid", "origin", "label")}
        is_whole = record["finish_reason"] != "length"
        tests.append(kept | {"system": system, "prompt": prompt, "reference": reference, "is_whole": is_whole})
    tokenizer = load_tokenizer(source.model)
    model = source.load()
    progress = Progress(len(tests), "predictions")
    answers: dict[str, Generated] = {}
    for batch in generate_records(model, tokenizer, tests, sampling, batch_size):
        answers |= {test["uid"]: generated for test, generated in batch}
        progress.add(len(batch), sum(generated.tokens for _, generated in batch))
    progress.close()
    likelihoods = reference_likelihoods(model, tokenizer, tests, batch_size) if likelihood else []
    predictions = []
    for position, test in enumerate(tests):
        generated = answers[test["uid"]]
        parsed = parse_answer(generated.text, answer_key)
        found = {"prediction": generated.text, "parsed_value": parsed.value, "usable": parsed.problem is None}
        found |= {"problem": parsed.problem, "finish_reason": generated.finish_reason}
        found |= {"generated_tokens": generated.tokens}
        if likelihood:
            found["nll"], found["nll_tokens"] = likelihoods[position]
        predictions.append({name: value for name, value in test.items() if name != "is_whole"} | found)
    return predictions
