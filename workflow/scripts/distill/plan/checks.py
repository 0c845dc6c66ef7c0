"""Checks across the values of a configuration, beyond what the schema states about each value alone."""

import difflib
import re
from collections.abc import Sequence, Set
from datetime import date
from typing import Any

from distill.common.names import BASE, POOLED, TEACHER
from distill.common.replicas import drop_seed, get_replica_name, is_replica, list_replicas
from distill.common.variants import FULL, VARIANTS, get_evaluated_name, list_suffixes
from distill.evaluation.metrics import GROUPS
from distill.generation.engine import ENGINES, PARALLEL_SIZES, EngineType
from distill.generation.options import OWN_ARGUMENTS, find_longer_name
from distill.generation.server_address import find_address_problem
from distill.models.hub_names import find_repository_problem, find_source_problem
from distill.models.options import TEMPLATE_DATE
from distill.plan.experiment import STUDENT_FOLDER
from distill.records.dataset_names import find_name_problem, is_dataset
from distill.records.raw_files import COLUMNAR
from distill.records.shapes import list_fields
from distill.records.source_formats import SOURCE_FORMATS, SourceFormat, choose_format
from distill.student.divergences import METHODS
from distill.teacher.options import CACHED_SIGNALS

Place = tuple[str | int, ...]
Problems = dict[Place, str]
Config = dict[str, Any]
TEACHER_WEIGHTS = ("engine", "model", "adapter", "dtype", "quantization", "template_arguments", "tokenizer")
RESERVED_CATEGORIES = {POOLED}
RESERVED_STUDENTS = {TEACHER, "evaluation", "export", "report"}  # the last three are folders under output/


def get_value(config: Config, problems: Problems, *place: str) -> Any:
    """The value at a place; None if something on the path is missing or already reported as a problem."""
    value: Any = config
    for depth, key in enumerate(place, start=1):
        if place[:depth] in problems or not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def find_engine(config: Config, problems: Problems) -> EngineType | None:
    """The teacher's engine; None if it is unknown."""
    name = get_value(config, problems, "teacher", "engine")
    engine = ENGINES.get(name) if isinstance(name, str) else None
    return engine.configure(config["teacher"].get("tokenizer")) if engine else None


def list_teachers(config: Config) -> dict[Place, Config]:
    """The teachers of all categories by their places: the common one unless each category has its own, then these."""
    own, categories, common = (get_value(config, {}, key) for key in ("teachers", "categories", "teacher"))
    own = {name: one for name, one in own.items() if isinstance(one, dict)} if isinstance(own, dict) else {}
    names = categories if isinstance(categories, list) else [None]
    is_used = any(not isinstance(name, str) or name not in own for name in names)
    teachers: dict[Place, Config] = {("teacher",): common} if is_used and isinstance(common, dict) else {}
    return teachers | {("teachers", name): one for name, one in own.items()}


def needs_teacher(student: Config) -> bool:
    """Whether a student's method is known and reads the teacher's distribution."""
    method = METHODS.get(student["method"]) if isinstance(student.get("method"), str) else None
    return method is not None and method.needs_teacher


def check_names(config: Config, problems: Problems, pattern: str) -> None:
    """Check that names of categories and students fit the wildcards and collide with no other file or folder."""
    categories, students = get_value(config, problems, "categories"), get_value(config, problems, "students")
    for index, name in enumerate(categories if isinstance(categories, list) else []):
        if name in RESERVED_CATEGORIES:
            problems.setdefault(("categories", index), f"expected another name, {name} is reserved")
        elif isinstance(name, str) and not re.fullmatch(pattern, name):
            problems.setdefault(("categories", index), f"expected text that matches ^{pattern}$, found {name!r}")
    reserved_endings = tuple(f"_{suffix}" for suffix in list_suffixes())
    for name in students if isinstance(students, dict) else {}:
        if not re.fullmatch(pattern, name):
            problems.setdefault(("students", name), f"expected a name that matches ^{pattern}$")
        elif name in RESERVED_STUDENTS or name.endswith(reserved_endings):
            taken = f"{', '.join(sorted(RESERVED_STUDENTS))} and names that end in {', '.join(reserved_endings)}"
            problems.setdefault(("students", name), f"expected another name, reserved are {taken}")
        elif is_replica(name):
            text = "expected another name: names that end in -seed and a number are those of replicas (train.seeds)"
            problems.setdefault(("students", name), text)


def check_seeds(config: Config, problems: Problems) -> None:
    """Check that no student has both `seed` and `seeds`; `config` is as written, without defaults."""
    students = get_value(config, problems, "students")
    for name in students if isinstance(students, dict) else {}:
        seed, seeds = (get_value(config, problems, "students", name, "train", key) for key in ("seed", "seeds"))
        if seed is not None and seeds is not None:
            text = f"expected no seeds beside seed, found {seeds} and {seed}: remove one of both keys"
            problems.setdefault(("students", name, "train", "seeds"), text)


def list_seeds(config: Config, problems: Problems, students: Config) -> dict[str, Any]:
    """The value of `train.seeds` of each student."""
    return {name: get_value(config, problems, "students", name, "train", "seeds") for name in students}


def list_trained(seeds: dict[str, Any]) -> dict[str, list[str]]:
    """The names under which each student is trained: those of its replicas, or its own; see `list_seeds`."""
    return {
        name: [get_replica_name(name, seed) for seed in values] if isinstance(values, list) else [name]
        for name, values in seeds.items()
    }


def check_exported(config: Config, problems: Problems) -> None:
    """Check that the students to export are trained, and that nobody has to guess which replica is meant."""
    students, export = get_value(config, problems, "students"), get_value(config, problems, "export")
    if not isinstance(students, dict) or not isinstance(export, dict):
        return
    seeds = list_seeds(config, problems, students)
    trained = [model for replicas in list_trained(seeds).values() for model in replicas]
    chosen = get_value(config, problems, "export", "students")
    if chosen is None and (several := [name for name, values in seeds.items() if values and len(values) > 1]):
        text = f"expected names of students to export, since {several[0]} has several seeds"
        problems.setdefault(("export", "students"), f"{text}, found null: choose among {', '.join(trained)}")
    for index, name in enumerate(chosen if isinstance(chosen, list) else []):
        if name not in trained:
            text = f"expected one of {', '.join(trained)}, found {name}"
            problems.setdefault(("export", "students", index), text)


def list_evaluated(config: Config, problems: Problems) -> list[str]:
    """The names of all evaluated models, as far as the configuration is valid; see `experiment.get_models`."""
    students = get_value(config, problems, "students")
    variants, exported = (get_value(config, problems, "export", key) for key in ("variants", "students"))
    quantized = [name for name in variants or () if name in VARIANTS and VARIANTS[name].is_quantized]
    models = [TEACHER]
    for student, trained in list_trained(list_seeds(config, problems, students or {})).items():
        models += [*trained, f"{student}_{BASE}"]
        chosen = [name for name in trained if exported is None or name in exported]
        models += [get_evaluated_name(name, variant) for name in chosen for variant in quantized]
    return models


def check_pairwise(config: Config, problems: Problems) -> None:
    """Check that the judge has a valid address, and that its reference is one of the evaluated models."""
    place = ("evaluation", "pairwise")
    pairwise, metrics = get_value(config, problems, *place), get_value(config, problems, "evaluation", "metrics")
    if pairwise is None:
        for name in metrics if isinstance(metrics, list) else ():
            if name in GROUPS and GROUPS[name].needs_verdicts:
                text = f"expected the judge of the metrics {name}: at least base_url and model, found null"
                problems.setdefault(place, text)
        return
    if not isinstance(pairwise, dict):
        return
    address, against = (get_value(config, problems, *place, key) for key in ("base_url", "against"))
    if address is not None and (problem := find_address_problem(address)):
        problems.setdefault((*place, "base_url"), problem)
    models = list_evaluated(config, problems)
    if isinstance(against, str) and against not in models:
        near = [*list_replicas(against, models), *difflib.get_close_matches(against, models, n=1)]
        hint = f"; did you mean {near[0]}?" if near else ""
        text = f"expected an evaluated model, one of {', '.join(models)}, found {against}{hint}"
        problems.setdefault((*place, "against"), text)


def check_repository(config: Config, problems: Problems) -> None:
    """Check that the names of repositories can be made, and that the hub accepts them."""
    found = get_value(config, problems, "export", "push_to")
    if found is None:
        return
    fields = {"student": "student", "category": "category", "variant": FULL}
    try:
        name = found.format(**fields)
    except (LookupError, ValueError, AttributeError, TypeError):
        text = f"expected no other names in braces than {{{'}, {'.join(fields)}}}, found {found}"
        problems.setdefault(("export", "push_to"), text)
        return
    if problem := find_repository_problem(name):
        problems.setdefault(("export", "push_to"), f"{problem}, found {found}")


def check_paths(config: Config, problems: Problems) -> None:
    """Check placeholders: paths of raw files contain {category}, those of the students' models must not.

    A single category may have `source.path` without it.
    """
    students = get_value(config, problems, "students")
    for name in students if isinstance(students, dict) else {}:
        check_start(config, name, problems)
    categories = get_value(config, problems, "categories")
    for key in dict.fromkeys(key for entry in SOURCE_FORMATS.values() for key in entry.files.values()):
        path = get_value(config, problems, "source", key)
        if isinstance(path, str):
            is_single = key == "path" and isinstance(categories, list) and len(categories) == 1
            check_placeholders(path, ("source", key), problems, {"category"}, is_required=not is_single)
    grpo, sft = get_value(config, problems, "source", "grpo"), get_value(config, problems, "source", "sft")
    if grpo is not None and grpo == sft:
        problems.setdefault(("source", "sft"), "expected another file than source.grpo")


def find_start(config: Config, problems: Problems, name: str) -> tuple[str, str] | None:
    """The student that another one starts from, as the configuration file names it, and the category in its path."""
    model = get_value(config, problems, "students", name, "model")
    found = STUDENT_FOLDER.fullmatch(model) if isinstance(model, str) else None
    if found is None or (owner := drop_seed(found["student"])) not in config["students"]:
        return None
    return owner, found["category"]


def check_start(config: Config, name: str, problems: Problems) -> None:
    """Check the model that a student starts from: its path, and that another student there is one that comes before."""
    place = ("students", name, "model")
    start = find_start(config, problems, name)
    if start is None:
        check_model_path(config, place, problems)
        return
    owner, category = start
    found = get_value(config, problems, *place)
    chain = [name, owner]
    while (further := find_start(config, problems, chain[-1])) and further[0] not in chain:
        chain.append(further[0])
    if owner == name or further:
        again = " → ".join([*chain, *([further[0]] if further and owner != name else [])])
        problems.setdefault(place, f"expected a student that is trained before this one, found {found} ({again})")
        return
    is_pooled = get_value(config, problems, "students", owner, "pool")
    seeds = get_value(config, problems, "students", owner, "train", "seeds")
    owners = [get_replica_name(owner, seed) for seed in seeds] if isinstance(seeds, list) else [owner]
    members = get_value(config, problems, "categories")
    parts = [POOLED] if is_pooled else ["{category}", *(members if isinstance(members, list) else [])]
    allowed = [f"output/{one}/{part}" for part in parts for one in owners]
    if category == "{category}" and get_value(config, problems, "students", name, "pool") and not is_pooled:
        text = f"expected a student with pool: true or another model, since {name} is pooled"
        problems.setdefault(place, f"{text} and {owner} has a model for each category, found {found}")
    elif found not in allowed:
        problems.setdefault(place, f"expected {' | '.join(allowed[: len(owners)])}, found {found}")


def check_teacher_model(config: Config, problems: Problems) -> None:
    """Check the teacher's paths: that of an adapter may contain {category}, that of a model must not.

    A model at a server may have {category} in its name.
    """
    engine = find_engine(config, problems)
    is_served = engine is not None and not engine.loads_weights
    check_model_path(config, ("teacher", "adapter"), problems, {"category"})
    check_model_path(config, ("teacher", "model"), problems, {"category"} if is_served else set(), is_name=is_served)


def check_model_path(
    config: Config, place: tuple[str, ...], problems: Problems, allowed: Set[str] = frozenset(), is_name: bool = False
) -> None:
    """Check the path or hub id of a model or an adapter.

    Args:
        allowed: the placeholders that it may contain.
        is_name: whether it is a name at a server, which needs no form.
    """
    path = get_value(config, problems, *place)
    if not isinstance(path, str):
        return
    if not is_name and (problem := find_source_problem(path)):
        problems.setdefault(place, f"{problem}, found {path!r}")
    check_placeholders(path, place, problems, allowed)


def check_placeholders(
    path: str, place: tuple[str, ...], problems: Problems, allowed: Set[str], is_required: bool = False
) -> None:
    """Check the placeholders of one path or name; `is_required` demands {category}."""
    unknown = set(re.findall(r"\{([^{}]*)\}", path)) - allowed
    if unknown or re.search(r"[{}]", path.replace("{category}", "")):
        rule = "{category} as the only placeholder" if allowed else "no placeholder"
        problems.setdefault(place, f"expected {rule}, found {path!r}")
    elif is_required and "{category}" not in path:
        problems.setdefault(place, f"expected a path that contains {{category}}, found {path!r}")
    elif place[-1] == "adapter" and path.lower() == "none":
        problems.setdefault(place, f"expected a path | null, found {path!r} (the empty value in YAML is null)")


def check_source(config: Config, problems: Problems) -> None:
    """Check what the format of the raw records requires, and what requires another format."""
    name, path = (get_value(config, problems, "source", key) for key in ("format", "path"))
    source_format = choose_format(name, path)
    for key in source_format.required_keys if source_format else ():
        if get_value(config, problems, "source", key) is None:
            problems.setdefault(("source", key), f"expected text, since source.format is {name}, found nothing")
    has_demo = get_value(config, problems, "demo") is not None
    if has_demo and source_format and "sft" not in source_format.files:
        one = f"source.format {name}" if source_format is SOURCE_FORMATS[name] else "source.path"
        problems.setdefault(("demo",), f"expected no demo models with {one}: they train on SFT records")
    if source_format and not source_format.has_turns and get_value(config, problems, "source", "targets") == "all":
        problems.setdefault(("source", "targets"), f"expected last: records of source.format {name} are single turns")
    if source_format:
        check_raw_files(source_format, config, problems)
        check_columns(source_format, config, problems)
    check_targets(source_format, config, problems)


def check_raw_files(source_format: SourceFormat, config: Config, problems: Problems) -> None:
    """Check the names of datasets, and that only a format that reads them has one, or a file with columns."""
    for key in source_format.files.values():
        path = get_value(config, problems, "source", key)
        if not isinstance(path, str):
            continue
        if problem := find_name_problem(path):
            problems.setdefault(("source", key), f"{problem}, found {path!r}")
        elif not source_format.reads_datasets and (is_dataset(path) or path.lower().endswith(COLUMNAR)):
            text = f"expected JSONL, found {path!r}: datasets, CSV, Parquet and Arrow are read from source.path"
            problems.setdefault(("source", key), text)


def check_columns(source_format: SourceFormat, config: Config, problems: Problems) -> None:
    """Check that the keys of `source.columns` are fields of the format or of labels."""
    columns, name = get_value(config, problems, "source", "columns"), get_value(config, problems, "source", "format")
    if not columns or not isinstance(columns, dict):
        return
    if not source_format.reads_datasets:
        text = f"expected none, since source.format {name} reads no columns"
        problems.setdefault(("source", "columns"), text + (" without source.path" if source_format.single else ""))
        return
    labels = get_value(config, problems, "answer", "label_fields")
    known = list_fields(name, labels if isinstance(labels, list) else [])
    for field in columns:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            text = f"expected a field of source.format {name} or of a label: {', '.join(known)}{hint}"
            problems.setdefault(("source", "columns", field), text)


def check_single_file(config: Config, problems: Problems) -> None:
    """Check that no paths of GRPO and SFT records are set beside `source.path`; `config` is without defaults."""
    if get_value(config, problems, "source", "path") is None:
        return
    for key in SOURCE_FORMATS["messages"].files.values():
        if (found := get_value(config, problems, "source", key)) is not None:
            text = f"expected nothing beside source.path, whose records are all that is read, found {found!r}"
            problems.setdefault(("source", key), text)


def check_targets(source_format: SourceFormat | None, config: Config, problems: Problems) -> None:
    """Check the shares of the targets, and that the format has original answers."""
    targets = get_value(config, problems, "mix_targets")
    if not targets:
        return
    teacher, original = (get_value(config, problems, "mix_targets", key) for key in ("teacher", "original"))
    if teacher is not None and original is not None and abs(teacher + original - 1) > 1e-9:
        problems.setdefault(("mix_targets",), f"expected shares that sum to 1, found {teacher} + {original}")
    if source_format and not source_format.has_original_answers:
        others = " | ".join(other for other, found in SOURCE_FORMATS.items() if found.has_original_answers)
        problems.setdefault(("mix_targets",), f"expected null: only source.format {others} has original answers")


def check_questions(config: Config, problems: Problems) -> None:
    """Check that fixed questions have a system prompt."""
    texts = [get_value(config, problems, *place) for place in (("evaluation", "system"), ("source", "system"))]
    if get_value(config, problems, "evaluation", "questions") and not any(texts):
        text = "expected text, since evaluation.questions is set, found nothing"
        problems.setdefault(("evaluation", "system"), text)


def check_together(config: Config, problems: Problems) -> None:
    """Check values that are valid alone but not together."""
    val, test = (get_value(config, problems, "split", f"{name}_fraction") for name in ("val", "test"))
    if val is not None and test is not None and val + test >= 1:
        text = f"expected val_fraction + test_fraction below 1, found {val} + {test}: no training records remain"
        problems.setdefault(("split", "val_fraction"), text)
    if get_value(config, problems, "mix", "grpo_fraction") == get_value(config, problems, "mix", "sft_fraction") == 0:
        problems.setdefault(("mix",), "expected grpo_fraction or sft_fraction above 0, found 0 for both")
    for model in ("teacher", "student"):
        rows = get_value(config, problems, "demo", model, "vocab_size")
        tokens = get_value(config, problems, "demo", "tokenizer_size")
        if rows is not None and tokens is not None and rows < tokens:
            text = f"expected at least tokenizer_size ({tokens}), found {rows}"
            problems.setdefault(("demo", model, "vocab_size"), text)
    check_date(config, problems)
    check_questions(config, problems)
    check_students(config, problems)
    check_exported(config, problems)
    check_pairwise(config, problems)
    check_repository(config, problems)
    if get_value(config, problems, "answer", "key") and get_value(config, problems, "answer", "label_fields") == []:
        text = "expected at least one field name, since answer.key is set, found []"
        problems.setdefault(("answer", "label_fields"), text)


def check_date(config: Config, problems: Problems) -> None:
    """Check that the date of the chat templates exists."""
    found = get_value(config, problems, "template_date")
    try:
        date.fromisoformat(found or TEMPLATE_DATE)
    except ValueError as error:
        problems.setdefault(("template_date",), f"expected a date, found {found} ({error})")


def check_teacher(config: Config, problems: Problems) -> None:
    """Check the teacher's settings against each other and against the answer format."""
    teacher = get_value(config, problems, "teacher")
    if not isinstance(teacher, dict):
        return
    greedy = get_value(config, problems, "teacher", "generation", "temperature") == 0
    has_format = bool(get_value(config, problems, "answer", "key"))
    for name, least in (("samples", 1), ("retries", 0)):
        is_repeated = isinstance(teacher.get(name), int) and teacher[name] > least
        if is_repeated and greedy:
            text = f"expected {least}, since generation.temperature is 0 (greedy decoding repeats the same answer)"
            problems.setdefault(("teacher", name), f"{text}, found {teacher[name]}")
        elif is_repeated and name == "retries" and not has_format:
            text = f"expected 0, since answer.key is null (any text is usable), found {teacher[name]}"
            problems.setdefault(("teacher", name), text)
    if teacher.get("keep") == "best" and not has_format:
        text = "expected all, since answer.key is null (there is no value to compare with the label), found best"
        problems.setdefault(("teacher", "keep"), text)
    if engine := find_engine(config, problems):
        check_engine(engine, teacher, problems)


def check_engine(engine: EngineType, teacher: Config, problems: Problems) -> None:
    """Check that the teacher's settings fit what its engine can do."""
    name, address = teacher["engine"], teacher.get("base_url")
    if engine.needs_base_url and address is None:
        text = f"expected the server's address (http://… or https://…) with engine {name}, found None"
        problems.setdefault(("teacher", "base_url"), text)
    elif engine.needs_base_url and (problem := find_address_problem(address)):
        problems.setdefault(("teacher", "base_url"), problem)
    elif not engine.needs_base_url and address is not None:
        served = " | ".join(other for other, kind in ENGINES.items() if kind.needs_base_url)
        text = f"expected engine {served} where base_url is set, found {name}"
        problems.setdefault(("teacher", "base_url"), text)
    if teacher.get("tokenizer") is not None and not engine.needs_tokenizer:
        text = f"expected null with engine {name}, which reads the tokenizer of teacher.model"
        problems.setdefault(("teacher", "tokenizer"), f"{text}, found {teacher['tokenizer']!r}")
    tokenizer = teacher.get("tokenizer")
    if isinstance(tokenizer, str) and ":" in tokenizer:
        text = "expected a local folder or a Hugging Face hub id without hf:, of which the tokenizer alone is loaded"
        problems.setdefault(("teacher", "tokenizer"), f"{text}, found {tokenizer!r}")
    if engine.starts_vllm:
        check_vllm(teacher, problems)
    if engine.loads_weights:
        return
    for key, without in (("adapter", None), ("quantization", "none")):
        if teacher.get(key) != without:
            text = f"expected {without or 'null'} with engine {name}, because the server loads the model"
            problems.setdefault(("teacher", key), f"{text}, found {teacher[key]!r}")
    if teacher.get("overlong") == "skip":
        text = f"expected error with engine {name}, because only the server knows its context length, found skip"
        remedy = "start the server with a longer context, or set teacher.refused to skip"
        problems.setdefault(("teacher", "overlong"), f"{text}; {remedy}")


def check_vllm(teacher: Config, problems: Problems) -> None:
    """Check the settings of a vLLM server that jobs start."""
    if teacher.get("quantization") != "none":
        text = "expected none with engine vllm, which has quantizations of its own (vllm.arguments.quantization)"
        problems.setdefault(("teacher", "quantization"), f"{text}, found {teacher.get('quantization')!r}")
    options = teacher.get("vllm")
    if not isinstance(options, dict):
        return
    found = options.get("arguments")
    arguments: Config = found if isinstance(found, dict) else {}
    for name in arguments:
        place = ("teacher", "vllm", "arguments", name)
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            problems.setdefault(place, f"expected an option of vllm serve with underscores, found {name!r}")
        elif longer := find_longer_name(name):
            problems.setdefault(place, f"expected a whole name such as {longer}, found {name!r}")
        elif name in OWN_ARGUMENTS or name.removeprefix("no_") in OWN_ARGUMENTS:
            problems.setdefault(place, "expected another option: the workflow sets this one itself")
    sizes = [arguments.get(key, 1) for key in PARALLEL_SIZES]
    for key, size in zip(PARALLEL_SIZES, sizes, strict=True):
        if type(size) is not int or size < 1:
            text = f"expected a whole number >= 1, found {size!r}"
            problems.setdefault(("teacher", "vllm", "arguments", key), text)
    length, answer = arguments.get("max_model_len"), (teacher.get("generation") or {}).get("max_new_tokens")
    if isinstance(length, int) and isinstance(answer, int) and length <= answer:
        text = f"expected more than generation.max_new_tokens ({answer}), found {length}"
        problems.setdefault(("teacher", "vllm", "arguments", "max_model_len"), text)
    nodes = options.get("nodes", 1)
    if type(nodes) is not int or nodes < 1 or any(type(size) is not int or size < 1 for size in sizes):
        return
    if sizes[0] * sizes[1] % nodes:
        text = f"expected a divisor of tensor_parallel_size × pipeline_parallel_size ({sizes[0] * sizes[1]})"
        problems.setdefault(("teacher", "vllm", "nodes"), f"{text}, found {nodes}")
    if options.get("share") and nodes != 1:
        problems.setdefault(("teacher", "vllm", "share"), f"expected false with {nodes} nodes, found true")


def check_students(config: Config, problems: Problems) -> None:
    """Check each student's settings against each other, the teachers' and the splits'."""
    students = get_value(config, problems, "students")
    # The common teacher counts even if each category has its own: what concerns all categories is derived from it.
    common = get_value(config, problems, "teacher")
    teachers = [*([common] if isinstance(common, dict) else []), *list_teachers(config).values()]
    for name in students if isinstance(students, dict) else {}:
        student = get_value(config, problems, "students", name)
        if not isinstance(student, dict):
            continue
        known = {key: get_value(config, problems, "students", name, key) for key in student}
        check_tail_samples(name, known, problems)
        check_on_policy(name, known, problems)
        check_cross_tokenizer(config, name, known, teachers, problems)
        check_pool(name, known, teachers, problems)
        check_quantization(name, known, teachers, problems)
        check_validation(config, name, problems)
        check_fsdp(config, name, problems)
        check_quantization_aware(config, name, problems)


def check_student_engines(config: Config, problems: Problems) -> None:
    """Check for each student that the teacher's engine gives what it learns from."""
    students = get_value(config, problems, "students")
    for name, student in students.items() if isinstance(students, dict) else ():
        if isinstance(student, dict) and ("students", name) not in problems:
            known = {key: get_value(config, problems, "students", name, key) for key in student}
            check_student_engine(config, name, known, problems)


def check_student_engine(config: Config, name: str, student: Config, problems: Problems) -> None:
    """Check that the teacher's engine gives what a student learns from."""
    engine = find_engine(config, problems)
    if engine is None:
        return
    engine_name = config["teacher"]["engine"]
    if needs_teacher(student):
        check_student_signal(engine, engine_name, name, student, problems)
    if engine.starts_vllm:
        check_states(config, name, student, problems)
    if isinstance(student.get("model"), dict) and not engine.loads_weights:
        text = f"expected a hub id or local folder with engine {engine_name}: the server's layers cannot be copied"
        problems.setdefault(("students", name, "model"), f"{text}, found {student['model']}")


def check_states(config: Config, name: str, student: Config, problems: Problems) -> None:
    """Check that the node of the job has the last layer, whose states its vLLM server writes."""
    options = get_value(config, problems, "teacher", "vllm")
    options = options if isinstance(options, dict) else {}
    parts = (options.get("arguments") or {}).get("pipeline_parallel_size", 1)
    if student.get("signal") == "hidden" and needs_teacher(student) and options.get("nodes", 1) != 1 and parts != 1:
        text = "expected topk with pipeline_parallel_size over several nodes, of which the last has the states"
        problems.setdefault(("students", name, "signal"), f"{text}, found hidden; or use tensor_parallel_size")


def check_student_signal(engine: EngineType, engine_name: str, name: str, student: Config, problems: Problems) -> None:
    """Check that the teacher's engine computes a student's signal, for its temperature and quantization."""
    signal, place = student.get("signal"), ("students", name)
    if not engine.loads_weights and not engine.signals:
        text = f"expected seqkd with engine {engine_name}, which returns answers but no distributions"
        more = "; with teacher.tokenizer, signal topk" if engine.needs_tokenizer else ""
        problems.setdefault((*place, "method"), f"{text}{more}, found {student['method']}")
    elif (signal == "online" and not engine.loads_weights) or (
        signal in CACHED_SIGNALS and signal not in engine.signals
    ):
        text = f"expected {' | '.join(engine.signals)} with engine {engine_name}, found {signal}"
        problems.setdefault((*place, "signal"), text)
    elif signal == "topk" and student.get("tail_samples") and not engine.has_all_logits:
        text = f"expected 0 with engine {engine_name}, whose server gives the most likely tokens alone"
        found = student["tail_samples"]
        problems.setdefault((*place, "tail_samples"), f"{text}; use a larger top_k, found {found}")
    elif signal == "topk" and student.get("temperature") != 1 and not engine.has_all_logits:
        text = f"expected 1 with signal topk and engine {engine_name}, whose server gives log-probabilities at 1 alone"
        remedy = "; use signal hidden" if "hidden" in engine.signals else ""
        problems.setdefault((*place, "temperature"), f"{text}{remedy}, found {student.get('temperature')}")
    quantization = student.get("teacher_quantization")
    if engine.is_served and signal in CACHED_SIGNALS and quantization not in (None, "none"):
        text = (
            f"expected null with engine {engine_name} and signal {signal}: the server quantizes, found {quantization}"
        )
        problems.setdefault((*place, "teacher_quantization"), text)


def check_tail_samples(name: str, student: Config, problems: Problems) -> None:
    """Check that sampled tokens are part of the signal, and of use to the method."""
    place, samples = ("students", name, "tail_samples"), student.get("tail_samples")
    if not samples or not needs_teacher(student):
        return
    if student.get("signal") != "topk":
        text = "expected 0 with another signal than topk, which alone has sampled tokens"
        problems.setdefault(place, f"{text}, found {samples} with {student.get('signal')}")
    elif not METHODS[student["method"]].is_linear:
        linear = " | ".join(method for method, entry in METHODS.items() if entry.is_linear)
        text = f"expected 0 with method {student['method']}: a sampled tail is unbiased for {linear} only"
        problems.setdefault(place, f"{text}, found {samples}")


def check_on_policy(name: str, student: Config, problems: Problems) -> None:
    """Check that on-policy steps have a teacher in memory, which scores the student's samples."""
    place, fraction = ("students", name, "on_policy_fraction"), student.get("on_policy_fraction")
    if not fraction:
        for key, without in (("on_policy_start", 0), ("on_policy_runaway", "warn")):
            if (value := student.get(key)) not in (None, without):
                text = f"expected {without} without on_policy_fraction, found {value}; set on_policy_fraction above 0"
                problems.setdefault(("students", name, key), text)
        return
    if student.get("method") in METHODS and not needs_teacher(student):
        text = f"expected 0 with method {student['method']}, which has no teacher to score the student's samples"
        problems.setdefault(place, f"{text}, found {fraction}")
    elif student.get("signal") in CACHED_SIGNALS:
        text = f"expected 0 with signal {student['signal']}: only a teacher in memory (online) can score new answers"
        problems.setdefault(place, f"{text}, found {fraction}")


def check_cross_tokenizer(
    config: Config, name: str, student: Config, teachers: Sequence[Config], problems: Problems
) -> None:
    """Check that a student that learns from a teacher with another tokenizer can do so."""
    if student.get("cross_tokenizer") is not True:
        return
    models = {str(teacher.get("model")) for teacher in teachers}
    if student.get("method") in METHODS and not needs_teacher(student):
        reason = f"with method {student['method']}, which works across tokenizers by itself"
    elif isinstance(student.get("model"), dict):
        reason = "with a copy of the teacher's layers, which has the teacher's tokenizer"
    elif student.get("on_policy_fraction"):
        reason = "with on_policy_fraction above 0: sampled answers are not read in the teacher's tokens"
    elif student.get("tail_samples"):
        reason = "with tail_samples above 0: sampled tokens are not compared across tokenizers"
    elif get_value(config, problems, "students", name, "train", "packing") is True:
        reason = "with train.packing: true, whose rows have the same tokens for both models"
    elif student.get("pool") and len(models) > 1:
        reason = "with pool: true and `teachers` that differ: tokens are aligned with one teacher's"
    else:
        return
    problems.setdefault(("students", name, "cross_tokenizer"), f"expected false {reason}, found true")


def check_pool(name: str, student: Config, teachers: Sequence[Config], problems: Problems) -> None:
    """Check what a pooled student can learn from teachers that differ between the categories."""
    if not student.get("pool"):
        if student.get("pool_balance") == "balanced":
            text = "expected proportional without pool: true, found balanced"
            problems.setdefault(("students", name, "pool_balance"), text)
        return
    weights = [[teacher.get(key) for key in TEACHER_WEIGHTS] for teacher in teachers]
    are_different = any(other != weights[0] for other in weights)
    has_category = any("{category}" in str(teacher.get(key)) for teacher in teachers for key in ("adapter", "model"))
    if not (are_different or has_category):
        return
    why = f"with pool: true and {'`teachers` that differ' if are_different else 'a teacher per {category}'}"
    if needs_teacher(student) and student.get("signal") == "online":
        text = f"expected {' | '.join(CACHED_SIGNALS)} {why} (a training keeps one teacher in memory), found online"
        problems.setdefault(("students", name, "signal"), text)
    if isinstance(student.get("model"), dict):
        text = f"expected a hub id or local folder {why} (no single teacher can be copied), found {student['model']}"
        problems.setdefault(("students", name, "model"), text)


def check_quantization(name: str, student: Config, teachers: Sequence[Config], problems: Problems) -> None:
    """Check that a student's quantization of the teacher means the same for all categories."""
    found = student.get("teacher_quantization")
    if found is not None and len({str(teacher.get("quantization")) for teacher in teachers}) > 1:
        text = "expected null where the quantizations of `teachers` differ (set teachers.NAME.quantization instead)"
        problems.setdefault(("students", name, "teacher_quantization"), f"{text}, found {found}")


def check_validation(config: Config, name: str, problems: Problems) -> None:
    """Check that what depends on validations has them."""
    has_validation = get_value(config, problems, "split", "val_fraction") != 0
    if get_value(config, problems, "students", name, "on_policy_runaway") == "stop":
        without = None if has_validation else "split.val_fraction is 0"
        if get_value(config, problems, "students", name, "train", "validation_samples") == 0:
            without = "train.validation_samples is 0"
        if without:
            text = f"expected warn, since {without} (no prompts are answered during the training), found stop"
            problems.setdefault(("students", name, "on_policy_runaway"), text)
    if has_validation:
        return
    for key, without in (("best_checkpoint", "false"), ("early_stopping_patience", "null")):
        value = get_value(config, problems, "students", name, "train", key)
        if value not in (None, False):
            text = f"expected {without}, since split.val_fraction is 0 (there is no validation loss), found {value}"
            problems.setdefault(("students", name, "train", key), text)


def check_fsdp(config: Config, name: str, problems: Problems) -> None:
    """Check what FSDP does not support, and what only FSDP supports."""
    place = ("students", name, "train")
    train = {key: get_value(config, problems, *place, key) for key in ("strategy", "optimizer", "fsdp_offload")}
    if train["strategy"] == "ddp" and train["fsdp_offload"]:
        text = "expected false with strategy ddp, which does not shard the weights, found true"
        problems.setdefault((*place, "fsdp_offload"), text)
    if train["strategy"] != "fsdp":
        return
    if train["optimizer"] == "adamw_bnb_8bit":
        text = "expected adamw_torch | adamw_torch_fused | adafactor with strategy fsdp"
        reason = "bitsandbytes optimizers do not support sharded weights"
        problems.setdefault((*place, "optimizer"), f"{text} ({reason}), found adamw_bnb_8bit")
    fraction = get_value(config, problems, "students", name, "on_policy_fraction")
    if fraction:
        text = "expected 0 with train.strategy fsdp: ranks sample at different speeds but need each other's shards"
        problems.setdefault(("students", name, "on_policy_fraction"), f"{text}, found {fraction}")


def check_quantization_aware(config: Config, name: str, problems: Problems) -> None:
    """Check that all weights of a student whose weights are rounded are trained, and whole on each device."""
    place = ("students", name, "train", "quantization_aware")
    found = get_value(config, problems, *place)
    if found is None:
        return
    if get_value(config, problems, "students", name, "lora") is not None:
        text = f"expected null with lora, since the weights below an adapter are not trained, found {found}"
        problems.setdefault(place, f"{text}; set lora: null")
    elif get_value(config, problems, "students", name, "train", "strategy") == "fsdp":
        text = f"expected null with strategy fsdp, which shards the groups of weights, found {found}"
        problems.setdefault(place, f"{text}; set strategy: ddp")
