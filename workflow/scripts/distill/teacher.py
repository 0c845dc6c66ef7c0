"""The teacher's answers to a category's prompts, asked once and kept record by record."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from distill.answers import parse_answer
from distill.cache import CacheWriter, read_cache
from distill.generation import Sampling, generate_records
from distill.model_source import ModelSource
from distill.models import load_tokenizer, memory_mb
from distill.progress import Progress

log = logging.getLogger(__name__)


def answer_prompts(
    prompts: list[dict[str, Any]], source: ModelSource, sampling: Sampling, batch_size: int | None, cache: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The teacher's answer to every prompt, from the cache where it is there.

    Args:
        prompts: each with `uid`, `system` and `prompt`.
        batch_size: None for a size by device.
        cache: folder of all teachers' answers.

    Returns:
        Answers by uid (`raw_output`, `finish_reason`, `generated_tokens`), and the counts of this run.
    """
    tokenizer = load_tokenizer(source.model)
    folder = cache / source.fingerprint(tokenizer, sampling)
    answers = read_cache(folder)
    missing = [prompt for prompt in prompts if prompt["uid"] not in answers]
    from_cache = len(prompts) - len(missing)
    log.info("%d prompts: %d answered in the cache, %d to ask for", len(prompts), from_cache, len(missing))
    stats: dict[str, Any] = {
        "prompts": len(prompts),
        "from_cache": from_cache,
        "generated": len(missing),
        "generated_tokens": 0,
    }
    stats |= {"seconds": 0.0, "tokens_per_second": 0.0, "peak_memory_mb": 0}
    if not missing:
        return answers, stats
    model = source.load()
    progress = Progress(len(missing), "teacher answers")
    with CacheWriter(folder) as writer:
        for batch in generate_records(model, tokenizer, missing, sampling, batch_size):
            kept = [
                {
                    "uid": record["uid"],
                    "raw_output": generated.text,
                    "finish_reason": generated.finish_reason,
                    "generated_tokens": generated.tokens,
                }
                for record, generated in batch
            ]
            writer.add(kept)
            answers |= {record["uid"]: record for record in kept}
            progress.add(len(kept), sum(record["generated_tokens"] for record in kept))
    progress.close()
    stats |= {"generated_tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
    stats |= {"tokens_per_second": round(progress.tokens_per_second, 1), "peak_memory_mb": memory_mb(model.device)}
    return answers, stats


def teacher_outputs(
    prompts: list[dict[str, Any]], answers: dict[str, dict[str, Any]], answer_key: str | None
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Records of teacher_outputs_{category}.jsonl in the prompts' order, and how often each problem occurs."""
    records, problems = [], Counter[str]()
    for prompt in prompts:
        answer = answers[prompt["uid"]]
        parsed = parse_answer(answer["raw_output"], answer_key)
        if parsed.problem is not None:
            problems[parsed.problem] += 1
        records.append(
            {
                "id": prompt["id"],
                "uid": prompt["uid"],
                "system": prompt["system"],
                "prompt": prompt["prompt"],
                "raw_output": answer["raw_output"],
                "think": parsed.think,
                "answer": parsed.answer,
                "parsed_value": parsed.value,
                "usable": parsed.problem is None,
                "problem": parsed.problem,
                "label": prompt["label"],
                "origin": prompt["origin"],
                "finish_reason": answer["finish_reason"],
                "generated_tokens": answer["generated_tokens"],
            }
        )
    return records, problems
