"""Compare the memory plan of trainings with what the allocator really held during ten optimizer steps.

    python benchmarks/memory_plan.py --out benchmarks/results/memory_plan.json
    python benchmarks/memory_plan.py --device cuda --out benchmarks/results/memory_plan_cuda.json

The real side is `train_student` itself, on records of one length and models of 10 to 20 million parameters with random
weights. On a CPU its memory is read from torch's profiler, which sees every allocation and release; on a GPU from the
caching allocator's own counters. The planned side is `memory_plan.measure`, on fake tensors of the same device. Each
case has a process of its own. Prints a table; --out writes it as JSON.
"""

import argparse
import dataclasses
import datetime
import gc
import json
import random
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from distill.common.errors import run_script
from distill.common.files import write_json

PROMPT_WORDS, ANSWER_WORDS, STEPS = 260, 60, 10
TEACHER = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
STUDENT = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2}
SHARED: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 8192,
    "tie_word_embeddings": False,
}
SIZES = {
    "teacher": TEACHER | {"intermediate_size": 1536} | SHARED,
    "student": STUDENT | {"intermediate_size": 1152} | SHARED,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A training to plan and to run; attributes as in the configuration."""

    signal: str
    precision: str = "fp32"
    lora: bool = False
    gradient_checkpointing: bool = True
    optimizer: str = "adamw_torch_fused"

    @property
    def name(self) -> str:
        """Name in the table."""
        parts = [self.signal, self.precision, "LoRA" if self.lora else "all weights"]
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        return ", ".join([*parts, *(["8-bit Adam"] if "8bit" in self.optimizer else [])])


CASES = [
    *(Case(signal, precision) for signal in ("seqkd", "online", "hidden", "topk") for precision in ("fp32", "bf16")),
    Case("online", "fp32", gradient_checkpointing=False),
    Case("topk", "bf16", gradient_checkpointing=False),
    Case("online", "fp32", lora=True),
    Case("online", "bf16", lora=True, gradient_checkpointing=False),
    Case("hidden", "bf16", lora=True),
    Case("seqkd", "fp32", optimizer="adamw_bnb_8bit"),
]


# ---- The real side ----


def write_models(folder: Path) -> dict[str, str]:
    """Write a tokenizer and models with random weights; return their folders."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from distill.demo.tokenizer import train_tokenizer

    # As many tokens as the models have embeddings, over which the divergence is computed.
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=8)) for _ in range(15_000)]
    tokenizer = train_tokenizer([*words, *["three seven"] * 1000], SHARED["vocab_size"])
    found = {}
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        settings = {key: value for key, value in sizes.items() if key != "architectures"}
        config = AutoConfig.for_model(**settings, eos_token_id=tokenizer.eos_token_id)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        found[name] = str(folder / name)
    return found


def make_records(count: int) -> list[dict[str, Any]]:
    """Records of the same length."""
    prompt, answer = " ".join(["three"] * PROMPT_WORDS), " ".join(["seven"] * ANSWER_WORDS)
    messages = [{"role": "system", "content": "Count."}, {"role": "user", "content": prompt}]
    messages.append({"role": "assistant", "content": answer})
    return [
        {"id": number, "uid": f"{number:032x}", "finish_reason": "stop", "messages": messages}
        for number in range(count)
    ]


def make_run(case: Case, folder: Path, models: dict[str, str], device: str) -> Any:
    """The options of a training; its signal is computed first."""
    import train_student as script
    from distill.student.student_run import read_run

    data = folder / "data"
    argv = ["--data", str(data), "--name", "s", "--category", "c", "--model", models["student"], "--out"]
    argv += [str(folder / "out"), "--checkpoints", str(folder / "checkpoints"), "--device", device]
    argv += ["--precision", case.precision, "--batch-size", "2", "--gradient-accumulation-steps", "2", "--epochs", "1"]
    argv += ["--optimizer", case.optimizer, "--max-length", "2048", "--examples", str(folder / "examples")]
    argv += ["--gradient-checkpointing" if case.gradient_checkpointing else "--no-gradient-checkpointing"]
    argv += ["--lora-rank", "16"] if case.lora else []
    if case.signal == "seqkd":
        return read_run(script.parse_args([*argv, "--method", "seqkd"]))
    dtype = "bfloat16" if case.precision == "bf16" else "float32"
    argv += ["--method", "forward_kl", "--teacher-model", models["teacher"], "--teacher-dtype", dtype]
    argv += ["--signal", case.signal, "--temperature", "2"]
    if case.signal != "online":
        compute_signal(case.signal, folder, models["teacher"], dtype, device)
        argv += ["--signal-folders", str(folder / "signal")]
    return read_run(script.parse_args(argv))


def compute_signal(kind: str, folder: Path, teacher: str, dtype: str, device: str) -> None:
    """Compute the teacher's signal of the records."""
    import compute_signal as script
    from distill.teacher.compute_signal import compute_signal as compute

    argv = ["--data", str(folder / "data"), "--out", str(folder / "signal"), "--model", teacher, "--dtype", dtype]
    argv += ["--kind", kind, "--device", device, "--examples", str(folder / "examples")]
    argv += ["--top-k", "64", "--temperatures", "2"] if kind == "topk" else []
    compute(vars(script.parse_args(argv)), make_records(4 * STEPS), [])


def count_live(kind: str) -> int:
    """Bytes of the storages that tensors of this process hold."""
    import torch

    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type == kind]
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())


def run_real(case: Case, folder: Path, device: str) -> dict[str, int]:
    """Train for ten steps; return the peak of the allocator, and the longest prompt and answer in tokens."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from distill.student import train_student as module

    models = write_models(folder)
    run = make_run(case, folder, models, device)
    found = {}
    train = module.run_training

    def measured(trainer: Any, checkpoints: Path) -> None:
        lengths = [(len(one["prompt"]), len(one["completion"])) for one in trainer.train_dataset]
        found["prompt_tokens"], found["answer_tokens"] = max(lengths)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            train(trainer, checkpoints)
            found["peak"] = torch.cuda.max_memory_allocated()
            return
        live = most = count_live("cpu")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            train(trainer, checkpoints)
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            most = max(most, live)
        found["peak"] = most

    module.run_training = measured
    module.train_student(run, [make_records(4 * STEPS)], [[]])
    return found


# ---- The planned side ----


def run_plan(case: Case, lengths: dict[str, int], device: str) -> int:
    """The planned peak in bytes."""
    if device == "cuda":
        from distill.memory_plan.cuda_guard import load_cuda_guard

        load_cuda_guard()
    from distill.memory_plan.measure import measure_training
    from distill.memory_plan.stage import ModelShape, Training
    from distill.student.options import LoraOptions

    dtype = "bfloat16" if case.precision == "bf16" else "float32"
    method = "seqkd" if case.signal == "seqkd" else "forward_kl"
    work = Training(
        student=ModelShape(name="student", config=SIZES["student"]),
        teacher=None if method == "seqkd" else ModelShape(name="teacher", config=SIZES["teacher"], dtype=dtype),
        method=method,
        signal="online" if case.signal == "seqkd" else case.signal,
        top_k=64,
        temperature=2.0,
        alpha=0.5,
        parameters={},
        lora=LoraOptions(rank=16) if case.lora else None,
        optimizer=case.optimizer,
        precision=case.precision,
        batch_size=2,
        gradient_checkpointing=case.gradient_checkpointing,
        prompt_tokens=lengths["prompt_tokens"],
        answer_tokens=lengths["answer_tokens"],
    )
    return max(measure_training(work, device).peaks.values())


# ---- Both ----


def run_apart(*arguments: str) -> Any:
    """Run this script in a new process; return what it prints last."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(number: int, device: str) -> dict[str, Any]:
    """Plan and run one case."""
    real = run_apart("--device", device, "--case", str(number), "--side", "real")
    lengths = json.dumps({name: real[name] for name in ("prompt_tokens", "answer_tokens")})
    plan = run_apart("--device", device, "--case", str(number), "--side", "plan", "--lengths", lengths)
    return {
        "case": dataclasses.asdict(CASES[number]),
        "measured_mib": round(real["peak"] / 2**20, 1),
        "planned_mib": round(plan / 2**20, 1),
        "difference": round(plan / real["peak"] - 1, 4),
    }


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write.")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="A single case, by number.")
    parser.add_argument("--side", choices=("real", "plan"), help=argparse.SUPPRESS)
    parser.add_argument("--lengths", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, or one side of a case."""
    args = parse_args(argv)
    if args.side == "real":
        with tempfile.TemporaryDirectory() as folder:
            found = run_real(CASES[args.case], Path(folder), args.device)
        print(json.dumps(found))
        return
    if args.side == "plan":
        print(run_plan(CASES[args.case], args.lengths, args.device))
        return
    rows = []
    print("| training | measured | planned | difference |\n| --- | --- | --- | --- |")
    for number in range(len(CASES)) if args.case is None else [args.case]:
        row = compare(number, args.device)
        rows.append(row)
        sizes = f"{row['measured_mib']:.0f} MiB | {row['planned_mib']:.0f} MiB"
        print(f"| {CASES[number].name} | {sizes} | {100 * row['difference']:+.1f} % |", flush=True)
    if args.out:
        import torch
        from machine import describe_machine

        machine = describe_machine(torch.device(args.device))
        write_json(args.out, {"date": datetime.date.today().isoformat(), "machine": machine, "cases": rows})


if __name__ == "__main__":
    run_script(main)
