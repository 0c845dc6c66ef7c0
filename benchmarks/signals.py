"""Measure how fast the teacher's signals are computed by transformers and by vLLM, on the same records.

    python benchmarks/signals.py --model MODEL_FOLDER --prompts artifacts/grpo/grpo_banks.jsonl --completion-tokens 200

A record is a prompt of the file and a completion of random tokens. Each signal is computed by the project's code, in a
new process, up to its tensors on the CPU. `start_seconds` is the time until the model is loaded or the server is ready.
Prints for each engine and signal the positions a second, of prompt and completion, the bytes of a completion token on
the disk and, for vLLM, those of its reply in JSON; --out writes them as JSON. A server's memory is not measured.
"""

import argparse
import contextlib
import datetime
import json
import multiprocessing
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import describe_machine, synchronize
from served import add_server_options

from distill.common.errors import run_script
from distill.common.files import read_jsonl, write_json
from distill.generation.options import EngineOptions
from distill.models.batches import in_batches
from distill.models.chat import ChatTemplate
from distill.models.load import load_chat, load_config, select_device
from distill.models.memory import memory_mb
from distill.models.options import TEMPLATE_DATE
from distill.models.vocabulary import vocabulary_size
from distill.records.raw_records import get_texts
from distill.teacher.compute_signal import load_teacher, make_shape
from distill.teacher.served_teacher import ServedTeacher, make_request

SIGNALS = ("hidden", "topk")
WAYS = ("transformers", "vllm")


def make_examples(args: argparse.Namespace, chat: ChatTemplate, vocabulary: int) -> list[dict[str, Any]]:
    """Make the records: prompts of the file, and completions of random tokens."""
    records = [record for _, record in read_jsonl(args.prompts)][: args.records]
    prompts = [chat.encode_prompt(*get_texts(record)) for record in records]
    generator = torch.Generator().manual_seed(0)
    completions = torch.randint(vocabulary, (len(prompts), args.completion_tokens), generator=generator).tolist()
    return [
        {"uid": str(number), "prompt": prompt, "completion": completion}
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def list_options(way: str, kind: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the options of compute_signal.py for an engine and a signal."""
    shared = ("model", "dtype", "device", "batch_size", "vllm_executable", "vllm_arguments", "vllm_start_timeout")
    topk = {"top_k": args.top_k, "temperatures": [1.0]} if kind == "topk" else {"top_k": None, "temperatures": []}
    return {
        **{name: getattr(args, name) for name in shared}, **topk, "kind": kind, "engine": way, "adapter": None,
        "quantization": "none", "tail_samples": 0, "template_arguments": {}, "template_date": TEMPLATE_DATE,
        "tokenizer": None, "concurrency": None, "timeout": EngineOptions().timeout, "vllm_nodes": 1,
        "vllm_share": False, "vllm_server": None, "out": folder / kind,
    }  # fmt: skip


def measure(way: str, kind: str, args: argparse.Namespace, pipe: Any) -> None:
    """Measure the computation of a signal by an engine; send the figures to the pipe."""
    chat = load_chat(args.model, {}, TEMPLATE_DATE)
    vocabulary = vocabulary_size(chat.tokenizer)
    examples = make_examples(args, chat, vocabulary)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # of the server's log
        options = list_options(way, kind, args, Path(folder))
        started = time.perf_counter()
        teacher = load_teacher(options, chat, vocabulary)
        try:
            if isinstance(teacher, ServedTeacher):
                teacher.server.connect()
            start_seconds = time.perf_counter() - started
            teacher.compute(examples[:1])  # a warm-up, and with vLLM the check by a second request
            started = time.perf_counter()

            def compute(rows: list[int]) -> int:
                return len(teacher.compute([examples[row] for row in rows]))

            sizes = list(in_batches(list(range(len(examples))), compute, teacher.batch_size))
            device = select_device(args.device)
            synchronize(device)
            seconds = time.perf_counter() - started
            is_served = isinstance(teacher, ServedTeacher)
            reply = measure_reply(teacher, examples[0]) if isinstance(teacher, ServedTeacher) else None
        finally:
            teacher.close()
    completions = sum(len(one["completion"]) for one in examples)
    positions = completions + sum(len(one["prompt"]) for one in examples)
    width = load_config(args.model).get_text_config().hidden_size
    pipe.send(
        {
            "start_seconds": round(start_seconds, 1),
            "seconds": round(seconds, 2),
            "records": sum(sizes),
            "positions_per_second": round(positions / seconds, 1),
            "completion_tokens_per_second": round(completions / seconds, 1),
            "disk_bytes_per_token": make_shape(options, width, vocabulary).bytes_per_token,
            "reply_bytes_per_token": reply,
            "peak_memory_mb": None if is_served else memory_mb(device),
        }
    )


def measure_reply(teacher: ServedTeacher, example: dict[str, Any]) -> float:
    """Return the size of a reply of the server in bytes for each completion token."""
    client = teacher.server.connect()
    settings = client.build_token_settings(make_request(0, example, teacher.top_k))
    body = settings | settings.pop("extra_body")
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{client.base_url}/completions", json.dumps(body).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
        return round(len(response.read()) / len(example["completion"]), 1)


def measure_apart(way: str, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run `measure` in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(way, kind, args, sender))
    process.start()
    sender.close()
    result: dict[str, Any] = receiver.recv()
    process.join()
    return result


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--prompts", type=Path, required=True, help="records with `messages` (JSONL)")
    parser.add_argument("--records", type=int, help="number of records to use from the start of the file")
    parser.add_argument("--completion-tokens", type=int, default=200)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--batch-size", type=int, help="records at a time of `transformers`; default: auto")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--kinds", nargs="+", choices=SIGNALS, default=list(SIGNALS))
    add_server_options(parser)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    args.model = str(Path(args.model).resolve())
    found: dict[str, dict[str, Any]] = {}
    for kind in args.kinds:
        for way in args.ways:
            name = f"{kind} by {way}"
            found[name] = measure_apart(way, kind, args)
            print(f"{name:>22}: {json.dumps(found[name])}", flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(select_device(args.device)),
        "model": Path(args.model).name,
        "settings": {name: getattr(args, name) for name in ("completion_tokens", "top_k", "dtype")},
        "signals": found,
    }
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    run_script(main)
