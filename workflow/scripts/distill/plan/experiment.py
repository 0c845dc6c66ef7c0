"""What an experiment consists of, read off its checked configuration: raw files, models, signals, trainings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.common.names import POOLED
from distill.common.variants import VARIANTS, get_variant, is_base, split_name
from distill.models.hub_names import MANIFEST, get_folder, is_download

Config = dict[str, Any]


def get_raw_files(config: Config, category: str) -> dict[str, str]:
    """Raw files of a category that something is taken from, by source (`grpo`, `sft`, or `questions` of alpaca)."""
    if config["source"]["format"] == "alpaca":
        return {"questions": config["source"]["path"].format(category=category)}
    return {
        source: config["source"][source].format(category=category)
        for source in ("grpo", "sft")
        if config["mix"][f"{source}_fraction"] > 0
    }


def get_missing_files(config: Config) -> dict[str, list[str]]:
    """Raw files that are not there, by category; a category that has all of its files is left out."""
    missing = {
        category: [path for path in get_raw_files(config, category).values() if not Path(path).exists()]
        for category in config["categories"]
    }
    return {category: paths for category, paths in missing.items() if paths}


def get_adapter(config: Config, category: str) -> str | None:
    """The teacher's LoRA checkpoint for a category."""
    adapter = config["teacher"]["adapter"]
    return get_folder(adapter.format(category=category)) if adapter else None


def get_teacher(config: Config) -> str:
    """The teacher's folder or hub id; a server's own name for it."""
    model = config["teacher"]["model"]
    return model if is_served(config, "teacher") else get_folder(model)


def has_adapters(config: Config) -> bool:
    """Whether the teacher is another one in each category."""
    return "{category}" in (config["teacher"]["adapter"] or "")


def is_served(config: Config, model: str) -> bool:
    """Whether an evaluated model answers through a server, which gives no likelihoods."""
    return model == "teacher" and config["teacher"]["engine"] == "openai"


def get_teacher_models(config: Config, category: str) -> list[str]:
    """Hub ids and folders that a job with the teacher loads: model and adapter, none where a server answers."""
    found = [get_teacher(config), get_adapter(config, category)]
    return [] if is_served(config, "teacher") else [model for model in found if model]


def get_initial_model(config: Config, student: str, category: str) -> str:
    """A student before distillation: hub id or folder; a copy of the teacher's layers where it has no model of its own.

    A category of which the teacher is another one has a copy of its own, all others share one.
    """
    model = config["students"][student]["model"]
    if isinstance(model, str):
        return get_folder(model)
    return f"artifacts/initial_students/{model['layers']}_layers/{category if has_adapters(config) else POOLED}"


def get_training_categories(config: Config, student: str, categories: Sequence[str]) -> list[str]:
    """What each of a student's trainings is named by: its category, or `all` of a pooled student's only one."""
    return [POOLED] if config["students"][student]["pool"] else list(categories)


def get_student_folder(config: Config, student: str, category: str) -> str:
    """Where the trained model for a category's records is."""
    return f"output/{student}/{get_training_categories(config, student, [category])[0]}"


def get_student_folders(config: Config, categories: Sequence[str]) -> list[str]:
    """Folders of all trained models."""
    return [
        f"output/{student}/{name}"
        for student in config["students"]
        for name in get_training_categories(config, student, categories)
    ]


def get_training_data(config: Config, categories: Sequence[str]) -> list[str]:
    """Folders of what all trainings together read: a category's splits, or those of all for pooled students."""
    names = [name for student in config["students"] for name in get_training_categories(config, student, categories)]
    return [f"artifacts/distill_data/processed/{name}" for name in dict.fromkeys(names)]


def get_signal(config: Config, student: str) -> str | None:
    """Name of the cached teacher signal that a student learns from: `hidden`, `topk_64_t2`; None for none.

    `t2` is the student's temperature, `t1_5` of 1.5. A quantization is part of the name (`hidden_int8`) where it is not
    the answering teacher's. Students of one name share the signal, and none of their settings changes it.
    """
    settings = config["students"][student]
    if settings["method"] == "seqkd" or settings["signal"] == "online":
        return None
    temperature = f"{settings['temperature']:g}".replace(".", "_")
    kept = f"_{settings['top_k']}_t{temperature}" if settings["signal"] == "topk" else ""
    quantization = settings["teacher_quantization"]
    other = f"_{quantization}" if quantization not in (None, config["teacher"]["quantization"]) else ""
    return f"{settings['signal']}{kept}{other}"


def get_signals(config: Config) -> dict[str, dict[str, Any]]:
    """The cached signals, by name: options of compute_signal.py, the same for all students of a name."""
    signals = {}
    for name, settings in config["students"].items():
        if signal := get_signal(config, name):
            is_topk = settings["signal"] == "topk"
            signals[signal] = {
                "kind": settings["signal"],
                "top_k": settings["top_k"] if is_topk else None,
                "temperatures": [float(settings["temperature"])] if is_topk else None,
                "quantization": settings["teacher_quantization"] or config["teacher"]["quantization"],
            }
    return signals


def describe_signals(config: Config, categories: Sequence[str]) -> list[str]:
    """What the cached signals take on disk, a line for each of a category; none where no student uses one."""
    signals, lines = get_signals(config), []
    if not signals:
        return []
    from distill.teacher.signal_size import count_tokens, describe_storage, get_hidden_width

    width = get_hidden_width(get_teacher(config))
    longest = config["teacher"]["generation"]["max_new_tokens"]
    for category in categories:
        data = "artifacts/distill_data"
        answers = f"{data}/raw/teacher_outputs_{category}.jsonl"
        prompts = f"{data}/raw/{category}_teacher_prompts_base.jsonl"
        tokens, qualifier = count_tokens(answers, prompts, longest)
        for name, signal in signals.items():
            kept = signal["kind"], width, signal["top_k"], signal["temperatures"] or []
            lines.append(describe_storage(f"{name} of {category}", *kept, tokens, qualifier))
    return lines


def get_training_models(config: Config, student: str, category: str) -> list[str]:
    """Hub ids and folders that a training loads: the student, and the teacher where it is online."""
    settings = config["students"][student]
    is_online = settings["method"] != "seqkd" and settings["signal"] == "online"
    return [get_initial_model(config, student, category), *(get_teacher_models(config, category) if is_online else [])]


def get_predicting_models(config: Config, model: str, category: str) -> list[str]:
    """Hub ids and folders that an evaluated model's answers come from."""
    if model == "teacher":
        return get_teacher_models(config, category)
    student, _ = split_name(model)
    if is_base(model):
        return [get_initial_model(config, student, category)]
    if variant := get_variant(model):
        return [get_export_folder(config, student, category, variant)]
    return [get_student_folder(config, model, category)]


def get_export_folder(config: Config, student: str, category: str, variant: str) -> str:
    """Where a variant of the trained model for a category's records is."""
    return f"output/export/{student}/{get_training_categories(config, student, [category])[0]}/{variant}"


def get_exports(config: Config, categories: Sequence[str]) -> dict[str, str]:
    """Folder to variant of all exported models of a whole run; none where nothing is exported."""
    variants = config["export"]["variants"] if config["export"] else []
    return {
        get_export_folder(config, student, name, variant): variant
        for student in config["students"]
        for name in get_training_categories(config, student, categories)
        for variant in variants
    }


def get_made_files(config: Config, model: str) -> list[str]:
    """Files of a model that the workflow itself makes: the demo's, a student's, a variant, a copy or a download."""
    copies = {
        get_initial_model(config, name, category)
        for name, student in config["students"].items()
        if not isinstance(student["model"], str)
        for category in config["categories"]
    }
    if "demo" in config and model in ("models/teacher", "models/student"):
        names = ["config.json", "model.safetensors"]
    elif "demo" in config and model.startswith("models/adapters/"):
        names = ["adapter_config.json", "adapter_model.safetensors"]
    elif model in {*copies, *get_student_folders(config, config["categories"])}:
        names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
    elif is_download(model):
        names = [MANIFEST]
    elif variant := get_exports(config, config["categories"]).get(model):
        names = ["config.json", "generation_config.json", VARIANTS[variant].weights_file, "tokenizer_config.json"]
    else:
        names = []
    return [f"{model}/{name}" for name in names]


def get_student(config: Config, model: str) -> dict[str, Any]:
    """Configuration of the student behind an evaluated model's name."""
    return config["students"][split_name(model)[0]]


def get_models(config: Config) -> list[str]:
    """Names under output/evaluation: the teacher, then each student, itself before distillation, and its variants."""
    variants = config["export"]["variants"] if config["export"] else []
    suffixes = ["", "_base", *(f"_{variant}" for variant in variants if VARIANTS[variant].is_quantized)]
    return ["teacher", *(f"{student}{suffix}" for student in config["students"] for suffix in suffixes)]


def get_first_base(config: Config, model: str) -> str:
    """The `_base` that is evaluated for this one: students of the same model and precision share it."""

    def identity(name: str) -> tuple[str, str]:
        student, _ = split_name(name)
        return get_initial_model(config, student, "{category}"), get_student(config, name)["train"]["precision"]

    return next(f"{student}_base" for student in config["students"] if identity(student) == identity(model))


def get_evaluated_models(config: Config) -> list[str]:
    """Models that answer the test prompts; a `_base` that another one stands for is none of them."""
    return [model for model in get_models(config) if not is_base(model) or get_first_base(config, model) == model]


def get_sharing_students(config: Config) -> list[str]:
    """Students whose `_base` is evaluated already, under another student's name."""
    return [student for student in config["students"] if f"{student}_base" not in get_evaluated_models(config)]


def get_questions_system(config: Config) -> str | None:
    """System text of the fixed questions: their own, or that of the Alpaca questions."""
    return config["evaluation"]["system"] or config["source"]["system"]


def is_judging(config: Config) -> bool:
    """Whether the teacher reads the answers of the other models; one behind a server cannot."""
    return "fdistill" in config["evaluation"]["metrics"] and not is_served(config, "teacher")


def get_asked_models(config: Config) -> list[str]:
    """Models that answer the fixed questions: all of them, or none where there is no question."""
    return get_models(config) if config["evaluation"]["questions"] else []


def has_page(config: Config) -> bool:
    """Whether there is anything to read side by side."""
    return bool(config["evaluation"]["questions"] or config["evaluation"]["page_records"])


def get_compared_models(config: Config) -> list[tuple[str, str]]:
    """Pairs whose scores are compared: a student with its `_base`, the teacher and each student after it, and a variant
    of fewer bits with its student.
    """
    students = list(config["students"])
    pairs = [
        (student, other)
        for place, student in enumerate(students, start=1)
        for other in (f"{student}_base", "teacher", *students[place:])
    ]
    return pairs + [(model, split_name(model)[0]) for model in get_models(config) if get_variant(model)]


def get_targets(config: Config, categories: Sequence[str]) -> list[str]:
    """What a whole run makes: students, exported models, the table of scores, figures, pages."""
    figures = ["training.svg", "scores.svg", "comparisons.csv", "comparisons.svg"]
    if has_page(config):
        figures += [f"answers/{category}.html" for category in categories]
    if config["answer"]["key"]:  # without an answer contract there are no values to compare
        figures += [f"values/{category}.svg" for category in categories]
    is_alpaca = config["source"]["format"] == "alpaca"
    return [
        *(f"{folder}/model.safetensors" for folder in get_student_folders(config, categories)),
        *(f"{folder}/dataset_info.json" for folder in get_training_data(config, categories) if is_alpaca),
        *(f"{folder}/README.md" for folder in get_exports(config, categories)),
        "output/report/metrics.csv",
        *(f"output/report/{name}" for name in figures),
    ]
