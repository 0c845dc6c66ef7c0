"""Describe the machine, prepare training steps, or take a measurement: a job of gpu.py, see job.py."""

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import kd_step
import torch
from generation import Answers, answer_in_batches
from gpu_parts import Measurement
from job import run_as_job
from kd_ways import (
    OURS,
    build_student,
    build_teacher,
    compute_losses,
    expected_losses,
    make_examples,
    make_signal_teacher,
)
from machine import describe_gpu, describe_machine, measure_peak, reset_peak, synchronize
from shapes import SHAPES, build

from distill.common.errors import InputError
from distill.common.files import write_json
from distill.generation.generate import Draw, decode_job
from distill.generation.rolling_batch import Job
from distill.generation.sampling import Sampling
from distill.models.batches import AUTO_BATCH_SIZE, in_batches
from distill.models.load import select_device
from distill.teacher.signal_teacher import TOLERANCE

Settings = dict[str, Any]
Result = dict[str, Any]

DISTRIBUTIONS = {"liger_kernel": "liger-kernel"}
CHECKED_PROMPTS = 12  # prompts whose answers are compared with those of `generate`
WARM_UP = {"records": 4, "tokens": 8}


def step_arguments(settings: Settings, batch: int, quantization: str = "none") -> argparse.Namespace:
    """Return the arguments of kd_step.py for a batch."""
    names = ("shape", "device", "precision", "prompt_tokens", "completion_tokens", "steps", "top_k", "temperature")
    names += ("alpha", "optimizer")
    options = [text for name in names for text in (f"--{name.replace('_', '-')}", str(settings[name]))]
    options += ["--gradient-checkpointing"] if settings["gradient_checkpointing"] else []
    return kd_step.parse_args([*options, "--batch", str(batch), "--teacher-quantization", quantization])


# ---- Training steps ----


def prepare_steps(settings: Settings, batch: int, folder: Path) -> Result:
    """Write a batch's cached signals and expected losses to the folder, which must not have them yet."""
    args, device = step_arguments(settings, batch), select_device(settings["device"])
    found: Result = {"expected_losses": expected_losses(args, device, folder)}
    write_json(folder / "expected.json", found)
    if device.type == "cuda":
        found["gflops"] = kd_step.measure_products(device, settings["precision"])
    return found


def measure_step(way: str, batch: int, settings: Settings, folder: Path) -> Result:
    """Measure the training steps of a way.

    Raises:
        InputError: the first loss differs from the expected one.
    """
    if way == "online_int8":
        args, way = step_arguments(settings, batch, "int8"), "online"
        expected = expect_own(args, folder)
    else:
        args = step_arguments(settings, batch)
        expected = json.loads((folder / "expected.json").read_text())["expected_losses"]
    found = kd_step.measure(way, args, folder, is_accumulated=way in OURS)
    kd_step.check_losses({way: found}, expected, settings["precision"])
    del found["peak_memory_mb"]  # measure_peak has it, under the name of what it measures
    return found | {"expected_loss": expected.get(way)}


def expect_own(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Compute the expected losses with the teacher of these arguments; its memory is free afterwards."""
    device = select_device(args.device)
    student, teacher = build_student(args, device), build_teacher(args, device, folder)
    return compute_losses(student, teacher, make_examples(args), args, device)


# ---- Generation ----


def make_prompts(count: int, settings: Settings, seed: int = 0) -> tuple[list[list[int]], list[int]]:
    """Make prompts of random tokens without a common prefix, and the length of each answer, which varies by half."""
    generator = torch.Generator().manual_seed(seed)
    size = count, settings["prompt_tokens"]
    prompts = torch.randint(SHAPES[settings["shape"]][2], size, generator=generator).tolist()
    mean = settings["completion_tokens"]
    longest = torch.randint(mean // 2, mean + mean // 2 + 1, (count,), generator=generator).tolist()
    return prompts, longest


def answer_rolling(
    model: Any, prompts: Sequence[list[int]], longest: Sequence[int], vocabulary: int, batch_size: int | None = None
) -> Answers:
    """Generate greedy answers by this project's continuous batching; see `answer_in_batches`."""
    job = Job(prompts, longest, [], None, Draw(Sampling(max(longest), 0.0), vocabulary))
    return {index: tokens for ended in decode_job(model, None, job, batch_size) for index, tokens in ended}


def check_answers(device: torch.device) -> None:
    """Compare greedy answers with those of `generate` one prompt at a time, in float32 on a tiny model.

    Raises:
        InputError: the tokens differ.
    """
    config, _, vocabulary = SHAPES["tiny"]
    model = build(config, 2, torch.float32, device).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 40, (2, CHECKED_PROMPTS), generator=generator).tolist()
    prompts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths[0]]
    model.get_output_embeddings().weight[vocabulary:] = 0  # `generate` knows no padded vocabulary
    expected = answer_in_batches(model, prompts, lengths[1], [], 0, 1)
    for size in (None, 4):
        found = answer_rolling(model, prompts, lengths[1], vocabulary, size)
        if different := [index for index in expected if found.get(index) != expected[index]]:
            index = different[0]
            raise InputError(
                f"generation: expected the tokens of `generate`, found others in {len(different)} of {len(prompts)} "
                f"answers, first {found.get(index)} instead of {expected[index]}"
            )


def measure_generation(way: str, settings: Settings, folder: Path) -> Result:
    """Measure greedy answers in one way, after a warm-up with other prompts."""
    device, (config, _, vocabulary) = select_device(settings["device"]), SHAPES[settings["shape"]]
    count = settings[{"one": "records_one", "batches_of_16": "records_batches"}.get(way, "records_rolling")]
    run: Callable[[list[list[int]], list[int]], Answers]
    if way == "vllm":
        run = make_vllm(config, settings, folder)
    else:
        if way == "ours":
            check_answers(device)
        dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
        model = build(config, 2, dtype, device).eval().requires_grad_(False)

        def run(prompts: list[list[int]], longest: list[int]) -> Answers:
            if way == "ours":
                return answer_rolling(model, prompts, longest, vocabulary)
            return answer_in_batches(model, prompts, longest, [], 0, {"one": 1, "batches_of_16": 16}[way])

    prompts, _ = make_prompts(WARM_UP["records"], settings, seed=1)
    run(prompts, [WARM_UP["tokens"]] * len(prompts))
    prompts, longest = make_prompts(count, settings)
    reset_peak(device)
    synchronize(device)
    started = time.perf_counter()
    answers = run(prompts, longest)
    synchronize(device)
    seconds = time.perf_counter() - started
    if (lengths := [len(answers[index]) for index in range(count)]) != longest:
        raise InputError(f"generation/{way}: expected answers of {longest[:5]} … tokens, found {lengths[:5]} …")
    return {
        "seconds": round(seconds, 3),
        "records": count,
        "generated_tokens": sum(lengths),
        "tokens_per_second": round(sum(lengths) / seconds, 2),
        "records_per_second": round(count / seconds, 4),
        **measure_peak(device),
    }


def make_vllm(config: Any, settings: Settings, folder: Path) -> Callable[[list[list[int]], list[int]], Answers]:
    """Load a model of random weights into vLLM, in this process so that its memory can be measured; return its run."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    config = copy.deepcopy(config)
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder / "vllm")
    engine = LLM(
        model=str(folder / "vllm"),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16" if settings["precision"] == "bf16" else "float32",
        max_model_len=settings["prompt_tokens"] + 2 * settings["completion_tokens"],
        seed=0,
    )

    def run(prompts: list[list[int]], longest: list[int]) -> Answers:
        sampling = [
            SamplingParams(temperature=0.0, max_tokens=one, ignore_eos=True, detokenize=False) for one in longest
        ]
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return {index: list(output.outputs[0].token_ids) for index, output in enumerate(outputs)}

    return run


# ---- Signals ----


def measure_signal(kind: str, settings: Settings, folder: Path) -> Result:
    """Measure the computation of a signal, up to its tensors on the CPU.

    Raises:
        InputError: the signal of a record is not that of the teacher's own logits.
    """
    device = select_device(settings["device"])
    args = step_arguments(settings, settings["signal_records"])
    examples = make_examples(args)
    teacher = make_signal_teacher(kind, build_teacher(args, device, folder), args)
    divergence = check_signal(teacher, examples[0], teacher.compute(examples[:1])[0])
    reset_peak(device)
    synchronize(device)
    started = time.perf_counter()

    def compute(rows: list[int]) -> int:
        return len(teacher.compute([examples[row] for row in rows]))

    sizes = list(in_batches(list(range(len(examples))), compute, AUTO_BATCH_SIZE[device.type]))
    synchronize(device)
    seconds = time.perf_counter() - started
    completions = sum(len(one["completion"]) for one in examples)
    return {
        "seconds": round(seconds, 3),
        "records": sum(sizes),
        "batch_size": max(sizes),
        "tokens_per_second": round((completions + sum(len(one["prompt"]) for one in examples)) / seconds, 1),
        "completion_tokens_per_second": round(completions / seconds, 1),
        "divergence_nats": round(divergence, 6),
        **measure_peak(device),
    }


@torch.inference_mode()
def check_signal(teacher: Any, example: Any, signal: dict[str, torch.Tensor]) -> float:
    """Return the divergence of a record's signal from the logits of the whole model, in nats per token.

    Raises:
        InputError: it is more than rounding.
    """
    start, device = len(example["prompt"]), teacher.model.device
    ids = torch.tensor([example["prompt"] + example["completion"]], device=device)
    logits = teacher.model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1, : teacher.vocabulary].float()
    p, q = teacher.compare_parts(logits, {name: tensor.to(device) for name, tensor in signal.items()})
    divergence = (p.exp() * (p - q)).sum(-1).mean().item()
    if not abs(divergence) <= TOLERANCE:
        raise InputError(
            f"signals/{teacher.options['kind']}: expected the distribution of the model's logits, found one that "
            f"diverges by {divergence:.3g} nats per token"
        )
    return divergence


# ---- Jobs ----


def describe(settings: Settings) -> Result:
    """Describe the machine.

    Raises:
        InputError: there is no GPU, but one is requested.
    """
    device = select_device(settings["device"])
    return describe_machine(device) | describe_gpu(device)


def measure(one: Measurement, settings: Settings, folder: Path) -> Result:
    """Take a measurement; `folder` has what `prepare_steps` wrote for its batch."""
    if one.part == "kd_step":
        found = measure_step(one.way, one.batch or 1, settings, folder)
    elif one.part == "generation":
        found = measure_generation(one.way, settings, folder)
    else:
        found = measure_signal(one.way, settings, folder)
    if one.package:
        found["package"] = find_version(one.package)
    return found


def find_version(package: str) -> str:
    """Return name and version of a package."""
    name = DISTRIBUTIONS.get(package, package)
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} of unknown version"


def run(job: dict[str, Any]) -> Result:
    """Run a job."""
    settings, folder = job["settings"], Path(job["folder"])
    if settings["shape"] == "tiny":
        torch.set_num_threads(1)  # models this small gain nothing from a second thread, and wait for it
    if job["kind"] == "describe":
        return describe(settings)
    if job["kind"] == "prepare":
        return prepare_steps(settings, job["batch"], folder)
    return measure(Measurement(**job["measurement"]), settings, folder)


def describe_failure(job: dict[str, Any]) -> Result:
    """Return the peak of a measurement that failed."""
    return measure_peak(select_device(job["settings"]["device"])) if job["kind"] == "measure" else {}


if __name__ == "__main__":
    run_as_job(run, describe_failure)
