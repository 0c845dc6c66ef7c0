"""Measure the speed of generation against common alternatives in one run.

    python benchmarks/generation.py --model MODEL_FOLDER --prompts artifacts/grpo/grpo_banks.jsonl --max-new-tokens 64

Ways: `one` (one prompt at a time with transformers' `generate`), `four` (padded batches of 4 in file order with
`generate`), `ours` (distill.generation, as used by generate_answers.py), and on request `continuous` (transformers'
`generate_batch`) and `vllm` (the engine `vllm`, whose server's start is reported apart from its speed). All decode
greedily, with the same prompts, model and machine. Each runs in a new process, so that peak memory is measured
separately; that of a server is not measured. Prints the results of each way, the ratios, and the share of answers equal
to those of `one`; --out writes them as JSON.
"""

import argparse
import datetime
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import describe_machine, synchronize
from served import add_server_options, make_source, write_shape
from shapes import SHAPES, build
from transformers import GenerationConfig

from distill.common.errors import run_script
from distill.common.files import read_jsonl, write_json
from distill.generation.generate import generate_requests, left_pad, stop_ids
from distill.generation.sampling import Request, Sampling
from distill.generation.vllm_engine import VllmEngine
from distill.models.chat import ChatTemplate
from distill.models.load import load_model, load_tokenizer, select_device, select_dtype
from distill.models.memory import memory_mb
from distill.records.raw_records import get_texts

MODELS = {"qwen2.5-7b": SHAPES["qwen2.5-7b-1.5b"][0]}
Answers = dict[int, list[int]]


def load(args: argparse.Namespace, tokenizer: Any) -> Any:
    """Load or build the model."""
    device = select_device(args.device)
    dtype = select_dtype(args.dtype, device)
    if not args.shape:
        return load_model(args.model, device, dtype)
    model = build(MODELS[args.shape], 0, dtype, device).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def read_prompts(args: argparse.Namespace, tokenizer: Any) -> tuple[list[Request], list[list[int]]]:
    """Read the requests; return them with their tokenized prompts."""
    records = [record for _, record in read_jsonl(args.prompts)][: args.records]
    requests = [Request(number, str(number), *get_texts(record)) for number, record in enumerate(records)]
    return requests, [ChatTemplate(tokenizer).encode_prompt(r.system, r.prompt) for r in requests]


def greedy_settings(max_new_tokens: int, stops: list[int], pad_id: int) -> GenerationConfig:
    """Return greedy generation settings."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops or None, pad_token_id=pad_id
    )


def cut(tokens: list[int], stops: list[int], longest: int) -> list[int]:
    """Cut new tokens after the first stop token, and to the maximum length."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in stops), tokens)[:longest]


@torch.inference_mode()
def answer_in_batches(
    model: Any, prompts: Sequence[list[int]], longest: Sequence[int], stops: list[int], pad_id: int, n: int
) -> Answers:
    """Generate answers in batches of n in file order, with `generate`.

    Args:
        model: a causal model.
        prompts: token ids of each prompt.
        longest: maximum number of new tokens of each prompt; `generate` decodes a batch up to its largest one.
        stops: ids that end an answer.
        pad_id: id of the padding.
        n: prompts at a time.
    """
    answers: Answers = {}
    for start in range(0, len(prompts), n):
        limits = longest[start : start + n]
        inputs = left_pad(prompts[start : start + n], pad_id, model.device)
        output = model.generate(**inputs, generation_config=greedy_settings(max(limits), stops, pad_id))
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        answers |= {start + row: cut(tokens, stops, limits[row]) for row, tokens in enumerate(new)}
    return answers


def answer_continuously(model: Any, prompts: list[list[int]], settings: GenerationConfig) -> Answers:
    """Generate answers with transformers' continuous batching, which cannot determine its cache size on a CPU."""
    from transformers import ContinuousBatchingConfig

    sizes = {} if model.device.type == "cuda" else {"page_size": 32, "num_blocks": 2048, "max_batch_tokens": 2048}
    found = model.generate_batch(
        prompts,
        generation_config=settings,
        continuous_batching_config=ContinuousBatchingConfig(**sizes),
    )
    ordered = sorted(found, key=lambda name: int(name.rsplit("_", 1)[-1]))
    return {number: found[name].generated_tokens for number, name in enumerate(ordered)}


def measure(way: str, args: argparse.Namespace, pipe: Any) -> None:
    """Generate all answers in one way after a short warm-up; send the measurements and the texts to the pipe."""
    if way == "vllm":
        pipe.send(measure_vllm(args))
        return
    tokenizer = load_tokenizer(args.model)
    model, (requests, prompts) = load(args, tokenizer), read_prompts(args, tokenizer)

    def run(count: int) -> dict[int, tuple[str, int]]:
        if way == "ours":
            sampling = Sampling(args.max_new_tokens, 0.0)
            batches = generate_requests(model, ChatTemplate(tokenizer), requests[:count], sampling, args.batch_size)
            return {request.id: (answer.text, answer.tokens) for batch in batches for request, answer in batch}
        stops, pad_id = stop_ids(model.generation_config, tokenizer), tokenizer.pad_token_id
        if way == "continuous":
            answers = answer_continuously(model, prompts[:count], greedy_settings(args.max_new_tokens, stops, pad_id))
        else:
            n, longest = {"one": 1, "four": 4}[way], [args.max_new_tokens] * count
            answers = answer_in_batches(model, prompts[:count], longest, stops, pad_id, n)
        decode = tokenizer.decode
        return {index: (decode(new, skip_special_tokens=True), len(new)) for index, new in answers.items()}

    run(4)
    started = time.perf_counter()
    answers = run(len(prompts))
    synchronize(model.device)
    found = describe(answers, time.perf_counter() - started) | {"peak_memory_mb": memory_mb(model.device)}
    pipe.send((found, [answers[index][0] for index in range(len(prompts))], sum(map(len, prompts))))


def describe(answers: dict[int, tuple[str, int]], seconds: float) -> dict[str, Any]:
    """Return the speed of answers, which are texts with their numbers of tokens."""
    tokens = sum(count for _, count in answers.values())
    return {
        "seconds": round(seconds, 2),
        "records_per_second": round(len(answers) / seconds, 4),
        "tokens_per_second": round(tokens / seconds, 2),
        "generated_tokens": tokens,
    }


def measure_vllm(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], int]:
    """As `measure`, with the engine `vllm`; `start_seconds` is the time until its server is ready."""
    tokenizer = load_tokenizer(args.model)
    requests, prompts = read_prompts(args, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(load(args, tokenizer), tokenizer, Path(folder) / "model") if args.shape else args.model
        engine = VllmEngine(make_source(args, model, Sampling(args.max_new_tokens, 0.0), Path(folder)))
        try:
            started = time.perf_counter()
            engine.server.connect()
            start_seconds = time.perf_counter() - started
            # Other prompts, because vLLM keeps the keys and values of those that it has read.
            others = [Request(-number, f"warm-up {number}", "Count.", f"Count to {number}.") for number in range(1, 5)]
            list(engine.generate(others))
            started = time.perf_counter()
            batches = engine.generate(requests)
            answers = {request.id: (answer.text, answer.tokens) for batch in batches for request, answer in batch}
            seconds = time.perf_counter() - started
        finally:
            engine.server.close()
    found = describe(answers, seconds) | {"start_seconds": round(start_seconds, 1), "peak_memory_mb": None}
    return found, [answers[index][0] for index in range(len(prompts))], sum(map(len, prompts))


def measure_apart(way: str, args: argparse.Namespace) -> tuple[dict[str, Any], list[str], int]:
    """Run `measure` in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(way, args, sender), daemon=True)
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder; with --shape, only its tokenizer is used")
    parser.add_argument(
        "--shape", choices=MODELS, help="use random weights of this shape instead of the folder's weights"
    )
    parser.add_argument("--prompts", type=Path, required=True, help="records with `messages` (JSONL)")
    parser.add_argument("--records", type=int, help="number of records to use from the start of the file")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, help="batch size of `ours`; default: auto")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    ways = ["one", "four", "ours", "continuous", "vllm"]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways[:3])
    add_server_options(parser)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    found: dict[str, dict[str, Any]] = {}
    texts: dict[str, list[str]] = {}
    prompt_tokens = 0
    for way in args.ways:
        found[way], texts[way], prompt_tokens = measure_apart(way, args)
        print(f"{way:>12}: {json.dumps(found[way])}", flush=True)
    count = len(texts[args.ways[0]])
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(select_device(args.device)),
        "model": args.shape or Path(args.model).name,
        "prompts": {"records": count, "mean_tokens": round(prompt_tokens / count, 1), "file": args.prompts.name},
        "settings": {"max_new_tokens": args.max_new_tokens, "dtype": args.dtype, "temperature": 0.0},
        "ways": found,
    }
    if "ours" in found:
        speed = found["ours"]["records_per_second"]
        others = [way for way in found if way != "ours"]
        result["speed_ratio"] = {way: round(speed / found[way]["records_per_second"], 2) for way in others}
    if "one" in found:
        same = {way: sum(map(str.__eq__, texts[way], texts["one"])) / count for way in found if way != "one"}
        result["answers_equal_to_one"] = {way: round(share, 4) for way, share in same.items()}
    print(json.dumps({name: result.get(name) for name in ("speed_ratio", "answers_equal_to_one")}))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    run_script(main)
