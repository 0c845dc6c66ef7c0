"""Questions, a teacher's answers and an initial student, for benchmarks of what students learn."""

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill.common.errors import InputError
from distill.common.files import write_json, write_jsonl
from distill.models.completions import collate, decoder_and_head, take_rows
from distill.records.raw_records import get_uid

Rows = list[dict[str, Any]]

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow/scripts"
SYSTEM = "You are a helpful assistant who answers in two sentences."
TEMPLATES = (
    "What is {}?",
    "Why does {} matter?",
    "Explain {} to a child.",
    "Name one common mistake people make about {}.",
    "How has {} changed over time?",
    "Give an example of {} in daily life.",
    "What is the most surprising thing about {}?",
    "Who should know more about {}, and why?",
    "What would happen without {}?",
    "How would you teach {} in one lesson?",
)
TOPICS = (
    "inflation", "photosynthesis", "a mortgage", "gravity", "the water cycle", "a budget", "an earthquake", "sleep",
    "electricity", "a vaccine", "the printing press", "compound interest", "a rainbow", "friction", "a contract",
    "music theory", "the stock market", "a volcano", "evolution", "recycling", "a balanced diet", "time zones",
    "a democracy", "insurance", "the immune system", "tides", "a pension", "bread baking", "soil", "map reading",
    "public transport", "a magnet", "poetry", "chess", "a bank loan", "glaciers", "honesty", "wind power", "taxes",
    "the scientific method",
)  # fmt: skip


def run(script: str | Path, *arguments: Any) -> None:
    """Run one of the workflow's scripts by its name, or another one by its path.

    Raises:
        InputError: the script failed; contains its last lines.
    """
    path = script if isinstance(script, Path) else SCRIPTS / f"{script}.py"
    command = [sys.executable, path, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise InputError(f"{path.name} failed:\n{done.stdout[-2000:]}")


def write_prompts(path: Path, count: int) -> None:
    """Write a seeded sample of questions in the workflow's format."""
    questions = [template.format(topic) for template in TEMPLATES for topic in TOPICS]
    chosen = random.Random(0).sample(questions, count)
    write_jsonl(
        path,
        (
            {"id": n, "uid": get_uid(SYSTEM, q), "system": SYSTEM, "prompt": q, "label": None, "origin": "sft"}
            for n, q in enumerate(chosen)
        ),
    )


def prepare_answers(args: argparse.Namespace, folder: Path) -> None:
    """Make the teacher's answers and the splits `data`."""
    teacher = ["--model", args.model, "--dtype", "float32"]
    write_prompts(folder / "prompts.jsonl", args.prompts)
    asked = ["--prompts", folder / "prompts.jsonl", "--out", folder / "answers.jsonl", "--stats", folder / "stats.json"]
    sampling = ["--max-new-tokens", args.max_new_tokens, "--temperature", 0.7, "--cache", folder / "cache"]
    run("generate_answers", *asked, *teacher, "--device", args.device, *sampling)
    split = ["--val-fraction", 0, "--test-fraction", args.test_fraction, "--seed", 42]
    run("split_answers", "--answers", folder / "answers.jsonl", *split, "--out", folder / "data")


def prepare_records(args: argparse.Namespace, folder: Path) -> None:
    """Make answers and splits, and the student `initial` with some of the teacher's layers."""
    prepare_answers(args, folder)
    run(
        "copy_layers", "--model", args.model, "--dtype", "float32", "--layers", args.layers, "--out", folder / "initial"
    )


def signal_options(args: argparse.Namespace, folder: Path) -> list[Any]:
    """Options of compute_signal.py for these records and their teacher."""
    records = ["--data", folder / "data", "--examples", folder / "examples"]
    return [*records, "--model", args.model, "--dtype", "float32", "--device", args.device]


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `prepare_records` reads."""
    parser.add_argument("--model", required=True, help="the teacher: folder of a chat model")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=400, help="number of questions, up to 400")
    parser.add_argument("--test-fraction", type=float, default=0.2)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def run_benchmark(
    args: argparse.Namespace, measure: Callable[[argparse.Namespace, Path], Any], format_tables: Callable[[Any], str]
) -> None:
    """Measure in the folder `args.work`, or a temporary one; print the tables and write the results to `args.out`."""
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
        result = measure(args, args.work)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args, Path(folder))
    print(format_tables(result))
    if args.out:
        write_json(args.out, result)


@torch.inference_mode()
def read_rows(model: Any, example: dict[str, Any]) -> torch.Tensor:
    """Compute the (completion tokens, width) hidden states that predict an example's completion."""
    batch = collate([example["prompt"]], [example["completion"]], 0)
    decoder, _ = decoder_and_head(model)
    return take_rows(decoder(input_ids=batch["input_ids"], use_cache=False).last_hidden_state, batch["positions"])
