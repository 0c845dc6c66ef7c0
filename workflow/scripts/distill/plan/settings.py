"""The configuration of an experiment, declared once: its keys, types, defaults, bounds and descriptions.

Groups that are also options of scripts come from the packages that use them. The JSON schema, the checks and
config/README.md are made from this module.
"""

from dataclasses import dataclass

from distill.common.options import COUNT, SEED, group, option, prefixed, same_as
from distill.common.trackers import TrackerOptions
from distill.common.variants import FULL, VARIANTS
from distill.demo.options import DemoAdapter, DemoStudent, DemoTeacher, TokenizerOptions
from distill.evaluation.options import ScoringOptions, TaskOptions
from distill.evaluation.pairwise_options import PairwiseOptions
from distill.export.options import CardOptions, CompressionOptions, PublishOptions
from distill.generation.options import EngineOptions, VllmOptions
from distill.generation.sampling import Sampling
from distill.models.options import QUANTIZATIONS, BatchOptions, DeviceOptions, ModelOptions, TemplateOptions
from distill.records.near_duplicate_options import NearDuplicateOptions
from distill.records.options import AnswerFormat, ColumnOptions, MixOptions, PromptOptions, SplitOptions
from distill.records.source_formats import SOURCE_FORMATS
from distill.report.options import PageOptions
from distill.student.options import (
    LaunchOptions,
    LoraOptions,
    ObjectiveOptions,
    OnPolicyOptions,
    PoolOptions,
    TrainOptions,
)
from distill.teacher.options import AnswerOptions, CacheOptions, SignalOptions

# Names of categories and students, without anchors: also the wildcard constraint of {category}, {student} and {model}.
NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]*"


@dataclass(frozen=True)
class Source:
    """Where the raw records are."""

    format: str = option(
        "Format of the raw records.",
        "messages",
        choices=SOURCE_FORMATS,
        when="Your records have another shape; see below.",
    )
    path: str | None = option(
        "A category's records in one file (a JSON array, JSONL, CSV, Parquet or Arrow), or a dataset on the Hugging "
        "Face hub, `hf:datasets/OWNER/NAME[@REVISION][:[SUBSET/]SPLIT]`. With several categories it contains "
        "`{category}`.",
        None,
        minLength=1,
        when="Required with all formats except `messages`, which reads it in place of `grpo` and `sft`.",
    )
    columns: dict[str, str] = same_as(ColumnOptions, "columns")
    system: str | None = option(
        "With `source.path`: system prompt of records that have none of their own.",
        None,
        minLength=1,
        when="Required with `alpaca`, and with records that have no system prompt.",
    )
    grpo: str = option(
        "Path of a category's GRPO records (JSONL), containing `{category}`.",
        "artifacts/grpo/grpo_{category}.jsonl",
        when="Your files are elsewhere.",
    )
    sft: str = option(
        "Path of a category's SFT records (JSONL), containing `{category}`.",
        "artifacts/sft/sft_train_{category}.jsonl",
        when="Your files are elsewhere.",
    )
    targets: str = same_as(PromptOptions, "targets")
    teacher_prompt: str | None = same_as(PromptOptions, "teacher_prompt")
    missing: str = option(
        "What to do with a category whose raw file is missing: skip it with a warning, or stop with an error.",
        "skip",
        choices=("skip", "error"),
        when="`error` in production, where a missing file is a mistake.",
    )


@dataclass(frozen=True)
class TargetShares:
    """Whose answers the students are trained on."""

    teacher: float = option("Share of the prompts whose target is the teacher's answer.", minimum=0, maximum=1)
    original: float = option(
        "Share of the prompts whose target is the original answer, selected by a hash of the prompt and split.seed.",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True)
class Generation(BatchOptions, Sampling):
    """How the teacher generates."""


@dataclass(frozen=True, kw_only=True)
class Teacher(AnswerOptions, EngineOptions, ModelOptions):
    """The model that is distilled."""

    generation: Generation = group("How the teacher generates its answers.", Generation)
    vllm: VllmOptions = group("With engine `vllm`: the server that jobs start.", VllmOptions)
    shards: int = option(
        "Generation jobs per category, run in parallel on the available GPUs or nodes.",
        1,
        **COUNT,
        changes_result=False,
        when="The number of GPUs, if one category should use all of them.",
    )


@dataclass(frozen=True)
class CopiedLayers:
    """A student that starts as a copy of some layers of the teacher."""

    init: str = option(
        "How the student is initialised: `copy_layers` copies evenly spaced layers of the teacher, its embeddings, its "
        "head and its tokenizer.",
        choices=("copy_layers",),
    )
    layers: int = option(
        "Number of layers to copy, including the first and the last.",
        **COUNT,
        when="Fewer for a smaller student, which has more to relearn.",
    )


@dataclass(frozen=True)
class StudentStart:
    """The model that a student starts from."""

    model: str | CopiedLayers = option(
        "Model to train: `hf:OWNER/NAME`, `modelscope:OWNER/NAME`, a local folder or a Hugging Face hub id; or "
        "`{init: copy_layers, layers: N}`, a copy of some layers of the teacher; or another student, "
        "`output/NAME/{category}` (`output/NAME/all` if it is pooled).",
        minLength=1,
        when="Always. A model with another tokenizer than the teacher's needs `seqkd` or `cross_tokenizer`. Copy "
        "layers if the family has no small model.",
    )


@dataclass(frozen=True)
class Training(LaunchOptions, TrainOptions):
    """How a student is trained, on how many devices, and how often."""

    seeds: list[int] | None = option(
        "Seeds to train the student with, in place of `seed`. Each gives a replica `NAME-seedN`, and the report adds "
        "their mean with its spread.",
        None,
        minItems=1,
        items=SEED,
        when="Three or more, to tell a difference between students from the chance of a single training. Adding a seed "
        "trains its replica alone.",
    )


@dataclass(frozen=True, kw_only=True)
class Student(ObjectiveOptions, StudentStart):
    """One student."""

    teacher_quantization: str | None = option(
        "Quantization of the teacher that provides the distribution; null uses teacher.quantization.",
        None,
        choices=QUANTIZATIONS,
        when="To learn from a smaller version of the teacher than the one that answered.",
    )
    template_arguments: dict[str, str | bool | int | float] = same_as(ModelOptions, "template_arguments")
    on_policy: OnPolicyOptions = prefixed("on_policy_", OnPolicyOptions)
    pool: bool = option(
        "Train one model on all categories, in `output/NAME/all`; it is scored in each category.",
        False,
        when="`true` if categories have few records, or if one model should serve them all.",
    )
    pool_balance: str = same_as(PoolOptions, "pool_balance")
    lora: LoraOptions | None = group(
        "Train a LoRA adapter and merge it at the end; null trains all weights.",
        None,
        when="Memory does not hold the optimizer states of all weights. `{}` uses the defaults below.",
    )
    train: Training = group("How the student is trained.", Training)


@dataclass(frozen=True, kw_only=True)
class Evaluation(BatchOptions, TaskOptions, ScoringOptions):
    """How models are scored on the test split."""

    questions: list[str] = option(
        "Fixed questions that every model answers, for reading the answers side by side.",
        [],
        items={"minLength": 1},
        when="A dozen questions that you know the answers to.",
    )
    system: str | None = option(
        "System prompt of the fixed questions; null uses source.system.",
        None,
        minLength=1,
        when="Required with `questions` and source.format `messages`.",
    )
    page_records: int = same_as(PageOptions, "page_records")
    max_new_tokens: int = option(
        "Maximum length of an answer in tokens.", 512, minimum=1, when="Match teacher.generation.max_new_tokens."
    )
    temperature: float = option(
        "Sampling temperature; 0 is greedy decoding.", 0.0, minimum=0, when="Above 0 to score sampled answers."
    )
    models_per_job: int = option(
        "Students of a category that answer in one job, one after the other. The answers are the same.",
        1,
        minimum=1,
        changes_result=False,
        when="About 4 for small models, where starting Python takes longer than answering.",
    )
    pairwise: PairwiseOptions | None = group(
        "Have a model on a server judge which of two answers is better; null asks none.",
        None,
        when="Answers are free text, which similarity to the teacher's text measures badly.",
    )


@dataclass(frozen=True)
class Variants:
    """What is exported."""

    variants: list[str] = option(
        "Variants to export of each student.",
        [FULL, "nf4", "int8", "gguf"],
        choices=VARIANTS,
        minItems=1,
        when="Only those that you deploy: each is loaded and scored.",
    )
    students: list[str] | None = option(
        "Students to export; one with `train.seeds` is named by its replica, such as `student_kd-seed42`. null exports "
        "all students, none of which may have several seeds.",
        None,
        minItems=1,
        items={"minLength": 1},
        when="Required if a student has several seeds.",
    )


@dataclass(frozen=True)
class Export(PublishOptions, CompressionOptions, CardOptions, Variants):
    """Students as folders to deploy."""


@dataclass(frozen=True)
class Demo(TokenizerOptions):
    """Sizes of the demo's own models."""

    teacher: DemoTeacher = group("The demo's teacher.", DemoTeacher)
    adapter: DemoAdapter = group("The demo's LoRA adapters, one per category.", DemoAdapter)
    student: DemoStudent = group("The demo's student before distillation.", DemoStudent)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of an experiment."""

    categories: list[str] = option(
        "Names of the categories. Each has its own data, adapter, students and scores.",
        minItems=1,
        items={"pattern": f"^{NAME_PATTERN}$"},
        when="Always: name your own.",
    )
    device: str = same_as(DeviceOptions, "device")
    cache: str = same_as(CacheOptions, "cache")
    signals: str | None = same_as(SignalOptions, "signals")
    template_date: str = same_as(TemplateOptions, "template_date")
    report_to: list[str] = same_as(TrackerOptions, "report_to")
    tracking_project: str = same_as(TrackerOptions, "tracking_project")
    source: Source = group("Raw records.", Source)
    mix: MixOptions = group("Which raw records are used. With `source.path` all of them are used instead.", MixOptions)
    mix_targets: TargetShares | None = group(
        "Whose answers students are trained on, the teacher's or the original ones of formats `alpaca` and "
        "`prompt_completion`; null trains on the teacher's alone.",
        None,
        when="The original annotations are worth learning from, too.",
    )
    near_duplicates: NearDuplicateOptions | None = group(
        "Find training prompts that resemble held-out prompts or each other, before the teacher is asked; null does "
        "not look for them.",
        None,
        when="`{}` uses the defaults below. Prompts are questions or instructions rather than a filled-in template.",
    )
    teacher: Teacher = group("The model that is distilled.")
    teachers: dict[str, Teacher] = group(
        "Categories with a teacher of their own: by category, the keys of `teacher` that differ.",
        dict,
        is_partial=True,
        when="Categories have different base models, engines or generation settings. See below.",
    )
    answer: AnswerFormat | None = group(
        "What a usable answer contains; null accepts any text and reads no labels.", AnswerFormat
    )
    split: SplitOptions = group("Shares of the usable answers that are held out.", SplitOptions)
    students: dict[str, Student] = group("The models to train, by name.", minProperties=1)
    evaluation: Evaluation = group("How models are scored on the test split.", Evaluation)
    export: Export | None = group(
        "Export students as folders to deploy, with model cards; null exports nothing.",
        None,
        changes_result=False,
        when="`{}` uses the defaults below.",
    )
    demo: Demo = group("Sizes of the demo's own models. Without this key they are not created.", is_optional=True)
