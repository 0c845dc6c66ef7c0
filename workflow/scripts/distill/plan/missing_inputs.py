"""The status of an experiment whose raw records are missing, so that no job can be planned yet."""

import os
from collections.abc import Iterator
from pathlib import Path

from distill.models.hub_names import is_download
from distill.plan.experiment import (
    Config,
    describe_teacher,
    get_category_config,
    get_initial_model,
    get_made_files,
    get_missing_files,
    get_source_format,
    get_teacher_models,
)
from distill.plan.text_table import render_columns


def find_blocking_files(config: Config) -> dict[str, list[str]]:
    """Return the missing raw files by category if they keep the workflow from starting; else nothing.

    It starts if a category has its files, unless `source.missing` is `error`.
    """
    missing = get_missing_files(config)
    is_blocked = len(missing) == len(config["categories"]) or config["source"]["missing"] == "error"
    return missing if is_blocked else {}


def list_models(config: Config) -> Iterator[str]:
    """Yield the folders and hub ids of all models that the experiment starts from, some of them several times."""
    for category in config["categories"]:
        yield from get_teacher_models(get_category_config(config, category), category)
        for student, settings in config["students"].items():
            if isinstance(settings["model"], str):
                yield get_initial_model(config, student, category)


def describe_model(config: Config, model: str) -> str:
    """Return whether a model is in the working directory, and else where it will come from."""
    made = get_made_files(config, model)
    if made and all(Path(file).exists() for file in made):
        return "there"
    if made:
        return "missing; the run downloads it" if is_download(model) else "missing; the run makes it"
    return "there" if Path(model).is_dir() else "no folder here; as a hub id, from the hub or its local cache"


def render_missing(config: Config, missing: dict[str, list[str]]) -> str:
    """Render a table of the categories with their missing raw files, and one of the models.

    Args:
        config: the checked configuration, whose paths are relative to the current folder.
        missing: from `find_blocking_files`.
    """
    states = {name: "missing input" if name in missing else "there" for name in config["categories"]}
    rows = [[name, state, ", ".join(missing.get(name, ()))] for name, state in states.items()]
    models = [[model, describe_model(config, model)] for model in dict.fromkeys(list_models(config))]
    keys = " and ".join(f"source.{key}" for key in get_source_format(config).files.values())
    several = "no category has its raw files" if len(missing) == len(states) else "source.missing is error"
    return "\n".join(
        [
            describe_teacher(config),
            *render_columns(["category", "records", "missing files"], rows),
            f"No job can be planned: {several}. Paths are relative to {os.getcwd()}; see {keys} in the configuration.",
            "",
            *render_columns(["model", "state"], models),
        ]
    )
