"""Measure what the cached signal `topk` costs on the disk, and how close it comes to the exact divergence.

    python benchmarks/topk_signal.py --model SMOLLM2_FOLDER --out benchmarks/results/topk_signal.json

The teacher answers questions. The student is the same model, but it reads the answers without the questions. With one
bucket for all tokens outside the top k, and with a sample of them, the mean forward KL is compared with the exact one.
So is the sum over tokens of its gradient with respect to the logits, which is the gradient of a bias in the head: in
steps of --step-tokens, and over all tokens, where the noise of a sample averages out and a bias remains. Then the
signal of k = 64 is written and read, packed and as plain int32 and float16 numbers. Prints Markdown tables; --out
writes all results as JSON.
"""

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import describe_machine
from students import SYSTEM, Rows, read_rows, run, write_prompts
from torch import Tensor

from distill.common.errors import InputError, run_script
from distill.common.files import read_jsonl, write_json
from distill.models.chat import ChatTemplate
from distill.models.completions import decoder_and_head
from distill.models.load import load_model, load_tokenizer
from distill.models.vocabulary import vocabulary_size
from distill.student.loss import Objective, compute_divergence
from distill.student.teacher_signal import make_cached_teacher
from distill.teacher.signal_files import open_shard, read_signal
from distill.teacher.signal_packing import pack_signal, unpack_signal
from distill.teacher.signal_shards import ShardWriter, save_whole
from distill.teacher.signal_size import SignalShape
from distill.teacher.signal_teacher import top_log_probabilities
from distill.teacher.tail_sampling import draw_places

# (k, samples of the tail); without samples the tail is one bucket.
SETTINGS = ((16, 0), (64, 0), (256, 0), (12, 12), (32, 32), (64, 64))
TEMPERATURES = (1.0, 2.0)
STORED_K = 64
REPEATS = 3  # of which the median is reported


def make_examples(args: argparse.Namespace, folder: Path) -> Rows:
    """Let the teacher answer questions and return them in tokens."""
    write_prompts(folder / "prompts.jsonl", args.prompts)
    asked = ["--prompts", folder / "prompts.jsonl", "--out", folder / "answers.jsonl", "--stats", folder / "stats.json"]
    sampling = ["--max-new-tokens", args.max_new_tokens, "--temperature", 1.0, "--cache", folder / "cache"]
    run("generate_answers", *asked, "--model", args.model, "--dtype", "float32", "--device", "cpu", *sampling)
    chat = ChatTemplate(load_tokenizer(args.model))
    records = [record for _, record in read_jsonl(folder / "answers.jsonl")]
    return [
        {
            "prompt": chat.encode_prompt(SYSTEM, record["prompt"]),
            "completion": chat.encode_completion(record["raw_output"]),
        }
        for record in records
    ]


@torch.inference_mode()
def read_logits(model: Any, examples: Rows, vocabulary: int) -> Tensor:
    """Return the (completion tokens of all records, vocabulary) logits."""
    _, head = decoder_and_head(model)
    return torch.cat([head(read_rows(model, one))[:, :vocabulary] for one in examples])


# ---- How close the signal is ----


def store(logits: Tensor, places: Tensor | None, top_k: int, temperature: float) -> tuple[Any, int]:
    """Return the teacher that a student reads from a signal of these logits, and the signal's bytes per token."""
    samples = places.shape[-1] if places is not None else 0
    shape = SignalShape("topk", None, top_k, (temperature,), logits.shape[-1], samples)
    tensors = top_log_probabilities(logits, top_k, [temperature], places)
    tensors |= {"completion": torch.zeros(len(logits), dtype=torch.int32)}
    parts = unpack_signal(pack_signal(tensors, shape), shape)
    parts |= {name: parts[name][:, 0] for name in parts if "tail" in name}
    return make_cached_teacher(parts, temperature), shape.bytes_per_token


def compare_settings(
    logits: Tensor, teacher_logits: Tensor, examples: Rows, temperature: float, step_tokens: int
) -> list[dict[str, Any]]:
    """Compare each setting with the exact divergence at a temperature.

    Args:
        logits, teacher_logits: (tokens, vocabulary) of the student and the teacher.
        examples: the records of these tokens, in this order.
        temperature: the temperature.
        step_tokens: tokens of a step.

    Returns:
        The figures of each setting.
    """
    objective = Objective("forward_kl", temperature, 1.0)
    steps = [slice(start, start + step_tokens) for start in range(0, len(logits), step_tokens)]
    exact = [measure_step(logits[step], teacher_logits[step].clone(), objective) for step in steps]
    value, whole = sum(kd for kd, _ in exact), sum_tensors(gradient for _, gradient in exact)
    found = []
    for top_k, samples in SETTINGS:
        places = draw_places(examples, 1, samples) if samples else None
        estimates, size = [], 0
        for step in steps:
            teacher, size = store(teacher_logits[step], None if places is None else places[step], top_k, temperature)
            estimates.append(measure_step(logits[step], teacher, objective))
        nats = sum(kd for kd, _ in estimates)
        pairs = zip(estimates, exact, strict=True)
        errors = [((mine - right).norm() / right.norm()).item() for (_, mine), (_, right) in pairs]
        difference = sum_tensors(gradient for _, gradient in estimates) - whole
        found.append(
            {
                "temperature": temperature,
                "top_k": top_k,
                "tail_samples": samples,
                "bytes_per_token": size,
                "exact_nats": round(value / len(logits), 4),
                "nats": round(nats / len(logits), 4),
                "value_error_percent": round(100 * (nats / value - 1), 2),
                "step_gradient_error_percent": round(100 * statistics.mean(errors), 2),
                "whole_gradient_error_percent": round(100 * (difference.norm() / whole.norm()).item(), 2),
            }
        )
        print(found[-1], flush=True)
    return found


def measure_step(logits: Tensor, teacher: Any, objective: Objective) -> tuple[float, Tensor]:
    """Return the divergence of a step's tokens in nats, and the sum over them of its gradient, (vocabulary,)."""
    value, gradient = compute_divergence(logits, teacher, objective)
    return value.item(), gradient.double().sum(0)


def sum_tensors(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors of the same shape."""
    return torch.stack(list(tensors)).sum(0)


# ---- How it is stored ----


def time_median(work: Callable[[], Any]) -> float:
    """Return the median time of a function in seconds."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_storage(teacher_logits: Tensor, examples: Rows, stored_tokens: int, folder: Path) -> dict[str, Any]:
    """Write and read the signal of the records, repeated up to a number of tokens, packed and plain.

    Raises:
        InputError: the numbers that are read differ.
    """
    vocabulary = teacher_logits.shape[-1]
    signals = []
    parts = teacher_logits.split([len(example["completion"]) for example in examples])
    for example, logits in zip(examples, parts, strict=True):
        tensors = top_log_probabilities(logits, STORED_K, [1.0])
        signals.append(tensors | {"completion": torch.tensor(example["completion"], dtype=torch.int32)})
    tokens = sum(len(signal["completion"]) for signal in signals)
    signals *= -(-stored_tokens // tokens)
    tokens = sum(len(signal["completion"]) for signal in signals)
    shape = SignalShape("topk", None, STORED_K, (1.0,), vocabulary)
    sizes = [len(signal["completion"]) for signal in signals]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    packed, plain = folder / "00000.safetensors", folder / "plain.safetensors"

    def write_packed() -> None:
        packed.unlink(missing_ok=True)
        writer = ShardWriter(folder, shape)
        writer.since = float("inf")  # one shard, however long it takes
        for number, signal in enumerate(signals):
            writer.add(str(number), signal)
        writer.flush()

    def write_plain() -> None:
        save_whole(plain, {name: torch.cat([signal[name] for signal in signals]) for name in signals[0]})

    def read_packed() -> list[Any]:
        with open_shard(packed, "topk") as shard:
            return [read_signal(shard, shape, *place) for place in zip(starts, sizes, strict=True)]

    def read_plain() -> list[Any]:
        from safetensors import safe_open

        with safe_open(str(plain), framework="pt") as shard:
            return [
                {name: shard.get_slice(name)[start : start + size].clone() for name in shape.names}
                for start, size in zip(starts, sizes, strict=True)
            ]

    found: dict[str, Any] = {"tokens": tokens, "records": len(signals), "top_k": STORED_K}
    for name, path, write, read in (
        ("plain", plain, write_plain, read_plain),
        ("packed", packed, write_packed, read_packed),
    ):
        found[name] = {
            "write_tokens_per_second": round(tokens / time_median(write)),
            "read_tokens_per_second": round(tokens / time_median(read)),
            "bytes_per_token": round(path.stat().st_size / tokens, 1),
        }
    for one, other in zip(read_plain(), read_packed(), strict=True):
        if not all(torch.equal(one[name], other[name]) for name in one):
            raise InputError(f"{packed}: expected the numbers of {plain.name}, found others")
    found["packed_relative_to_plain"] = {
        name: round(found["packed"][name] / found["plain"][name], 3) for name in found["packed"]
    }
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure how close the signal is and how it is stored."""
    examples = make_examples(args, args.work or folder)
    model = load_model(args.model, torch.device("cpu"), torch.float32, for_generation=False)
    vocabulary = vocabulary_size(load_tokenizer(args.model))
    teacher_logits = read_logits(model, examples, vocabulary)
    logits = read_logits(model, [one | {"prompt": one["prompt"][-1:]} for one in examples], vocabulary)
    accuracy = [compare_settings(logits, teacher_logits, examples, at, args.step_tokens) for at in TEMPERATURES]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(torch.device("cpu")),
        "model": Path(args.model).name,
        "settings": {name: value for name, value in vars(args).items() if name not in ("model", "work", "out")},
        "tokens": len(logits),
        "accuracy": [one for found in accuracy for one in found],
        "storage": measure_storage(teacher_logits, examples, args.stored_tokens, folder),
    }


def tables(result: dict[str, Any]) -> str:
    """Format the results as Markdown tables."""
    lines = [
        "| τ | k | samples of the tail | bytes per token | KL, exact | KL | error | gradient, a step | all tokens |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in result["accuracy"]:
        lines.append(
            f"| {one['temperature']:g} | {one['top_k']} | {one['tail_samples'] or 'bucket'} | {one['bytes_per_token']} "
            f"| {one['exact_nats']:.3f} | {one['nats']:.3f} | {one['value_error_percent']:.1f}% "
            f"| {one['step_gradient_error_percent']:.1f}% | {one['whole_gradient_error_percent']:.1f}% |"
        )
    lines += [
        "",
        "| files | bytes per token | tokens written a second | tokens read a second |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in ("plain", "packed"):
        one = result["storage"][name]
        lines.append(
            f"| {name} | {one['bytes_per_token']} | {one['write_tokens_per_second']:,} "
            f"| {one['read_tokens_per_second']:,} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a chat model")
    parser.add_argument("--prompts", type=int, default=32, help="number of questions, up to 400")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--step-tokens", type=int, default=128)
    parser.add_argument("--stored-tokens", type=int, default=20_000, help="tokens that are written and read at least")
    parser.add_argument("--work", type=Path, help="folder for the teacher's answers; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        result = measure(args, Path(name))
    print(tables(result))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    run_script(main)
