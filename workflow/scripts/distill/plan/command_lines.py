"""The rules' command-line options, derived from a checked configuration.

Snakemake reruns a job whose options change. Functions named `..._flags` return the options that affect a rule's result;
those named `..._run_flags` return options that only affect how a job runs, which the rules do not track.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.names import POOLED, TEACHER
from distill.common.options import list_options, list_run_options
from distill.common.trackers import TrackerOptions
from distill.evaluation.metrics import needs_likelihoods
from distill.evaluation.options import TaskOptions
from distill.evaluation.pairwise_options import PairwiseOptions
from distill.generation.engine import ENGINES
from distill.generation.options import EngineOptions, VllmOptions, get_result_arguments
from distill.models.hub_names import get_public_name
from distill.plan import settings as declared
from distill.plan.experiment import (
    Config,
    get_adapter,
    get_category_config,
    get_compared_models,
    get_engine,
    get_initial_model,
    get_origin,
    get_predicting_models,
    get_questions_system,
    get_repository,
    get_server_file,
    get_source_format,
    get_student,
    get_task_models,
    get_teacher,
    get_training_categories,
    is_dropping,
    is_shared,
)
from distill.plan.signals import SIGNALS, get_signal, get_signals
from distill.student.divergences import METHODS
from distill.student.options import OnPolicyOptions
from distill.student.run_options import LAUNCH_OPTIONS, get_run_options
from distill.teacher.serving import describe_serving

SERVER_OPTIONS = list_run_options(EngineOptions)
JUDGE_RUN_OPTIONS = list_run_options(PairwiseOptions)
JUDGE_FILES = ("against", "prompt")  # the rule has files in their place
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # by train.precision

# Settings of `source` that came later, at their defaults.
DEFAULT_SOURCE: tuple[tuple[str, Any], ...] = (("targets", "last"), ("teacher_prompt", None), ("columns", {}))

# Settings that do not affect a student's weights and scores, by their place in the configuration.
WITHOUT_RESULT = {
    "": list_run_options(declared.Config),
    "evaluation": list_run_options(declared.Evaluation),
}


def flags(settings: dict[str, Any]) -> str:
    """Format settings as a command line; None and empty mappings are left out.

    >>> flags({"batch_size": 2, "lora_rank": None, "fast": True, "names": ["a", "b"], "arguments": {"think": False}})
    '--batch-size 2 --fast --names a b --arguments think=false'
    """
    parts = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            parts.append(shlex.join([flag, *map(str, value)]))
        elif isinstance(value, dict):
            pairs = [f"{key}={json.dumps(part, ensure_ascii=False)}" for key, part in value.items()]
            parts += [shlex.join([flag, *pairs])] if pairs else []
        elif value is not None:
            parts.append(shlex.join([flag, str(value)]))
    return " ".join(parts)


def pick(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the settings with these names, in this order."""
    return {name: settings[name] for name in names}


def mix_flags(config: Config) -> str:
    """Return the options of the script that reads the raw records, which depend on their format."""
    options = get_source_format(config).options
    return flags({name: get_setting(config, place) for name, place in options.items()})


def get_setting(config: Config, place: str) -> Any:
    """Return the setting at a place such as `mix.seed`; None instead of an empty list."""
    value: Any = config
    for key in place.split("."):
        value = value[key]
    return None if value == [] else value


def prompt_flags(config: Config, category: str) -> str:
    """Return the options of make_prompts.py."""
    answer, source = config["answer"], config["source"]
    options = {"label_fields": answer["label_fields"] or None, "answer_key": answer["key"]}
    # The default is not named, so that prompts are not made again.
    options |= pick(source, "targets") if source["targets"] != "last" else {}
    if source["teacher_prompt"]:
        options |= {"teacher_prompt": source["teacher_prompt"].replace("{category}", category)}
    return flags(options)


def near_duplicate_flags(config: Config, category: str) -> str:
    """Return the options of find_near_duplicates.py, except its files."""
    options = config["near_duplicates"]
    return flags({"category": category} | config["split"] | pick(options, "threshold", "shingle_size", "action"))


def split_flags(config: Config) -> str:
    """Return the options of split_answers.py."""
    targets = config["mix_targets"]
    return flags(config["split"] | {"original_fraction": targets["original"] if targets else None})


def teacher_settings(config: Config, category: str) -> dict[str, Any]:
    """Return which teacher answers, and how. A server decides on adapter, dtype and quantization itself."""
    model = {"model": get_teacher(config, category)} | pick(config["teacher"], "template_arguments")
    if not get_engine(config).loads_weights:
        return model | pick(config["teacher"], "tokenizer")
    return model | {"adapter": get_adapter(config, category)} | pick(config["teacher"], "dtype", "quantization")


def engine_settings(config: Config) -> dict[str, Any]:
    """Return the teacher's engine, and what decides its results."""
    teacher, engine = config["teacher"], get_engine(config)
    arguments = get_result_arguments(teacher["vllm"]["arguments"]) if engine.starts_vllm else {}
    return pick(teacher, "engine") | {"vllm_arguments": arguments}


def server_settings(config: Config, model: str, purpose: str = "answers") -> dict[str, Any]:
    """Return how to connect to the server that generates a model's answers, or how to start it; empty without one.

    Args:
        config: the configuration.
        model: name of an evaluated model.
        purpose: what a shared vLLM server is for; see `get_server_file`.
    """
    teacher, engine = config["teacher"], get_engine(config, model)
    if engine.needs_base_url:
        return pick(teacher, *SERVER_OPTIONS)
    if not engine.starts_vllm:
        return {}
    options = teacher["vllm"]
    own = {f"vllm_{name}": options[name] for name in list_run_options(VllmOptions) if name != "share"}
    results = get_result_arguments(options["arguments"])
    rest = {name: value for name, value in options["arguments"].items() if name not in results}
    shared = {"vllm_server": get_server_file(purpose)} if is_shared(config) else {}
    return pick(teacher, "timeout", "concurrency") | own | {"vllm_arguments": rest} | shared


def generate_flags(config: Config, category: str) -> str:
    """Return the options of generate_answers.py that decide the answers."""
    teacher = config["teacher"]
    sampling = {name: value for name, value in teacher["generation"].items() if name != "batch_size"}
    answers = engine_settings(config) | pick(teacher, "samples", "retries", "keep", "overlong", "refused")
    settings = teacher_settings(config, category) | pick(config, "template_date") | sampling | answers
    return flags(settings | {"answer_key": config["answer"]["key"]})


def generate_run_flags(config: Config) -> str:
    """Return the untracked options of generate_answers.py: batch size, cache, server and trackers."""
    run = pick(config["teacher"]["generation"], "batch_size") | pick(config, "cache")
    return flags(run | server_settings(config, TEACHER) | tracker_settings(config))


def copy_flags(config: Config, category: str) -> str:
    """Return the options of copy_layers.py."""
    return flags(pick(teacher_settings(config, category), "model", "adapter", "dtype"))


def signal_flags(config: Config, category: str, signal: str) -> str:
    """Return the options of compute_signal.py for a signal's name."""
    teacher = teacher_settings(config, category) | get_signals(config)[signal]
    if not get_engine(config).loads_weights:
        del teacher["quantization"]
    # The default engine is not named, so that its signals are not computed again.
    engine = engine_settings(config) if get_engine(config).is_served else {}
    return flags(pick(config, "template_date") | teacher | engine)


def signal_run_flags(config: Config, category: str, signal: str) -> str:
    """Return the untracked options of compute_signal.py: batch size, folder of the data, server and trackers."""
    store = {"store": f"{config['signals']}/{category}/{signal}" if config["signals"] else None}
    run = pick(config["teacher"]["generation"], "batch_size") | store
    return flags(run | server_settings(config, TEACHER, "signals") | tracker_settings(config))


def training_flags(config: Config, name: str, categories: Sequence[str]) -> str:
    """Return the options of train_student.py for a training on these categories."""
    student = config["students"][name]
    (training,) = get_training_categories(config, name, categories[:1])
    settings = {"model": get_initial_model(config, name, training), "method": student["method"]}
    settings |= pick(student, "template_arguments") | pick(config, "template_date")
    settings |= pick(student, "pool_balance") if student["pool"] else {}
    if METHODS[student["method"]].needs_teacher:
        settings |= divergence_settings(config, name, categories)
    if student["lora"]:
        target = student["lora"]["target"]
        lora = student["lora"] | {"target": target if isinstance(target, list) else [target]}
        settings |= {f"lora_{option}": value for option, value in lora.items()}
    untracked = (*get_run_options(student["train"], student["on_policy_runaway"]), *LAUNCH_OPTIONS)
    settings |= {option: value for option, value in student["train"].items() if option not in untracked}
    return flags(settings | (sample_settings(config) if student["on_policy_runaway"] == "stop" else {}))


def taught_settings(config: Config, name: str, category: str) -> dict[str, Any]:
    """Return the teacher of a category's records, as a student learns from it."""
    student, own = config["students"][name], get_category_config(config, category)
    teacher = teacher_settings(own, category)
    if get_engine(own).loads_weights:
        teacher |= {"quantization": student["teacher_quantization"] or teacher["quantization"]}
    if student["signal"] != "online":
        options = own["teacher"]
        teacher |= {"serving": describe_serving(options["engine"], options["vllm"]["arguments"])}
    return teacher


def divergence_settings(config: Config, name: str, categories: Sequence[str]) -> dict[str, Any]:
    """Return which teacher distribution a student learns from, and how.

    If the categories have different teacher adapters, `teacher_adapter` lists them in the categories' order. If their
    teachers differ in more than that, `teachers` lists them as JSON objects.
    """
    student = config["students"][name]
    teachers = [taught_settings(config, name, category) for category in categories]
    adapters = [teacher.get("adapter") for teacher in teachers]
    settings = {f"teacher_{option}": value for option, value in teachers[0].items()}
    if None not in adapters and all(teacher | {"adapter": adapters[0]} == teachers[0] for teacher in teachers):
        settings["teacher_adapter"] = adapters if len(set(adapters)) > 1 else adapters[0]
    elif any(teacher != teachers[0] for teacher in teachers):
        settings["teachers"] = [json.dumps(teacher, ensure_ascii=False) for teacher in teachers]
    settings |= pick(student, "temperature", "alpha")
    settings |= pick(student, *METHODS[student["method"]].options)
    settings |= pick(student, "signal")
    settings |= pick(student, "cross_tokenizer") if student["cross_tokenizer"] else {}
    if signal := get_signal(config, name):
        if student["signal"] == "topk":
            settings |= pick(student, "top_k") | {"tail_samples": student["tail_samples"] or None}
        folders = [f"{SIGNALS}/{category}/{signal}" for category in categories]
        settings["signal_folders"] = folders
    if student["on_policy_fraction"]:
        settings |= pick(student, *(f"on_policy_{option}" for option in list_options(OnPolicyOptions)))
    return settings


def training_run_flags(config: Config, name: str) -> str:
    """Return the untracked options of train_student.py."""
    train, runaway = (config["students"][name][key] for key in ("train", "on_policy_runaway"))
    settings = pick(train, *get_run_options(train, runaway)) | tracker_settings(config)
    return flags(settings | (sample_settings(config) if runaway != "stop" else {}))


def tracker_settings(config: Config) -> dict[str, Any]:
    """Return where jobs report their figures while they run; empty without a tracker."""
    return pick(config, *list_options(TrackerOptions)) if config["report_to"] else {}


def sample_settings(config: Config) -> dict[str, Any]:
    """Return how a student answers validation prompts: up to the length of its answers in the evaluation."""
    return {"validation_max_new_tokens": config["evaluation"]["max_new_tokens"]}


def launch_flags(config: Config, name: str, threads: int) -> str:
    """Return the options of run_on_nodes.py; none for a training with a single process."""
    train = config["students"][name]["train"]
    nodes, gpus = train["nodes"], train["gpus_per_node"]
    return "" if nodes == gpus == 1 else flags({"nodes": nodes, "gpus": gpus, "cpus": threads})


def get_dtype(config: Config, model: str) -> str:
    """Return the dtype in which a student, its `_base` or a variant generates: that of the training."""
    return DTYPES[get_student(config, model)["train"]["precision"]]


def evaluated_settings(config: Config, model: str, category: str) -> dict[str, Any]:
    """Return which evaluated model generates answers, and how."""
    evaluation = config["evaluation"]
    if model == TEACHER:
        source = teacher_settings(config, category) | engine_settings(config)
    else:
        (folder,) = get_predicting_models(config, model, category)
        source = {"model": folder, "dtype": get_dtype(config, model)}
        source |= pick(get_student(config, model), "template_arguments")
    source |= pick(config, "template_date")
    sampling = pick(evaluation, "max_new_tokens", "temperature")
    if evaluation["temperature"]:  # greedy decoding draws no random numbers
        sampling |= pick(evaluation, "seed")
    return source | sampling


def predict_flags(config: Config, model: str, category: str) -> str:
    """Return the options of predict_answers.py for an evaluated model."""
    likelihood = needs_likelihoods(config["evaluation"]["metrics"]) and get_engine(config, model).gives_likelihoods
    settings = {"likelihood": likelihood, "answer_key": config["answer"]["key"]}
    settings |= {"is_teacher": True} if model == TEACHER else {}
    return flags(evaluated_settings(config, model, category) | settings)


def question_flags(config: Config, model: str, category: str) -> str:
    """Return the options of answer_questions.py for an evaluated model."""
    questions = pick(config["evaluation"], "questions") | {"system": get_questions_system(config)}
    return flags(evaluated_settings(config, model, category) | questions)


def batch_flags(config: Config, category: str, models: Sequence[str]) -> str:
    """Return the options of predict_models.py: those of predict_answers.py and answer_questions.py for each model."""
    folder = Path("output/evaluation")
    test = flags({"test": f"artifacts/distill_data/processed/{category}/test.jsonl"})
    runs = []
    for model in models:
        out = flags({"out": folder / model / f"{category}.predictions.jsonl"})
        runs.append(shlex.join(["--predict", f"{test} {predict_flags(config, model, category)} {out}"]))
        if config["evaluation"]["questions"]:
            out = flags({"out": folder / model / f"{category}.questions.jsonl"})
            runs.append(shlex.join(["--ask", f"{question_flags(config, model, category)} {out}"]))
    return " ".join(runs)


def predict_run_flags(config: Config, model: str) -> str:
    """Return the untracked options of predict_answers.py and answer_questions.py: batch size and server."""
    return flags(pick(config["evaluation"], "batch_size") | server_settings(config, model, "predictions"))


def judge_flags(config: Config, category: str) -> str:
    """Return the options of judge_answers.py."""
    return flags(teacher_settings(config, category) | engine_settings(config) | pick(config, "template_date"))


def judge_run_flags(config: Config) -> str:
    """Return the untracked options of judge_answers.py."""
    return flags(pick(config["evaluation"], "batch_size") | server_settings(config, TEACHER, "judgements"))


def pairwise_flags(config: Config) -> str:
    """Return the options of judge_pairs.py that decide the verdicts, except its files."""
    options = config["evaluation"]["pairwise"]
    return flags({name: value for name, value in options.items() if name not in (*JUDGE_RUN_OPTIONS, *JUDGE_FILES)})


def pairwise_run_flags(config: Config) -> str:
    """Return the untracked options of judge_pairs.py: its server."""
    return flags(pick(config["evaluation"]["pairwise"], *JUDGE_RUN_OPTIONS))


def serve_flags(config: Config, categories: Sequence[str], purpose: str) -> str:
    """Return the options of serve_teacher.py: one server with the adapters of all categories."""
    adapters = [adapter for category in categories if (adapter := get_adapter(config, category))]
    settings = pick(config["teacher"], "dtype") | {"model": get_teacher(config)}
    signals = get_signals(config).values() if purpose == "signals" else []
    settings |= {"adapters": list(dict.fromkeys(adapters)) or None}
    settings |= {"hidden_states": any(signal["kind"] == "hidden" for signal in signals)}
    settings |= {"top_logprobs": max([1, *(signal["top_k"] or 1 for signal in signals)])}
    vllm = {f"vllm_{name}": value for name, value in config["teacher"]["vllm"].items() if name != "share"}
    return flags(settings | vllm)


def score_flags(config: Config) -> str:
    """Return the options of score_predictions.py."""
    scoring = pick(config["evaluation"], "metrics", "bootstrap", "seed", "tokenize")
    return flags(scoring | {"answer_key": config["answer"]["key"]})


def task_flags(config: Config, model: str, category: str) -> str:
    """Return the options of run_tasks.py for an evaluated model."""
    if model == TEACHER:
        source = teacher_settings(config, category)
    else:
        (folder,) = get_predicting_models(config, model, category)
        source = {"model": folder, "dtype": get_dtype(config, model)}
        source |= pick(get_student(config, model), "template_arguments")
    evaluation = config["evaluation"]
    tasks = {name: evaluation[name] for name in list_options(TaskOptions)}
    tasks["tasks_chat_template"] = tasks["tasks_chat_template"] or None
    return flags(source | (pick(config, "template_date") if tasks["tasks_chat_template"] else {}) | tasks)


def task_run_flags(config: Config) -> str:
    """Return the untracked options of run_tasks.py: batch size."""
    return flags(pick(config["evaluation"], "batch_size"))


def find_task_runs(config: Config, categories: Sequence[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the runs of the benchmark tasks, by model and category: the first model and category of the same weights.

    So the teacher and the students before distillation run once for all categories.
    """
    first: dict[str, tuple[str, str]] = {}
    runs = {}
    for category in categories if config["evaluation"]["tasks"] else ():
        own = get_category_config(config, category)
        for model in get_task_models(config, category):
            runs[model, category] = first.setdefault(task_flags(own, model, category), (model, category))
    return runs


def task_score_flags(config: Config) -> str:
    """Return the options of score_tasks.py."""
    return flags(pick(config["evaluation"], "bootstrap", "seed"))


def compare_flags(config: Config) -> str:
    """Return the options of compare_models.py."""
    return score_flags(config) + " " + flags({"pairs": [":".join(pair) for pair in get_compared_models(config)]})


def value_flags(config: Config) -> str:
    """Return the options of plot_values.py."""
    return flags({"answer_key": config["answer"]["key"]})


def page_flags(config: Config, category: str) -> str:
    """Return the options of render_answers.py."""
    return flags({"category": category} | pick(config["evaluation"], "page_records"))


def export_flags(config: Config, student: str) -> str:
    """Return the options of export_model.py."""
    return flags({"dtype": get_dtype(config, student)})


def calibration_flags(config: Config, data: Sequence[str]) -> str:
    """Return the further options of export_model.py for variants that are calibrated on these files."""
    return flags({"data": list(data)} | pick(config["export"], "calibration_records"))


def compress_run_flags(config: Config) -> str:
    """Return the untracked options of export_model.py for variants of LLM Compressor: its Python."""
    return flags(pick(config["export"], "quantizer"))


def publish_flags(config: Config, student: str, category: str, variant: str) -> str:
    """Return the options of publish_model.py."""
    private = {"private": config["export"]["push_private"]}
    return flags({"repository": get_repository(config, student, category, variant)} | private)


def card_flags(config: Config, student: str, category: str) -> str:
    """Return the options of write_model_card.py."""
    export = config["export"] or {}
    base = get_origin(config, student)
    is_pooled = category == POOLED
    teachers = [config["teacher"], *(config["teachers"].values() if is_pooled else ())]
    models = {
        "base_model": get_public_name(base) if isinstance(base, str) else None,
        "teacher": ", ".join(dict.fromkeys(get_public_name(teacher["model"]) for teacher in teachers)),
    }
    metadata = {name: export.get(name) or None for name in ("license", "datasets", "language")}
    own = config if is_pooled else config | {"teachers": {}}
    digest = {"config_digest": digest_settings(own, student)}
    return flags({"name": student, "category": category} | models | metadata | digest)


def tokenizer_flags(config: Config) -> str:
    """Return the options of train_demo_tokenizer.py."""
    return flags({"size": config["demo"]["tokenizer_size"]})


def demo_flags(config: Config, part: str) -> str:
    """Return the options of the script that trains a demo model on records outside the test and validation splits.

    Args:
        part: key under `demo`: `teacher`, `student` or `adapter`.
    """
    split = {"split_seed": config["split"]["seed"]} | pick(config["split"], "val_fraction", "test_fraction")
    return flags(pick(config["demo"], "seed") | config["demo"][part] | split)


def digest_settings(config: Config, student: str) -> str:
    """Return 32 hex digits for the settings that a student's weights and scores depend on."""
    settings = deepcopy(config)
    settings["students"] = {student: settings["students"][student]}
    train, runaway = (settings["students"][student][key] for key in ("train", "on_policy_runaway"))
    remove(train, get_run_options(train, runaway))
    for teacher in (settings["teacher"], *settings["teachers"].values()):
        remove_run_settings(teacher)
    # Settings that came later are left out at their defaults, so that the digests of older students stay.
    if train["quantization_aware"] is None:
        del train["quantization_aware"]
    if not settings["teachers"]:
        del settings["teachers"]
    if not is_dropping(config):
        del settings["near_duplicates"]
    if not config["evaluation"]["tasks"]:
        remove(settings["evaluation"], list_options(TaskOptions))
    if pairwise := settings["evaluation"]["pairwise"]:
        remove(pairwise, JUDGE_RUN_OPTIONS)
    else:
        del settings["evaluation"]["pairwise"]
    source = settings["source"]
    remove(source, [name for name, value in DEFAULT_SOURCE if source[name] == value])
    for place, names in WITHOUT_RESULT.items():
        section = settings
        for key in filter(None, place.split(".")):
            section = section[key]
        remove(section, names)
    return digest_of(settings)


def remove_run_settings(teacher: dict[str, Any]) -> None:
    """Remove the settings of a teacher that do not affect its results in place."""
    arguments = teacher.pop("vllm")["arguments"]
    if ENGINES[teacher["engine"]].starts_vllm:
        teacher["vllm"] = get_result_arguments(arguments)
    if teacher["tokenizer"] is None:
        del teacher["tokenizer"]
    remove(teacher, list_run_options(declared.Teacher))
    remove(teacher["generation"], list_run_options(declared.Generation))


def remove(settings: dict[str, Any], names: Iterable[str]) -> None:
    """Remove the settings with these names in place."""
    for name in names:
        settings.pop(name, None)
