"""A training run as typed options, and its command line.

Importing this module does not import torch, so that the script rejects a bad command line at once.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from distill.common.options import StorePairs, add_options, parse_pair, read_options
from distill.common.trackers import TrackerOptions
from distill.generation.sampling import Sampling
from distill.models.example_folders import add_examples_option
from distill.models.options import TEMPLATE_DATE, DeviceOptions, ModelOptions, TemplateOptions
from distill.student.divergences import METHODS
from distill.student.options import LoraOptions, ObjectiveOptions, OnPolicyOptions, PoolOptions, TrainOptions
from distill.student.run_options import get_run_options

# Where a run reads, writes and reports, and its name: they do not change the trained weights.
PLACES = ("data", "out", "checkpoints", "examples", "device", "name", "trackers")

# The options of each teacher in `--teachers`, with the types of their values.
TEACHER_OPTIONS = {
    "model": str, "adapter": str, "dtype": str, "quantization": str, "tokenizer": str, "template_arguments": dict,
    "serving": dict,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """The teacher of a training run, and where its signal is.

    Attributes:
        model: hub id or local folder.
        adapters: LoRA checkpoints: none, one, or with a cached signal one per data folder.
        dtype: data type of the weights.
        quantization: quantization of the weights.
        signal_folders: cached signals, one per data folder; none with signal `online`.
        template_arguments: further variables of its chat template.
        serving: what a server changes about a cached signal, see `describe_serving`.
        tokenizer: hub id or folder of its tokenizer, if that is not in `model`.
        by_folder: with a cached signal, the teachers of the data folders if they differ in more than their adapters;
            the attributes above are those of the first.
    """

    model: str
    adapters: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    quantization: str = "none"
    signal_folders: tuple[Path, ...] = ()
    template_arguments: dict[str, Any] = field(default_factory=dict)
    serving: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    by_folder: "tuple[TeacherSource, ...]" = ()

    def list_by_folder(self) -> "list[TeacherSource]":
        """The teachers of the cached signals, each with its own signal folder and at most one adapter."""
        adapters = cycle([(adapter,) for adapter in self.adapters] or [()])
        sources = self.by_folder or [replace(self, adapters=next(adapters)) for _ in self.signal_folders]
        return [
            replace(source, signal_folders=(folder,))
            for source, folder in zip(sources, self.signal_folders, strict=True)
        ]

    def list_models(self) -> list[str]:
        """The models of all teachers, each once."""
        return list(dict.fromkeys(source.model for source in self.by_folder or (self,)))


def make_source(options: Mapping[str, Any], **others: Any) -> TeacherSource:
    """The source of a teacher with these options, by names of TEACHER_OPTIONS; None stands for the default."""
    given = {name: value for name, value in options.items() if value is not None}
    adapter = given.pop("adapter", None)
    return TeacherSource(adapters=(adapter,) if adapter else (), **given, **others)


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """The options of a training run.

    Attributes:
        data: folders with the splits, one per category.
        out: the student's folder.
        checkpoints: parent folder of the checkpoints of all runs.
        name: name of the student.
        category: category of the records; of a pooled student, `all`.
        model: the student before distillation, hub id or local folder.
        pool_balance: `proportional`, or `balanced` to repeat the records of smaller categories.
        device: `auto`, `cpu` or `cuda`.
        teacher: None for a method without a divergence.
        lora: None trains all weights.
        template_arguments: further variables of the student's chat template.
        template_date: the day that chat templates read as today's.
        validation_max_new_tokens: maximum length of an answer to a validation prompt in tokens.
        examples: cache of tokenized records; None keeps those of this run in memory.
        trackers: where the training is shown while it runs.
    """

    data: tuple[Path, ...]
    out: Path
    checkpoints: Path
    name: str
    category: str
    model: str
    pool_balance: str
    device: str
    objective: ObjectiveOptions
    teacher: TeacherSource | None
    on_policy: OnPolicyOptions
    lora: LoraOptions | None
    train: TrainOptions
    template_arguments: dict[str, Any] = field(default_factory=dict)
    template_date: str = TEMPLATE_DATE
    validation_max_new_tokens: int = Sampling.max_new_tokens
    examples: Path | None = None
    trackers: TrackerOptions = field(default_factory=TrackerOptions)

    def __post_init__(self) -> None:
        method = self.objective.method
        if METHODS[method].needs_teacher != (self.teacher is not None):
            raise ValueError(f"method {method}: expected {'no' if self.teacher else 'a'} teacher")

    @property
    def stops_runaway(self) -> bool:
        """Whether the training stops if the answers to the validation prompts run away."""
        return self.on_policy.runaway == "stop"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run to a command line."""
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="Folders with the splits, one per category.",
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder to write the student to.")
    parser.add_argument("--name", required=True, help="Name of the student.")
    parser.add_argument("--category", required=True, help="Category of the records, or `all`.")
    parser.add_argument("--model", required=True, help="Student before distillation: hub id or local folder.")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("artifacts/checkpoints"), help="Parent folder of the checkpoints."
    )
    add_examples_option(parser)
    add_options(parser, ModelOptions, only=["template_arguments"])
    add_options(parser, TemplateOptions)
    add_options(parser, PoolOptions)
    add_options(parser, DeviceOptions)
    add_options(parser.add_argument_group("objective"), ObjectiveOptions, defaults={"method": MISSING})
    teacher = parser.add_argument_group("teacher")
    names = ("model", "dtype", "quantization", "template_arguments")
    add_options(teacher, ModelOptions, "teacher_", only=names, defaults={"model": None})
    teacher.add_argument(
        "--teacher-adapter",
        nargs="+",
        metavar="ADAPTER",
        help="LoRA checkpoint of the teacher; with a cached signal one, or one for each --data.",
    )
    teacher.add_argument(
        "--teacher-serving",
        nargs="+",
        type=parse_pair,
        action=StorePairs,
        default={},
        metavar="NAME=VALUE",
        help="Engine, and options of vLLM, that change a cached signal.",
    )
    teacher.add_argument("--teacher-tokenizer", metavar="MODEL", help="Tokenizer of a teacher without local weights.")
    teacher.add_argument(
        "--teachers",
        nargs="+",
        type=parse_teacher,
        metavar="JSON",
        help="With a cached signal, teachers that differ between the --data folders: for each a JSON object of "
        f"{', '.join(TEACHER_OPTIONS)}. They replace the options above.",
    )
    teacher.add_argument(
        "--signal-folders", nargs="+", metavar="FOLDER", help="Output of compute_signal.py for each --data."
    )
    add_options(parser.add_argument_group("on-policy training"), OnPolicyOptions, "on_policy_")
    lora = parser.add_argument_group("LoRA", "Without --lora-rank all weights are trained.")
    add_options(lora, LoraOptions, "lora_", defaults={"rank": None, "target": ["all"]})
    training = parser.add_argument_group("training")
    add_options(training, TrainOptions)
    add_options(training, Sampling, "validation_", only=["max_new_tokens"])
    add_options(parser.add_argument_group("trackers"), TrackerOptions)


def parse_teacher(text: str) -> dict[str, Any]:
    """The options of a teacher from a JSON object.

    Raises:
        argparse.ArgumentTypeError: the text is something else, or has other options.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object ({error}), found {text!r}") from None
    if not isinstance(found, dict) or not found.get("model"):
        raise argparse.ArgumentTypeError(f"expected a JSON object with a model, found {text!r}")
    for name, value in found.items():
        if name not in TEACHER_OPTIONS:
            raise argparse.ArgumentTypeError(f"expected {', '.join(TEACHER_OPTIONS)}, found {name!r}")
        if value is not None and not isinstance(value, TEACHER_OPTIONS[name]):
            kind = "text" if TEACHER_OPTIONS[name] is str else "an object"
            raise argparse.ArgumentTypeError(f"{name}: expected {kind} or null, found {value!r}")
    return found


def check_run(args: argparse.Namespace) -> str | None:
    """What is wrong with a combination of options; None if they fit together."""
    needs_teacher = METHODS[args.method].needs_teacher
    is_online = args.signal == "online"
    if needs_teacher and not args.teacher_model:
        return f"--method {args.method} needs --teacher-model"
    if needs_teacher and not is_online and len(args.signal_folders or []) != len(args.data):
        return f"--signal {args.signal} needs --signal-folders, one for each --data"
    if needs_teacher and args.tail_samples and not (args.signal == "topk" and METHODS[args.method].is_linear):
        linear = " or ".join(name for name, method in METHODS.items() if method.is_linear)
        return f"--tail-samples needs --signal topk and --method {linear}"
    if len(args.teacher_adapter or []) not in ({0, 1} if is_online else {0, 1, len(args.data)}):
        return "--teacher-adapter: expected one, or one for each --data with --signal hidden or topk"
    if (args.on_policy_start or args.on_policy_runaway == "stop") and not args.on_policy_fraction:
        return "--on-policy-start and --on-policy-runaway stop need --on-policy-fraction"
    if args.on_policy_runaway == "stop" and not args.validation_samples:
        return "--on-policy-runaway stop needs --validation-samples"
    if args.teachers and (is_online or len(args.teachers) != len(args.data)):
        return "--teachers needs --signal hidden or topk, and one teacher for each --data"
    if args.cross_tokenizer and (problem := check_cross_tokenizer(args)):
        return problem
    if args.quantization_aware and args.lora_rank is not None:
        return "--quantization-aware needs all weights to be trained, without --lora-rank"
    if args.quantization_aware and args.strategy == "fsdp":
        return "--quantization-aware needs --strategy ddp: groups of weights are not rounded across shards"
    if args.on_policy_fraction and args.strategy == "fsdp":
        return "--on-policy-fraction needs --strategy ddp"
    if args.on_policy_fraction and not (needs_teacher and is_online):
        return "--on-policy-fraction needs --signal online and a --method with a divergence"
    return None


def check_cross_tokenizer(args: argparse.Namespace) -> str | None:
    """What does not go together with another tokenizer of the teacher."""
    if not METHODS[args.method].needs_teacher:
        return f"--cross-tokenizer needs a --method with a divergence, {args.method} has none"
    if args.on_policy_fraction:
        return "--cross-tokenizer needs --on-policy-fraction 0: sampled answers are not read in the teacher's tokens"
    if args.tail_samples:
        return "--cross-tokenizer needs --tail-samples 0: sampled tokens are not compared across tokenizers"
    if args.packing:
        return "--cross-tokenizer needs --no-packing: packed rows have the same tokens for both models"
    return None


def read_run(args: argparse.Namespace) -> StudentRun:
    """The run of a command line that `check_run` accepts."""
    teacher = TeacherSource(
        model=args.teacher_model,
        adapters=tuple(args.teacher_adapter or ()),
        dtype=args.teacher_dtype,
        quantization=args.teacher_quantization,
        signal_folders=tuple(map(Path, args.signal_folders or ())) if args.signal != "online" else (),
        template_arguments=args.teacher_template_arguments,
        serving=args.teacher_serving,
        tokenizer=args.teacher_tokenizer,
        by_folder=tuple(map(make_source, args.teachers or ())),
    )
    return StudentRun(
        data=tuple(args.data),
        out=args.out,
        checkpoints=args.checkpoints,
        name=args.name,
        category=args.category,
        model=args.model,
        pool_balance=args.pool_balance,
        device=args.device,
        objective=read_options(args, ObjectiveOptions),
        teacher=teacher if METHODS[args.method].needs_teacher else None,
        on_policy=read_options(args, OnPolicyOptions, "on_policy_"),
        lora=read_options(args, LoraOptions, "lora_") if args.lora_rank is not None else None,
        train=read_options(args, TrainOptions),
        template_arguments=args.template_arguments,
        template_date=args.template_date,
        validation_max_new_tokens=args.validation_max_new_tokens,
        examples=args.examples,
        trackers=read_options(args, TrackerOptions),
    )


def list_result_settings(run: StudentRun) -> dict[str, Any]:
    """The options that decide the trained weights, nested as in StudentRun.

    Batch size and accumulation count by their product, `step_records`: how a step is split changes rounding only.
    The date is not among them: where a template reads it, it is part of the examples' tokens.
    """
    settings = dataclasses.asdict(run)
    for name in (*PLACES, "template_date"):
        del settings[name]
    for name in list_unused_objective(run.objective):
        del settings["objective"][name]
    if teacher := settings["teacher"]:
        for source in (teacher, *teacher["by_folder"]):
            for name in ("signal_folders", "serving", "tokenizer"):  # the signal's fingerprint covers them
                del source[name]
        if not teacher["by_folder"]:
            del teacher["by_folder"]
    train = settings["train"]
    for name in get_run_options(train, run.on_policy.runaway):
        del train[name]
    if not run.stops_runaway:
        del settings["validation_max_new_tokens"]
    if train["quantization_aware"] is None:  # it came later: checkpoints of older runs keep their folder
        del train["quantization_aware"]
    train["step_records"] = train.pop("batch_size") * train.pop("gradient_accumulation_steps")
    return settings


def list_unused_objective(objective: ObjectiveOptions) -> set[str]:
    """The names of the options of other methods, and of other signals."""
    names = {name for method in METHODS.values() for name in method.options}
    return names - set(METHODS[objective.method].options) | (
        {"top_k", "tail_samples"} if objective.signal != "topk" else set()
    )


def list_card_settings(run: StudentRun) -> dict[str, Any]:
    """The options that shaped the student, by their names on the command line; without models and method."""
    settings: dict[str, Any] = {"pool_balance": run.pool_balance} if len(run.data) > 1 else {}
    if run.teacher:
        others = {"method", *list_unused_objective(run.objective)}
        settings |= {name: value for name, value in dataclasses.asdict(run.objective).items() if name not in others}
        settings |= list_teacher_settings(run.teacher)
    if run.on_policy.fraction:
        settings |= {f"on_policy_{name}": value for name, value in dataclasses.asdict(run.on_policy).items()}
    if run.lora:
        settings |= {f"lora_{name}": value for name, value in dataclasses.asdict(run.lora).items()}
    settings |= {"template_arguments": run.template_arguments or None}
    settings |= dataclasses.asdict(run.train)
    unused = get_run_options(settings, run.on_policy.runaway)
    return {name: value for name, value in settings.items() if value is not None and name not in unused}


def list_teacher_settings(teacher: TeacherSource) -> dict[str, Any]:
    """The options of a teacher for a card; of teachers that differ, one text each."""
    if teacher.by_folder:
        return {"teachers": list(dict.fromkeys(map(describe_source, teacher.by_folder)))}
    return {
        "teacher_adapter": teacher.adapters or None,
        "teacher_dtype": teacher.dtype,
        "teacher_quantization": teacher.quantization,
        "teacher_template_arguments": teacher.template_arguments or None,
    }


def describe_source(teacher: TeacherSource) -> str:
    """A teacher as one text: `models/teacher (adapter models/lora, bfloat16, quantization none)`."""
    parts = [f"adapter {adapter}" for adapter in teacher.adapters]
    parts += [teacher.dtype, f"quantization {teacher.quantization}"]
    parts += [f"{name}={value}" for name, value in teacher.template_arguments.items()]
    return f"{teacher.model} ({', '.join(parts)})"
