"""What must hold between the values of a configuration, beyond what its schema says of each alone."""

import re
from typing import Any

from distill.common.variants import list_suffixes
from distill.generation.server_address import find_address_problem
from distill.models.hub_names import find_source_problem

Place = tuple[str | int, ...]
Problems = dict[Place, str]
RESERVED_CATEGORIES = {"all"}
RESERVED_STUDENTS = {"teacher", "evaluation", "export", "report"}  # all but the first are folders beside the students'


def get_value(config: dict[str, Any], problems: Problems, *place: str) -> Any:
    """The value at a place; None where something on the way is missing or already known to be wrong."""
    value: Any = config
    for depth, key in enumerate(place, start=1):
        if place[:depth] in problems or not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def check_names(config: dict[str, Any], problems: Problems, pattern: str) -> None:
    """Categories and students: names that wildcards take and that no other file or folder of the workflow has."""
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


def check_paths(config: dict[str, Any], problems: Problems) -> None:
    """The only placeholder is {category}; a raw file's path must hold it, a model's may not."""
    students = get_value(config, problems, "students")
    is_served = get_value(config, problems, "teacher", "engine") == "openai"
    models = [("students", name, "model") for name in (students if isinstance(students, dict) else {})]
    raw = [("source", "grpo"), ("source", "sft"), ("source", "path")]
    for place in [*raw, ("teacher", "adapter"), ("teacher", "model"), *models]:
        path = get_value(config, problems, *place)
        if not isinstance(path, str):
            continue
        is_model = place[0] != "source" and not (place[0] == "teacher" and is_served)
        if is_model and (problem := find_source_problem(path)):
            problems.setdefault(place, f"{problem}, found {path!r}")
        allowed = set() if place[-1] == "model" else {"category"}
        unknown = set(re.findall(r"\{([^{}]*)\}", path)) - allowed
        if unknown or re.search(r"[{}]", path.replace("{category}", "")):
            rule = "{category} as the only placeholder" if allowed else "no placeholder"
            problems.setdefault(place, f"expected {rule}, found {path!r}")
        elif place[0] == "source" and "{category}" not in path:
            problems.setdefault(place, f"expected a path with {{category}} in it, found {path!r}")
        elif place[-1] == "adapter" and path.lower() == "none":
            problems.setdefault(place, f"expected a path | null, found {path!r} (YAML's word for nothing is null)")
    grpo, sft = get_value(config, problems, "source", "grpo"), get_value(config, problems, "source", "sft")
    if grpo is not None and grpo == sft:
        problems.setdefault(("source", "sft"), "expected another file than source.grpo")


def check_alpaca(config: dict[str, Any], problems: Problems) -> None:
    """What format alpaca needs, and what needs format alpaca."""
    source = {name: get_value(config, problems, "source", name) for name in ("format", "path", "system")}
    for name in ("path", "system"):
        if source["format"] == "alpaca" and source[name] is None:
            problems.setdefault(("source", name), "expected text, since source.format is alpaca, found nothing")
    targets = get_value(config, problems, "mix_targets")
    if not targets:
        return
    teacher, original = (get_value(config, problems, "mix_targets", name) for name in ("teacher", "original"))
    if teacher is not None and original is not None and abs(teacher + original - 1) > 1e-9:
        text = f"expected shares that sum to 1, found {teacher} + {original}"
        problems.setdefault(("mix_targets",), text)
    if source["format"] == "messages":
        problems.setdefault(("mix_targets",), "expected null: only source.format alpaca has original answers")


def check_questions(config: dict[str, Any], problems: Problems) -> None:
    """Fixed questions are asked with a system text, as all prompts are."""
    texts = [get_value(config, problems, *place) for place in (("evaluation", "system"), ("source", "system"))]
    if get_value(config, problems, "evaluation", "questions") and not any(texts):
        problems.setdefault(
            ("evaluation", "system"), "expected text, since there are evaluation.questions, found nothing"
        )


def check_together(config: dict[str, Any], problems: Problems) -> None:
    """Values that fit each on its own but not together."""
    val, test = (get_value(config, problems, "split", f"{name}_fraction") for name in ("val", "test"))
    if val is not None and test is not None and val + test >= 1:
        text = f"expected val_fraction + test_fraction below 1, found {val} + {test}: nothing is left to train on"
        problems.setdefault(("split", "val_fraction"), text)
    if get_value(config, problems, "mix", "grpo_fraction") == get_value(config, problems, "mix", "sft_fraction") == 0:
        problems.setdefault(("mix",), "expected grpo_fraction or sft_fraction above 0: no record is taken")
    for model in ("teacher", "student"):
        rows, tokens = (
            get_value(config, problems, "demo", *key) for key in ((model, "vocab_size"), ("tokenizer_size",))
        )
        if rows is not None and tokens is not None and rows < tokens:
            problems.setdefault(
                ("demo", model, "vocab_size"), f"expected at least tokenizer_size ({tokens}), found {rows}"
            )
    check_questions(config, problems)
    check_teacher(config, problems)
    check_students(config, problems)
    if get_value(config, problems, "answer", "key") and get_value(config, problems, "answer", "label_fields") == []:
        problems.setdefault(("answer", "label_fields"), "expected at least one field name where answer.key is set")


def check_teacher(config: dict[str, Any], problems: Problems) -> None:
    """The teacher's settings beside each other, the answer contract's and the students'."""
    teacher = get_value(config, problems, "teacher")
    if not isinstance(teacher, dict):
        return
    greedy = get_value(config, problems, "teacher", "generation", "temperature") == 0
    has_contract = bool(get_value(config, problems, "answer", "key"))
    for name, least in (("samples", 1), ("retries", 0)):
        asks_again = isinstance(teacher.get(name), int) and teacher[name] > least
        if asks_again and greedy:
            text = f"expected {least} where generation.temperature is 0 (the same answer comes again)"
            problems.setdefault(("teacher", name), f"{text}, found {teacher[name]}")
        elif asks_again and name == "retries" and not has_contract:
            text = f"expected 0 where answer.key is null (every text is usable), found {teacher[name]}"
            problems.setdefault(("teacher", name), text)
    if teacher.get("keep") == "best" and not has_contract:
        problems.setdefault(("teacher", "keep"), "expected all where answer.key is null (no label to be near to)")
    if teacher.get("engine") == "openai":
        check_server(teacher, problems)
    elif teacher.get("engine") == "transformers" and teacher.get("base_url") is not None:
        text = "expected engine openai where base_url is set, found transformers"
        problems.setdefault(("teacher", "base_url"), text)


def check_server(teacher: dict[str, Any], problems: Problems) -> None:
    """What a teacher behind a server needs, and what it cannot do."""
    if teacher.get("base_url") is None:
        text = "expected the server's address (http://… or https://…) with engine openai, found None"
        problems.setdefault(("teacher", "base_url"), text)
    elif problem := find_address_problem(teacher["base_url"]):
        problems.setdefault(("teacher", "base_url"), problem)
    for name, without in (("adapter", None), ("quantization", "none")):
        if teacher.get(name) != without:
            text = f"expected {without or 'null'} with engine openai: the server loads the model"
            problems.setdefault(("teacher", name), f"{text}, found {teacher[name]!r}")
    if teacher.get("overlong") == "skip":
        text = "expected error with engine openai, found skip: only the server knows its context"
        remedy = "start it with a longer one, or take the prompts that it refuses out of the raw files"
        problems.setdefault(("teacher", "overlong"), f"{text}; {remedy}")


def check_students(config: dict[str, Any], problems: Problems) -> None:
    """Each student's settings beside each other, the teacher's and the splits'."""
    teacher, students = get_value(config, problems, "teacher"), get_value(config, problems, "students")
    is_served = isinstance(teacher, dict) and teacher.get("engine") == "openai"
    adapter = get_value(config, problems, "teacher", "adapter")
    has_adapters = isinstance(adapter, str) and "{category}" in adapter
    for name in students if isinstance(students, dict) else {}:
        student = get_value(config, problems, "students", name)
        if not isinstance(student, dict):
            continue
        known = {key: get_value(config, problems, "students", name, key) for key in student}
        is_copied, has_signal = isinstance(known.get("model"), dict), known.get("method") not in (None, "seqkd")
        if is_served and has_signal:
            text = "expected seqkd with engine openai, which gives answers and no distributions"
            problems.setdefault(("students", name, "method"), f"{text}, found {known['method']}")
        if is_served and is_copied:
            text = (
                "expected a hub id or local folder with engine openai: the layers of a server's model are out of reach"
            )
            problems.setdefault(("students", name, "model"), text)
        check_on_policy(name, known, problems)
        check_pool(name, known, has_adapters, problems)
        check_validation(config, name, problems)
        check_shards(config, name, problems)


def check_on_policy(name: str, student: dict[str, Any], problems: Problems) -> None:
    """Answers that the student samples while it trains need a teacher that reads them."""
    place, fraction = ("students", name, "on_policy_fraction"), student.get("on_policy_fraction")
    if not fraction:
        return
    if student.get("method") == "seqkd":
        text = "expected 0 with method seqkd (no teacher is there to tell the student's answers from better ones)"
        problems.setdefault(place, f"{text}, found {fraction}")
    elif student.get("signal") in ("hidden", "topk"):
        text = f"expected 0 with signal {student['signal']} (only a teacher in memory, online, reads new answers)"
        problems.setdefault(place, f"{text}, found {fraction}")


def check_pool(name: str, student: dict[str, Any], has_adapters: bool, problems: Problems) -> None:
    """One model of all categories: what it can learn from a teacher that has an adapter for each."""
    if not student.get("pool"):
        if student.get("pool_balance") == "balanced":
            text = "expected proportional without pool: true, found balanced"
            problems.setdefault(("students", name, "pool_balance"), text)
        return
    why = "with pool: true and a teacher.adapter for each {category}"
    if has_adapters and student.get("signal") == "online" and student.get("method") not in (None, "seqkd"):
        text = f"expected hidden | topk {why} (one training has one teacher in memory), found online"
        problems.setdefault(("students", name, "signal"), text)
    if has_adapters and isinstance(student.get("model"), dict):
        text = f"expected a hub id or local folder {why} (there is no one teacher to copy), found {student['model']}"
        problems.setdefault(("students", name, "model"), text)


def check_validation(config: dict[str, Any], name: str, problems: Problems) -> None:
    """What goes by the validation loss needs one."""
    if get_value(config, problems, "split", "val_fraction") != 0:
        return
    for key, without in (("best_checkpoint", False), ("early_stopping_patience", None)):
        value = get_value(config, problems, "students", name, "train", key)
        if value not in (None, False):
            shown = "false" if without is False else "null"
            text = f"expected {shown} where split.val_fraction is 0 (there is no validation loss), found {value}"
            problems.setdefault(("students", name, "train", key), text)


def check_shards(config: dict[str, Any], name: str, problems: Problems) -> None:
    """What a training of shared weights cannot do, and what only it can."""
    place = ("students", name, "train")
    train = {key: get_value(config, problems, *place, key) for key in ("strategy", "optimizer", "fsdp_offload")}
    if train["strategy"] == "ddp" and train["fsdp_offload"]:
        problems.setdefault(
            (*place, "fsdp_offload"), "expected false with strategy ddp (nothing is shared out), found true"
        )
    if train["strategy"] != "fsdp":
        return
    if train["optimizer"] == "adamw_bnb_8bit":
        text = "expected adamw_torch | adamw_torch_fused | adafactor with strategy fsdp (bitsandbytes knows no shares)"
        problems.setdefault((*place, "optimizer"), f"{text}, found adamw_bnb_8bit")
    fraction = get_value(config, problems, "students", name, "on_policy_fraction")
    if fraction:
        text = "expected 0 with train.strategy fsdp (processes sample at their own pace, and need each other's shares)"
        problems.setdefault(("students", name, "on_policy_fraction"), f"{text}, found {fraction}")
