"""Cached teacher signals: which ones the students of an experiment need, and the disk space that they take."""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from distill.common.disk import find_free, format_bytes, measure_folder
from distill.plan.experiment import Config, get_category_config, get_prompts, get_teacher
from distill.plan.start_cache import StartCache
from distill.records.options import SplitOptions
from distill.student.divergences import METHODS
from distill.student.options import ObjectiveOptions
from distill.teacher.signal_size import SignalShape, count_tokens, describe_storage, read_sizes
from distill.teacher.signal_store import DATA

SIGNALS = "artifacts/distill_data/teacher_signal"  # the folder of each category's signals


def get_signal(config: Config, student: str) -> str | None:
    """Return the name of the cached teacher signal that a student learns from: `hidden`, `topk_64_t2`; None without.

    `t2` is the student's temperature (`t1_5` for 1.5); `topk_32_s12_t2` has 12 sampled tokens. The quantization is
    part of the name (`hidden_int8`) if it differs from that of the teacher that generates the answers. Students with
    the same name share the signal.
    """
    settings = config["students"][student]
    if not METHODS[settings["method"]].needs_teacher or settings["signal"] == "online":
        return None
    temperature = f"{settings['temperature']:g}".replace(".", "_")
    samples = f"_s{settings['tail_samples']}" if settings["tail_samples"] else ""
    topk = f"_{settings['top_k']}{samples}_t{temperature}" if settings["signal"] == "topk" else ""
    quantization = settings["teacher_quantization"]
    suffix = f"_{quantization}" if quantization not in (None, config["teacher"]["quantization"]) else ""
    return f"{settings['signal']}{topk}{suffix}"


def get_training_signals(config: Config, student: str) -> list[str]:
    """Return the cached signals that a student's training reads: one or none."""
    signal = get_signal(config, student)
    return [signal] if signal else []


def get_signals(config: Config) -> dict[str, dict[str, Any]]:
    """Return the cached signals by name, each with its options for compute_signal.py."""
    signals = {}
    for name, settings in config["students"].items():
        if signal := get_signal(config, name):
            is_topk = settings["signal"] == "topk"
            signals[signal] = {
                "kind": settings["signal"],
                "top_k": settings["top_k"] if is_topk else None,
                "temperatures": [float(settings["temperature"])] if is_topk else None,
                "tail_samples": settings["tail_samples"] or None if is_topk else None,
                "quantization": settings["teacher_quantization"] or config["teacher"]["quantization"],
            }
    return signals


def read_split_options(config: Config) -> tuple[SplitOptions, Fraction]:
    """Return how the answers are split, and the share of original answers in train and val."""
    split = {name: Fraction(str(value)) for name, value in config["split"].items() if name != "seed"}
    original = config["mix_targets"]["original"] if config["mix_targets"] else 0
    return SplitOptions(**split, seed=config["split"]["seed"]), Fraction(str(original))


def describe_signals(config: Config, categories: Sequence[str], cache: StartCache) -> list[str]:
    """Describe the disk space of the cached signals: a line per signal and category, and one if the disk is too small.

    A line of a `hidden` signal has the size of a `topk` signal beside it. The answers, of which there may be many, are
    read only if they changed since the cache counted their tokens.
    """
    lines: list[str] = []
    if not get_signals(config):
        return lines
    missing = 0
    for category in categories:
        own = get_category_config(config, category)
        width, vocabulary = read_sizes(get_teacher(own))
        longest = own["teacher"]["samples"] * own["teacher"]["generation"]["max_new_tokens"]
        answers = f"artifacts/distill_data/raw/teacher_outputs_{category}.jsonl"
        prompts = get_prompts(config, category)
        split, original = read_split_options(config)
        count = partial(count_tokens, answers, prompts, longest, split, original)
        counted = f"tokens of {category}, at most {longest}, {split}, {original} original answers"
        tokens, qualifier = cache.get(counted, count, [answers, prompts])
        for name, signal in get_signals(own).items():
            settings = signal["top_k"], signal["temperatures"] or (), vocabulary, signal["tail_samples"] or 0
            shape = SignalShape(signal["kind"], width, *settings)
            line = describe_storage(f"{name} of {category}", shape, tokens, qualifier)
            lines.append(line + (describe_smaller(vocabulary, tokens) if signal["kind"] == "hidden" else ""))
            stored = measure_folder(f"{SIGNALS}/{category}/{name}/{DATA}")
            missing += max(0, shape.bytes_per_token * tokens - stored) if shape.is_known else 0
    return lines + find_shortage(config["signals"] or SIGNALS, missing)


def describe_smaller(vocabulary: int | None, tokens: int) -> str:
    """Return the size of a `topk` signal with default settings, as the end of a line; empty if it is unknown."""
    shape = SignalShape("topk", None, ObjectiveOptions.top_k, [ObjectiveOptions.temperature], vocabulary)
    if not shape.is_known or not tokens:
        return ""
    size = format_bytes(shape.bytes_per_token * tokens)
    return f" (signal topk with top_k {shape.top_k}: {shape.bytes_per_token:,} bytes per token, {size})"


def find_shortage(folder: str, missing: int) -> list[str]:
    """Return a line if a disk has not as much space as the signals may need, otherwise none."""
    free = find_free(folder)
    if missing <= free:
        return []
    text = f"teacher signals: {format_bytes(missing)} to compute, but only {format_bytes(free)} are free in {folder}"
    return [f"{text}: set `signals` to a folder on a larger disk, or choose signal topk with a smaller top_k"]
