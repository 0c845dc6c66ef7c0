"""What an experiment consists of, derived from its checked configuration: raw files, models, signals, targets."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of, files_digest
from distill.common.downloads import MANIFEST
from distill.common.errors import InputError
from distill.common.names import POOLED, TEACHER
from distill.common.quantization_schemes import SCHEMES
from distill.common.replicas import drop_seed, list_replicas
from distill.common.variants import FULL, VARIANTS, get_evaluated_name, get_variant, is_base, split_name
from distill.evaluation.metrics import needs_judgements
from distill.evaluation.options import find_missing_harness
from distill.export.compress import find_quantizer
from distill.generation.engine import ENGINES, EngineType
from distill.models.hub_names import find_repository_problem, get_folder, is_download
from distill.records.dataset_names import get_raw_file, parse_dataset
from distill.records.near_duplicate_options import DROP
from distill.records.source_formats import SOURCE_FORMATS, SourceFormat, choose_format
from distill.student.divergences import METHODS

Config = dict[str, Any]
STUDENT_FOLDER = re.compile(r"output/(?P<student>[^/]+)/(?P<category>[^/]+)")

# What a shared vLLM server is for: the teacher's answers to all prompts, its signals, its answers to test prompts and
# questions, and its likelihoods of other models' answers.
SERVER_PURPOSES = ("answers", "signals", "predictions", "judgements")
SERVED_RULES = ("generate_answers", "compute_signal", "predict_answers", "answer_questions", "judge_answers")


def get_category_config(config: Config, category: str) -> Config:
    """Return the configuration of a category's jobs: `teacher` is the category's own teacher, where it has one."""
    return config | {"teacher": config["teachers"].get(category, config["teacher"])}


def group_by_teacher(config: Config, categories: Sequence[str]) -> dict[str, list[str]]:
    """Return the categories by the place of their teacher in the configuration: `teacher`, then `teachers.banks` …"""
    common = [category for category in categories if category not in config["teachers"]]
    own = {f"teachers.{category}": [category] for category in categories if category in config["teachers"]}
    return ({"teacher": common} if common else {}) | own


def get_source_format(config: Config) -> SourceFormat:
    """Return the registry entry of `source.format`, or that of its single file if `source.path` is set."""
    name, path = config["source"]["format"], config["source"]["path"]
    return choose_format(name, path) or SOURCE_FORMATS[name]


def get_raw_paths(config: Config, category: str) -> dict[str, str]:
    """Return the paths and the names of hub datasets that a category's records are taken from, by input name.

    A file whose fraction in `mix` is 0 is not read.
    """
    return {
        name: config["source"][key].format(category=category)
        for name, key in get_source_format(config).files.items()
        if config["mix"].get(f"{name}_fraction", 1) > 0
    }


def get_raw_files(config: Config, category: str) -> dict[str, str]:
    """Return the files of `get_raw_paths`: of a dataset on the hub, the manifest of its download."""
    return {name: get_raw_file(path) for name, path in get_raw_paths(config, category).items()}


def get_raw_inputs(config: Config, category: str) -> dict[str, list[str]]:
    """Return the raw files of a category for every input of the format's rule; an unused input has none."""
    raw_files = get_raw_files(config, category)
    return {name: [raw_files[name]] if name in raw_files else [] for name in get_source_format(config).files}


def is_dropping(config: Config) -> bool:
    """Whether near-duplicates are dropped from the prompts that the teacher is asked."""
    return bool(config["near_duplicates"]) and config["near_duplicates"]["action"] == DROP


def find_missing_package(config: Config) -> str | None:
    """Return a sentence about a package that the experiment needs and this environment lacks; None if there is none."""
    if config["near_duplicates"] is not None and find_spec("rensa") is None:
        expected = "expected the package rensa, which is not installed"
        return f"near_duplicates: {expected}: run `make setup`, or set it to null"
    for place, packages in list_rounding_packages(config).items():
        if missing := [package for package in packages if find_spec(package.replace("-", "_")) is None]:
            return (
                f"{place} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
                f"run `pip install {' '.join(missing)}` (requirements-extra.txt has tested versions)"
            )
    return None


def list_rounding_packages(config: Config) -> dict[str, list[str]]:
    """Return the packages that round and pack weights, by the place in the configuration that needs them."""
    places = {
        f"students.{name}.train.quantization_aware": ["torchao"]
        for name, student in get_configured_students(config).items()
        if student["train"]["quantization_aware"]
    }
    rounded = {scheme.variant for scheme in SCHEMES.values()}
    if config["export"] and not rounded.isdisjoint(config["export"]["variants"]):
        places["export.variants"] = ["torchao", "compressed-tensors"]
    return places


def get_prompts(config: Config, category: str) -> str:
    """Return the file of the prompts that the teacher is asked: all of a category, or those that are kept."""
    return f"artifacts/distill_data/raw/{category}_teacher_prompts_{'kept' if is_dropping(config) else 'base'}.jsonl"


def get_kept_prompts(config: Config) -> dict[str, str]:
    """Return the output of the search for near-duplicates that only action `drop` has, by name."""
    return {"kept": get_prompts(config, "{category}")} if is_dropping(config) else {}


def get_further_prompts(config: Config) -> list[str]:
    """Return the further files with held-out prompts, such as benchmarks."""
    return list(config["near_duplicates"]["against"]) if config["near_duplicates"] else []


def find_missing_prompts(config: Config) -> str | None:
    """Return a sentence about a further file with held-out prompts that does not exist; None if all exist.

    Snakemake itself tells of none once the search has results, whatever the configuration named then.
    """
    for number, path in enumerate(get_further_prompts(config)):
        if not Path(path).is_file():
            return f"near_duplicates.against[{number}]: expected a file, found {path!r} (relative to {Path.cwd()})"
    return None


def get_other_categories(config: Config, category: str, categories: Sequence[str]) -> list[str]:
    """Return the categories whose held-out prompts a category must not train on: the others if a student is pooled."""
    is_pooled = any(student["pool"] for student in config["students"].values())
    return [other for other in categories if other != category and is_pooled]


def get_all_raw_inputs(config: Config, categories: Sequence[str]) -> dict[str, list[str]]:
    """Return the raw files of all categories together, by input name."""
    inputs = [get_raw_inputs(config, category) for category in categories]
    return {name: [path for files in inputs for path in files[name]] for name in get_source_format(config).files}


def get_missing_files(config: Config) -> dict[str, list[str]]:
    """Return the raw files that do not exist, by category; complete categories are left out.

    Datasets on the hub are downloaded by a job, so they are never missing.
    """
    missing = {
        category: [
            path
            for path in get_raw_paths(config, category).values()
            if not parse_dataset(path) and not Path(path).exists()
        ]
        for category in config["categories"]
    }
    return {category: paths for category, paths in missing.items() if paths}


def get_engine(config: Config, model: str = TEACHER) -> EngineType:
    """Return the engine that generates an evaluated model's answers; only the teacher's is configurable."""
    if model != TEACHER:
        return ENGINES["transformers"]
    return ENGINES[config["teacher"]["engine"]].configure(config["teacher"]["tokenizer"])


def get_adapter(config: Config, category: str) -> str | None:
    """Return the teacher's LoRA checkpoint for a category."""
    adapter = config["teacher"]["adapter"]
    return get_folder(adapter.format(category=category)) if adapter else None


def get_teacher(config: Config, category: str = "{category}") -> str:
    """Return the teacher's folder or hub id, or the name under which a server offers it for a category."""
    model: str = config["teacher"]["model"]
    return get_folder(model) if get_engine(config).loads_weights else model.replace("{category}", category)


def describe_teacher(config: Config) -> str:
    """Return a line that names the teacher and the engine that runs it, and those of categories with their own."""
    shared = ", one vLLM server for all categories" if is_shared(config) else ""
    parts = []
    for place, members in group_by_teacher(config, config["categories"]).items():
        own = get_category_config(config, members[0])
        name = "" if place == "teacher" else f"{members[0]}: "
        parts.append(f"{name}{get_teacher(own)}, engine {own['teacher']['engine']}{shared}")
    return f"Teacher: {'; '.join(parts)}"


def is_shared(config: Config) -> bool:
    """Whether one vLLM server answers for all categories of a run."""
    return bool(get_engine(config).starts_vllm and config["teacher"]["vllm"]["share"])


def get_server_file(purpose: str) -> str:
    """Return the file that says where a shared vLLM server answers.

    Snakemake runs a server (`service`) and all jobs that use it at the same time, so jobs that need each other's
    results have servers of their own. `purpose` is one of SERVER_PURPOSES.
    """
    return f"artifacts/vllm/{purpose}.json"


def has_adapters(config: Config) -> bool:
    """Whether each category has its own teacher adapter."""
    return "{category}" in (config["teacher"]["adapter"] or "")


def get_teacher_models(config: Config, category: str) -> list[str]:
    """Return the hub ids and folders that a job with the teacher loads: model and adapter, or a tokenizer alone."""
    if not get_engine(config).loads_weights:
        tokenizer = config["teacher"]["tokenizer"]
        return [tokenizer] if tokenizer else []
    return [model for model in (get_teacher(config), get_adapter(config, category)) if model]


def list_students(config: Config) -> dict[str, list[str]]:
    """Return the students as the configuration file names them, each with its replicas (`train.seeds`), or itself."""
    students: dict[str, list[str]] = {}
    for name in config["students"]:
        students.setdefault(drop_seed(name), []).append(name)
    return students


def get_replicas(config: Config, student: str) -> list[str]:
    """Return the replicas of a student with `train.seeds`; of any other, the student alone."""
    return list_replicas(student, list(config["students"]))


def get_averaged_students(config: Config) -> list[str]:
    """Return the students with `train.seeds`, whose scores are averaged over their replicas."""
    return [student for student, replicas in list_students(config).items() if replicas != [student]]


def get_initial_model(config: Config, student: str, category: str) -> str:
    """Return the hub id or folder of a student before distillation.

    A student without a model of its own starts from a copy of the teacher's layers. A category with its own teacher or
    its own adapter has a copy of its own; the others share one. One that starts from another student has a {category}
    in its model.
    """
    model = get_student(config, student)["model"]
    if isinstance(model, str):
        return get_folder(model.replace("{category}", category))
    is_own = category in config["teachers"] or has_adapters(config)
    return get_copy_folder(model["layers"], category if is_own else POOLED)


def get_start(config: Config, student: str) -> str | None:
    """Return the student that another one starts from; None if that is a model from elsewhere."""
    model = get_student(config, student)["model"]
    found = STUDENT_FOLDER.fullmatch(model) if isinstance(model, str) else None
    return found["student"] if found and get_replicas(config, found["student"]) else None


def get_origin(config: Config, student: str) -> Any:
    """Return the `model` of the first student of those that start from one another."""
    while start := get_start(config, student):
        student = start
    return get_student(config, student)["model"]


def get_copy_folder(layers: int, category: str) -> str:
    """Return the folder of a copy of some layers of a category's teacher; of the common one for `all`."""
    return f"artifacts/initial_students/{layers}_layers/{category}"


def get_training_categories(config: Config, student: str, categories: Sequence[str]) -> list[str]:
    """Return the names of a student's trainings: one per category, or only `all` for a pooled student."""
    return [POOLED] if config["students"][student]["pool"] else list(categories)


def get_student_folder(config: Config, student: str, category: str) -> str:
    """Return the folder of the trained model that answers a category's prompts."""
    return f"output/{student}/{get_training_categories(config, student, [category])[0]}"


def get_student_folders(config: Config, categories: Sequence[str]) -> list[str]:
    """Return the folders of all trained models."""
    return [
        f"output/{student}/{name}"
        for student in config["students"]
        for name in get_training_categories(config, student, categories)
    ]


def get_sampled_folders(config: Config, categories: Sequence[str]) -> list[str]:
    """Return the folders of the trained models that answer validation prompts while they train.

    Those that are trained with `fsdp` count, too, though they have no answers: a strategy changes no file.
    """
    if not config["split"]["val_fraction"]:
        return []
    students = {name: one for name, one in config["students"].items() if one["train"]["validation_samples"]}
    return get_student_folders(config | {"students": students}, categories)


def get_training_data(config: Config, categories: Sequence[str]) -> list[str]:
    """Return the folders of training data in Alpaca format: one per category, and one for pooled students."""
    names = [name for student in config["students"] for name in get_training_categories(config, student, categories)]
    return [f"artifacts/distill_data/processed/{name}" for name in dict.fromkeys(names)]


def get_training_models(config: Config, student: str, category: str) -> list[str]:
    """Return the hub ids and folders that a training loads: the student, and an online teacher."""
    settings = config["students"][student]
    is_online = METHODS[settings["method"]].needs_teacher and settings["signal"] == "online"
    return [get_initial_model(config, student, category), *(get_teacher_models(config, category) if is_online else [])]


def get_predicting_models(config: Config, model: str, category: str) -> list[str]:
    """Return the hub ids and folders that a job loads to generate an evaluated model's answers."""
    if model == TEACHER:
        return get_teacher_models(config, category)
    student, _ = split_name(model)
    if is_base(model):
        return [get_initial_model(config, student, category)]
    if variant := get_variant(model):
        return [get_export_folder(config, student, category, variant)]
    return [get_student_folder(config, model, category)]


def get_export_folder(config: Config, student: str, category: str, variant: str) -> str:
    """Return the folder of a variant of the trained model that answers a category's prompts."""
    return f"output/export/{student}/{get_training_categories(config, student, [category])[0]}/{variant}"


def list_variants(weights_file: str | None = None) -> list[str]:
    """Return the variants that can be exported: all of them, or those whose weights are in a file of this name."""
    return [name for name, variant in VARIANTS.items() if weights_file in (None, variant.weights_file)]


def list_written_variants(weights_file: str, is_compressed: bool = False) -> list[str]:
    """Return the variants whose weights are in a file of this name, and that are calibrated on records, or not."""
    return [name for name in list_variants(weights_file) if VARIANTS[name].is_compressed == is_compressed]


def find_missing_quantizer(config: Config) -> str | None:
    """Return a sentence about what the variants of LLM Compressor lack; None if nothing."""
    students = config["students"] if config["export"] else ()
    chosen = {variant for student in students for variant in get_exported_variants(config, student)}
    if not any(VARIANTS[variant].is_compressed for variant in chosen):
        return None
    try:
        find_quantizer(config["export"]["quantizer"])
    except InputError as error:
        return str(error)
    return None


def get_exported_variants(config: Config, student: str) -> list[str]:
    """Return the variants in which a student is exported; none if it is not exported."""
    export = config["export"]
    if not export or student not in (export["students"] or config["students"]):
        return []
    return list(export["variants"])


def get_exports(config: Config, categories: Sequence[str]) -> dict[str, str]:
    """Return the folders of all exported models, each with its variant."""
    return {
        get_export_folder(config, student, name, variant): variant
        for student in config["students"]
        for name in get_training_categories(config, student, categories)
        for variant in get_exported_variants(config, student)
    }


def get_repository(config: Config, student: str, category: str, variant: str) -> str:
    """Return the repository on the hub that an exported model is published to; see `export.push_to`."""
    pattern = config["export"]["push_to"]
    name: str = pattern.format(student=student, category=category, variant=variant)
    return name if variant == FULL or "{variant}" in pattern else f"{name}-{variant}"


def get_published(config: Config, categories: Sequence[str]) -> list[str]:
    """Return the records of the uploads of all exported models.

    Raises:
        InputError: there is no `export.push_to`, or several models would be uploaded to one repository.
    """
    if not (config["export"] and config["export"]["push_to"]):
        raise InputError("publish: expected export.push_to in the configuration, such as OWNER/{student}-{category}")
    owners: dict[str, str] = {}
    for folder in get_exports(config, categories):
        repository = get_repository(config, *folder.split("/")[2:])
        if problem := find_repository_problem(repository):
            raise InputError(f"export.push_to: {problem}, found {repository} for {folder}")
        if repository in owners:
            text = f"expected a repository for each model, found {repository} for {owners[repository]} and {folder}"
            raise InputError(f"export.push_to: {text}; add {{student}}, {{category}} or {{variant}} to the name")
        owners[repository] = folder
    return [f"{folder}.published.json" for folder in owners.values()]


def get_made_files(config: Config, model: str) -> list[str]:
    """Return the files of a model that the workflow makes or downloads; none for the user's own model."""
    # Those in the folder's name. Every job asks, and the folders of a thousand categories are a long list.
    categories = set(model.split("/")).intersection(config["categories"])
    copies = {
        get_copy_folder(student["model"]["layers"], category)
        for student in config["students"].values()
        if not isinstance(student["model"], str)
        for category in (*categories, POOLED)
    }
    if "demo" in config and model in ("models/teacher", "models/student"):
        names = ["config.json", "model.safetensors"]
    elif "demo" in config and model.startswith("models/adapters/"):
        names = ["adapter_config.json", "adapter_model.safetensors"]
    elif model in {*copies, *get_student_folders(config, [*categories])}:
        names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
    elif is_download(model):
        names = [MANIFEST]
    elif variant := get_exports(config, [*categories]).get(model):
        names = ["config.json", "generation_config.json", VARIANTS[variant].weights_file, "tokenizer_config.json"]
    else:
        names = []
    return [f"{model}/{name}" for name in names]


def get_student(config: Config, model: str) -> dict[str, Any]:
    """Return the configuration of the student that an evaluated model's name stands for.

    A student with `train.seeds` has that of its first replica.
    """
    return config["students"][get_replicas(config, split_name(model)[0])[0]]


def get_configured_students(config: Config) -> dict[str, dict[str, Any]]:
    """Return the students as the configuration file names them, with their configuration; see `get_student`."""
    return {student: get_student(config, student) for student in list_students(config)}


def get_models(config: Config) -> list[str]:
    """Return the names of all evaluated models: the teacher, then each student, its `_base` and its variants.

    The replicas of a student share one `_base`, which no seed affects.
    """
    models = [TEACHER]
    for student, replicas in list_students(config).items():
        models += [*replicas, f"{student}_base"]
        models += [
            get_evaluated_name(replica, variant)
            for replica in replicas
            for variant in get_exported_variants(config, replica)
            if VARIANTS[variant].is_quantized
        ]
    return models


def get_first_base(config: Config, model: str) -> str:
    """Return the `_base` that is evaluated for this one.

    Students with the same model, precision and template arguments share it.
    """

    def identity(name: str) -> tuple[Any, ...]:
        student, _ = split_name(name)
        settings = get_student(config, name)
        model = get_initial_model(config, student, "{category}")
        return model, settings["train"]["precision"], settings["template_arguments"]

    return next(f"{student}_base" for student in list_students(config) if identity(student) == identity(model))


def get_evaluated_models(config: Config) -> list[str]:
    """Return the models that answer the test prompts themselves: all except a `_base` that shares another's answers."""
    return [model for model in get_models(config) if not is_base(model) or get_first_base(config, model) == model]


def get_model_batches(config: Config) -> list[list[str]]:
    """Return the models that answer together in one job; none if each has a job of its own.

    The teacher, which may be on a server or have another size, always has.
    """
    size = config["evaluation"]["models_per_job"]
    models = [model for model in get_evaluated_models(config) if model != TEACHER]
    return [models[start : start + size] for start in range(0, len(models), size)] if size > 1 else []


def get_batch_sources(config: Config, category: str, models: Sequence[str]) -> list[str]:
    """Return the hub ids and folders that a job loads to generate the answers of several models."""
    return [source for model in models for source in get_predicting_models(config, model, category)]


def get_models_alone(config: Config) -> list[str]:
    """Return the models that answer in a job of their own; see `get_model_batches`."""
    return [TEACHER] if get_model_batches(config) else get_evaluated_models(config)


def get_sharing_students(config: Config) -> list[str]:
    """Return the students whose `_base` shares the answers of another student's `_base`."""
    return [student for student in list_students(config) if f"{student}_base" not in get_evaluated_models(config)]


def get_questions_system(config: Config) -> str | None:
    """Return the system text of the fixed questions: their own, or that of the raw records."""
    return config["evaluation"]["system"] or config["source"]["system"]


def is_judging(config: Config) -> bool:
    """Whether the teacher scores the other models' answers, which requires its weights."""
    return needs_judgements(config["evaluation"]["metrics"]) and get_engine(config).gives_likelihoods


def are_judged(config: Config, categories: Sequence[str]) -> bool:
    """Whether the teacher of every one of these categories scores the other models' answers."""
    return all(is_judging(get_category_config(config, category)) for category in categories)


def get_pairwise(config: Config) -> dict[str, Any] | None:
    """Return the settings of the judge that compares pairs of answers; None without one."""
    pairwise: dict[str, Any] | None = config["evaluation"]["pairwise"]
    return pairwise


def get_against(config: Config) -> list[str]:
    """Return the model that a judge compares all models with; none without a judge."""
    pairwise = get_pairwise(config)
    return [pairwise["against"]] if pairwise else []


def get_judged_models(config: Config) -> list[str]:
    """Return the models with requests of their own to the judge.

    The reference has none, since identical answers are a tie, nor has a `_base` that shares another's answers.
    """
    against = {get_first_base(config, model) if is_base(model) else model for model in get_against(config)}
    return [model for model in get_evaluated_models(config) if model not in against] if against else []


def get_judge_prompt(config: Config) -> list[str]:
    """Return the user's file with the judge's instruction; none without one."""
    pairwise = get_pairwise(config)
    return [pairwise["prompt"]] if pairwise and pairwise["prompt"] else []


def get_asked_models(config: Config) -> list[str]:
    """Return the models that answer the fixed questions; none if there are no questions."""
    return get_models(config) if config["evaluation"]["questions"] else []


def get_card_models(config: Config, student: str, variant: str) -> list[str]:
    """Return the models in the score table of a model card: teacher, student, `_base`, and a variant that is scored.

    A replica has the mean over the seeds of its student beside it.
    """
    owner = drop_seed(student)
    return list(dict.fromkeys([TEACHER, student, owner, f"{owner}_base", get_evaluated_name(student, variant)]))


def get_task_models(config: Config, category: str) -> list[str]:
    """Return the models of a category that are evaluated on benchmark tasks: those that transformers loads itself."""
    if not config["evaluation"]["tasks"]:
        return []
    own = get_category_config(config, category)
    return [model for model in get_models(config) if can_run_tasks(own, model)]


def can_run_tasks(config: Config, model: str) -> bool:
    """Whether transformers loads an evaluated model, as lm-evaluation-harness needs it."""
    if model == TEACHER:
        return get_engine(config).loads_weights and not get_engine(config).is_served
    variant = get_variant(model)
    return variant is None or VARIANTS[variant].weights_file == "model.safetensors"


def get_task_scores(config: Config, categories: Sequence[str], suffix: str) -> list[str]:
    """Return the files of all scores on benchmark tasks, by their suffix; those of an average have only `json`."""
    averaged = get_averaged_students(config) if suffix == "json" else []
    return [
        f"output/evaluation/{model}/{category}.tasks.{suffix}"
        for category in categories
        for model in (*get_task_models(config, category), *(averaged if config["evaluation"]["tasks"] else []))
    ]


def find_missing_tasks(config: Config, has_own_packages: bool) -> str | None:
    """Return a sentence about what the benchmark tasks lack; None if nothing.

    Args:
        config: the configuration.
        has_own_packages: jobs have environments of their own.
    """
    evaluation = config["evaluation"]
    if not evaluation["tasks"]:
        return None
    if evaluation["tasks_path"] and not Path(evaluation["tasks_path"]).is_dir():
        found = f"found {evaluation['tasks_path']!r} (relative to {Path.cwd()})"
        return f"evaluation.tasks_path: expected a folder of task files, {found}"
    return None if has_own_packages else find_missing_harness()


def digest_task_files(config: Config) -> str | None:
    """Return a digest of the user's own task files, so that a change runs the tasks again; None without any."""
    evaluation = config["evaluation"]
    if not (evaluation["tasks"] and evaluation["tasks_path"]):
        return None
    paths = sorted(path for path in Path(evaluation["tasks_path"]).rglob("*") if path.is_file())
    return digest_of([list(map(str, paths)), files_digest(paths)])


def describe_tasks(config: Config, categories: Sequence[str]) -> list[str]:
    """Return a line that names the models that are not evaluated on benchmark tasks; none if all are."""
    if not config["evaluation"]["tasks"]:
        return []
    left = dict.fromkeys(
        model for category in categories for model in set(get_models(config)) - set(get_task_models(config, category))
    )
    names = sorted(left, key=get_models(config).index)
    return [f"evaluation.tasks: {', '.join(names)} left out: transformers does not load the weights"] if left else []


def has_page(config: Config) -> bool:
    """Whether the report has pages with the answers side by side."""
    return bool(config["evaluation"]["questions"] or config["evaluation"]["page_records"])


def get_score_categories(categories: Sequence[str]) -> list[str]:
    """Return the categories of the score table: these, and `all` if there are several to pool."""
    return [*categories, POOLED] if len(categories) > 1 else list(categories)


def get_compared_models(config: Config) -> list[tuple[str, str]]:
    """Return the pairs of models whose scores are compared.

    They are each student with its `_base`, the teacher and each later student, and each variant with its student. A
    student with `train.seeds` stands for the mean of its replicas.
    """
    students = list(list_students(config))
    pairs = [
        (student, other)
        for place, student in enumerate(students, start=1)
        for other in (f"{student}_base", TEACHER, *students[place:])
    ]
    return pairs + [(model, split_name(model)[0]) for model in get_models(config) if get_variant(model)]


def get_targets(config: Config, categories: Sequence[str]) -> list[str]:
    """Return the targets of a whole run: students, exported models, scores, figures and pages."""
    report = ["training.svg", "scores.svg", "comparisons.csv", "comparisons.svg", "memory.csv"]
    if has_page(config):
        report += [f"answers/{category}.html" for category in categories]
    if get_sampled_folders(config, categories):
        report.append("samples.html")
    if config["near_duplicates"]:
        report.append("near_duplicates.html")
    if config["answer"]["key"]:  # without it, answers hold no values to plot
        report += [f"values/{category}.svg" for category in categories]
    alpaca = get_training_data(config, categories) if get_source_format(config).has_alpaca_targets else []
    return [
        *(f"{folder}/model.safetensors" for folder in get_student_folders(config, categories)),
        *(f"{folder}/dataset_info.json" for folder in alpaca),
        *(f"{folder}/README.md" for folder in get_exports(config, categories)),
        "output/report/metrics.csv",
        *(f"output/report/{name}" for name in report),
    ]
