"""Categories with a teacher of their own: merging their entries over the common teacher, and checking the result."""

import difflib
from dataclasses import is_dataclass
from typing import Any

from distill.common.options import list_options
from distill.plan.checks import (
    Config,
    Problems,
    check_student_engines,
    check_teacher,
    check_teacher_model,
    get_value,
    list_teachers,
)
from distill.plan.settings import Teacher

GROUPS = [name for name, (kind, _, _) in list_options(Teacher).items() if is_dataclass(kind)]


def merge_teacher(common: Any, own: Any) -> Any:
    """Return a category's teacher: the common one, with the keys of the category's entry in their place.

    The groups `generation` and `vllm` are merged key by key. Other mappings, such as `template_arguments`, are replaced
    as a whole, since another model may not know the names of the common one.
    """
    if not (isinstance(common, dict) and isinstance(own, dict)):
        return own
    groups = {name: common.get(name) for name in GROUPS if name in own}
    return common | own | {name: merge_group(group, own[name]) for name, group in groups.items()}


def merge_group(common: Any, own: Any) -> Any:
    """Return a group of options with those of a category's entry in their place."""
    return common | own if isinstance(common, dict) and isinstance(own, dict) else own


def merge_teachers(config: Config) -> None:
    """Complete the categories' entries in `teachers` in place, so that each has all keys."""
    if isinstance(config, dict) and isinstance(config.get("teachers"), dict):
        common = config.get("teacher")
        config["teachers"] = {name: merge_teacher(common, own) for name, own in config["teachers"].items()}


def check_entries(config: Config, problems: Problems) -> None:
    """Check the entries of `teachers` before they are merged over the common teacher."""
    teachers, common = get_value(config, problems, "teachers"), get_value(config, problems, "teacher")
    categories = get_value(config, problems, "categories")
    if not (isinstance(teachers, dict) and isinstance(common, dict) and isinstance(categories, list)):
        return
    for name, own in teachers.items():
        if name not in categories:
            near = difflib.get_close_matches(name, [one for one in categories if isinstance(one, str)], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            text = f"expected one of the categories ({', '.join(map(str, categories))}), found {name}{hint}"
            problems.setdefault(("teachers", name), text)
        elif isinstance(own, dict):
            check_entry(name, own, common, problems)


def check_entry(name: str, own: Config, common: Config, problems: Problems) -> None:
    """Check what an entry cannot change, and that an adapter is not applied to a model that it was not trained on."""
    shards = common.get("shards")
    if own.get("shards", shards) != shards:
        text = f"expected no value, since all categories have the same number (teacher.shards), found {own['shards']}"
        problems.setdefault(("teachers", name, "shards"), text)
    adapter, model = common.get("adapter"), own.get("model", common.get("model"))
    is_common = isinstance(adapter, str) and "{category}" not in adapter
    if is_common and model != common.get("model") and "adapter" not in own:
        text = f"missing, expected the adapter of {model} or null, since {adapter} belongs to {common.get('model')}"
        problems.setdefault(("teachers", name, "adapter"), text)


def check_teachers(config: Config, problems: Problems) -> None:
    """Check every teacher by itself and against what the students learn from it.

    Args:
        config: the configuration, with the merged entries of `teachers`.
        problems: what is found is added, at the place of the category's entry.
    """
    for place, teacher in list_teachers(config).items():
        if place == ("teacher",):
            check_one(config, problems)
        elif not any(other[0] == "teacher" or other[: len(place)] == place for other in problems):
            found: Problems = {}
            check_one(config | {"teacher": teacher}, found)
            for there, text in found.items():
                if there[0] == "teacher":
                    problems.setdefault((*place, *there[1:]), text)
                else:
                    problems.setdefault(there, f"{text} (with teachers.{place[1]})")
    check_sharing(config, problems)


def check_one(config: Config, problems: Problems) -> None:
    """Check the configuration's common teacher; see `check_teachers`."""
    check_teacher_model(config, problems)
    check_teacher(config, problems)
    check_student_engines(config, problems)


def check_sharing(config: Config, problems: Problems) -> None:
    """Check that no vLLM server is shared by categories with different teachers."""
    if not get_value(config, problems, "teachers"):
        return
    for place in dict.fromkeys((("teacher",), *list_teachers(config))):  # a server is shared if the common one is
        if get_value(config, problems, *map(str, place), "vllm", "share"):
            text = "expected false with `teachers`: one vLLM server has the teacher of all categories, found true"
            problems.setdefault((*place, "vllm", "share"), text)
