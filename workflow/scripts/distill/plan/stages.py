"""The stages of an experiment that load models, with what decides their memory; see `memory_plan.stage`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from distill.common.errors import InputError
from distill.common.names import TEACHER
from distill.common.variants import get_variant, is_base, split_name
from distill.evaluation.metrics import needs_likelihoods
from distill.generation.engine import count_gpus
from distill.memory_plan.stage import Generating, Loading, ModelShape, Reading, Stage, Training, Work
from distill.plan.command_lines import get_dtype
from distill.plan.experiment import (
    Config,
    get_category_config,
    get_configured_students,
    get_engine,
    get_evaluated_models,
    get_exported_variants,
    get_initial_model,
    get_start,
    get_student,
    get_teacher,
    group_by_teacher,
    is_judging,
)
from distill.plan.model_shapes import Reader, find_config, keep_layers, read_cached_config
from distill.plan.signals import get_signals
from distill.student.divergences import METHODS
from distill.student.options import LoraOptions

QUANTIZED = ("int8", "nf4")  # variants that are loaded as such; GGUF files are dequantized


@dataclass(frozen=True)
class Lengths:
    """The longest prompt and the longest answer in tokens; None takes them from the configuration."""

    prompt: int | None = None
    answer: int | None = None

    def split(self, longest: int, answer: int) -> tuple[int, int]:
        """Return tokens of prompt and answer.

        Args:
            longest: maximum length of both together.
            answer: maximum length of an answer.
        """
        answer_tokens = self.answer or min(answer, longest // 2)
        return self.prompt or longest - answer_tokens, answer_tokens


def get_batch_size(settings: dict[str, Any]) -> int | None:
    """Return how many answers are generated or read at a time; None if that adapts to the memory."""
    size = settings["batch_size"]
    return None if size == "auto" else int(size)


def name_category(stage: Stage | str, category: str) -> Stage | str:
    """Return a stage as that of one category; a text stays as it is."""
    if isinstance(stage, str):
        return stage
    return replace(stage, name=f"{stage.name} ({category})", wildcards=stage.wildcards | {"category": category})


@dataclass(frozen=True)
class StageLister:
    """Lists the stages of an experiment.

    Attributes:
        config: the checked configuration.
        lengths: lengths of the records.
        read_hub: how config.json of a hub id is read.
    """

    config: Config
    lengths: Lengths = Lengths()
    read_hub: Reader = read_cached_config

    def list_stages(self) -> Iterator[Stage | str]:
        """Yield the stages in the order of the workflow; a text for each model whose shape is unknown.

        Stages that take other memory in a category with its own teacher follow, with the category as a wildcard.
        """
        listed: list[Stage | str] = []
        for members in group_by_teacher(self.config, self.config["categories"]).values():
            own = replace(self, config=get_category_config(self.config, members[0]))
            new = [stage for stage in own.list_with_teacher() if stage not in listed]
            if listed:
                new = [name_category(stage, members[0]) for stage in new if not self.is_pooled(stage)]
            yield from new
            listed += new

    def is_pooled(self, stage: Stage | str) -> bool:
        """Whether a stage is of a student that is trained on all categories."""
        student = stage.wildcards.get("student") if isinstance(stage, Stage) else None
        return student is not None and self.config["students"][student]["pool"]

    def list_with_teacher(self) -> Iterator[Stage | str]:
        """Yield the stages of the common teacher; see `list_stages`."""
        problems: dict[str, None] = {}
        for make in (
            self.answers,
            self.signals,
            self.copies,
            self.trainings,
            self.predictions,
            self.judging,
            self.exports,
        ):
            try:
                yield from make()
            except InputError as error:
                problems[str(error)] = None
        yield from (*problems, *self.sampling(), *self.serving())

    # ---- Models ----

    @cached_property
    def teacher(self) -> ModelShape:
        """The teacher as it answers."""
        settings = self.config["teacher"]
        found = find_config(self.config, get_teacher(self.config), self.read_hub)
        return ModelShape(name="teacher", config=found, dtype=settings["dtype"], quantization=settings["quantization"])

    def list_other_heads(self) -> tuple[ModelShape, ...]:
        """The teachers of other categories, each different model and dtype once."""
        first = self.teacher
        found: list[ModelShape] = []
        for members in group_by_teacher(self.config, self.config["categories"]).values():
            other = replace(self, config=get_category_config(self.config, members[0])).teacher
            other = replace(other, quantization=first.quantization)  # heads are not quantized
            found += [] if other in (first, *found) else [other]
        return tuple(found)

    def make_student(self, student: str) -> ModelShape:
        """A student, in the dtype in which it answers."""
        model = get_student(self.config, student)["model"]
        if start := get_start(self.config, student):
            return replace(self.make_student(start), name=student, dtype=get_dtype(self.config, student))
        if isinstance(model, str):
            category = self.config["categories"][0]
            found = find_config(self.config, get_initial_model(self.config, student, category), self.read_hub)
        else:
            found = keep_layers(self.teacher.config, model["layers"])
        return ModelShape(name=student, config=found, dtype=get_dtype(self.config, student))

    # ---- Stages ----

    @property
    def longest(self) -> int:
        """Maximum length of the records that students train on."""
        return max(student["train"]["max_length"] for student in self.config["students"].values())

    @property
    def answer_tokens(self) -> int:
        """Maximum length of the teacher's answers."""
        return int(self.config["teacher"]["generation"]["max_new_tokens"])

    def answers(self) -> Iterator[Stage]:
        """The teacher's answers."""
        if get_engine(self.config).starts_vllm:
            yield from self.make_serving("generate_answers", "teacher's answers")
        elif get_engine(self.config).needs_gpu:
            generation = self.config["teacher"]["generation"]
            work = self.make_generation(self.teacher, generation, generation["max_new_tokens"])
            yield Stage(rule="generate_answers", name="teacher's answers", work=(work,))

    def make_serving(self, rule: str, name: str, wildcards: dict[str, str] | None = None) -> Iterator[Stage]:
        """The teacher's weights in a vLLM server; nothing if another server has them, or vLLM changes their size."""
        options = self.config["teacher"]["vllm"]
        is_plain = "quantization" not in options["arguments"] and count_gpus(options["arguments"], nodes=1) == 1
        if get_engine(self.config).starts_vllm and is_plain:
            work = Loading(models=(self.teacher,))
            yield Stage(rule=rule, name=f"{name}: weights in vLLM", work=(work,), wildcards=wildcards or {})

    def serving(self) -> Iterator[str]:
        """What is not planned: the memory of a vLLM server beside the weights."""
        if get_engine(self.config).starts_vllm:
            arguments = self.config["teacher"]["vllm"]["arguments"]
            share = arguments.get("gpu_memory_utilization", "by default 0.92 in vLLM 0.32")
            yield (
                f"jobs with the teacher: vLLM takes a share of the GPU's memory (gpu_memory_utilization, {share}), and "
                "checks when it starts that weights, keys and values fit into it"
            )

    def make_generation(self, model: ModelShape, settings: dict[str, Any], longest: int) -> Generating:
        """Answers of a model."""
        prompt, answer = self.lengths.split(max(self.longest, 2 * longest), longest)
        return Generating(
            model=model,
            batch_size=get_batch_size(settings),
            temperature=settings["temperature"],
            top_p=settings.get("top_p", 1.0),
            prompt_tokens=prompt,
            answer_tokens=answer,
        )

    def signals(self) -> Iterator[Stage]:
        """The teacher's cached signals."""
        engine = get_engine(self.config)
        for name, signal in get_signals(self.config).items():
            if engine.is_served:
                yield from self.make_serving("compute_signal", f"signal {name}", {"signal": name})
                continue
            prompt, answer = self.lengths.split(self.longest, self.answer_tokens)
            work = Reading(
                model=replace(self.teacher, quantization=signal["quantization"]),
                kind=signal["kind"],
                batch_size=get_batch_size(self.config["teacher"]["generation"]),
                prompt_tokens=prompt,
                answer_tokens=answer,
                top_k=signal["top_k"] or 0,
                tail_samples=signal["tail_samples"] or 0,
                temperatures=tuple(signal["temperatures"] or ()),
            )
            yield Stage(rule="compute_signal", name=f"signal {name}", work=(work,), wildcards={"signal": name})

    def copies(self) -> Iterator[Stage]:
        """The students that start as copies of the teacher's layers, made on the CPU."""
        layers = {
            one["model"]["layers"] for one in self.config["students"].values() if not isinstance(one["model"], str)
        }
        for number in sorted(layers):
            work = Loading(models=(replace(self.teacher, quantization="none"),), on_host=True)
            yield Stage(
                rule="copy_layers", name=f"copy of {number} layers", work=(work,), wildcards={"layers": str(number)}
            )

    def trainings(self) -> Iterator[Stage]:
        """The students' trainings."""
        for student, settings in self.config["students"].items():
            train = settings["train"]
            prompt, answer = self.lengths.split(train["max_length"], self.answer_tokens)
            quantization = settings["teacher_quantization"] or self.config["teacher"]["quantization"]
            method = METHODS[settings["method"]]
            has_heads = method.needs_teacher and settings["pool"] and settings["signal"] == "hidden"
            same = ("method", "signal", "top_k", "tail_samples", "temperature", "alpha", "cross_tokenizer")
            work = Training(
                student=self.make_student(student),
                teacher=replace(self.teacher, quantization=quantization) if method.needs_teacher else None,
                more_heads=self.list_other_heads() if has_heads else (),
                lora=LoraOptions(**settings["lora"]) if settings["lora"] else None,
                parameters={name: settings[name] for name in method.options},
                prompt_tokens=prompt,
                answer_tokens=answer,
                row_length=train["max_length"] if train["packing"] else None,
                ranks=train["nodes"] * train["gpus_per_node"],
                processes=train["gpus_per_node"],
                **{name: settings[name] for name in same},
                **{name: train[name] for name in ("optimizer", "precision", "batch_size", "strategy")},
                **{name: train[name] for name in ("gradient_checkpointing", "fsdp_offload", "quantization_aware")},
            )
            yield Stage(
                rule="train_student", name=f"training of {student}", work=(work,), wildcards={"student": student}
            )

    def sampling(self) -> Iterator[str]:
        """What is not planned: the answers that students sample while they train."""
        for student, settings in get_configured_students(self.config).items():
            if settings["on_policy_fraction"]:
                yield (
                    f"training of {student}: the answers that it samples (on_policy_fraction), which take fewer at a "
                    "time when memory runs out"
                )

    def predictions(self) -> Iterator[Stage]:
        """The answers of all evaluated models to the test prompts, and their likelihoods."""
        for name in get_evaluated_models(self.config):
            engine = get_engine(self.config, name)
            wildcards = {"model": name}
            if engine.is_served:
                yield from self.make_serving("predict_answers", f"evaluation of {name}", wildcards)
                continue
            model = self.get_evaluated(name)
            evaluation = self.config["evaluation"]
            works: list[Work] = [self.make_generation(model, evaluation, evaluation["max_new_tokens"])]
            if needs_likelihoods(evaluation["metrics"]) and engine.gives_likelihoods:
                works.append(self.make_reading(model))
            yield Stage(rule="predict_answers", name=f"evaluation of {name}", work=tuple(works), wildcards=wildcards)

    def exports(self) -> Iterator[Stage]:
        """The exported variants, each loaded beside its student."""
        for student in self.config["students"]:
            for variant in get_exported_variants(self.config, student):
                model = self.make_student(student)
                quantization = variant if variant in QUANTIZED else "none"
                work = Loading(models=(model, replace(model, quantization=quantization)))
                wildcards = {"student": student, "variant": variant}
                yield Stage(
                    rule="export_model", name=f"export of {student} as {variant}", work=(work,), wildcards=wildcards
                )

    def get_evaluated(self, name: str) -> ModelShape:
        """An evaluated model: the teacher, a student, a `_base` or a variant."""
        if name == TEACHER:
            return self.teacher
        student = self.make_student(split_name(name)[0])
        variant = None if is_base(name) else get_variant(name)
        quantization = variant if variant in QUANTIZED else "none"
        return replace(student, name=name, quantization=quantization)

    def make_reading(self, model: ModelShape) -> Reading:
        """The likelihoods of answers."""
        prompt, answer = self.lengths.split(self.longest, self.answer_tokens)
        batch_size = get_batch_size(self.config["evaluation"])
        return Reading(
            model=model, kind="likelihood", batch_size=batch_size, prompt_tokens=prompt, answer_tokens=answer
        )

    def judging(self) -> Iterator[Stage]:
        """The likelihoods of the students' answers for the teacher."""
        if is_judging(self.config) and get_engine(self.config).is_served:
            yield from self.make_serving("judge_answers", "teacher's judgement")
        elif is_judging(self.config):
            yield Stage(rule="judge_answers", name="teacher's judgement", work=(self.make_reading(self.teacher),))
