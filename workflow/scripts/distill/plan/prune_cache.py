"""The teacher answer cache: which configurations use which teachers' answers, and removal of the unused ones."""

import argparse
import contextlib
import json
import logging
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from distill.common.downloads import MANIFEST
from distill.common.errors import InputError
from distill.generation.answer_cache import DESCRIPTION, iterate_answers
from distill.generation.engine import build_engine
from distill.models.hub_names import is_download
from distill.plan.command_lines import generate_flags, generate_run_flags
from distill.plan.experiment import (
    Config,
    get_adapter,
    get_category_config,
    get_made_files,
    get_missing_files,
    get_teacher_models,
)
from distill.plan.schema import check_config

logger = logging.getLogger(__name__)

TEACHER_FOLDER = re.compile(r"[0-9a-f]{32}")  # names made by digest_of
GenerateParser = Callable[[list[str]], argparse.Namespace]


@dataclass(frozen=True)
class Teacher:
    """The folder of one teacher's answers.

    Attributes:
        answers: number of distinct answers; duplicates from parallel jobs count once.
        bytes: size of all files.
        last: time of the last answer.
        description: content of teacher.json; empty without it.
        used_by: configurations that use it, with their categories.
    """

    path: Path
    answers: int
    bytes: int
    last: datetime
    description: dict[str, Any]
    used_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        users = f"used by {', '.join(self.used_by)}" if self.used_by else "not used by these configurations"
        last = f"last answer {self.last:%Y-%m-%d %H:%M}"
        first = f"{self.path.name}: {self.answers:,} answers, {format_size(self.bytes)}, {last}; {users}"
        parts = dict(self.description)
        parts |= parts.pop("sampling", {})
        return f"{first}\n  {', '.join(f'{name} {value}' for name, value in parts.items()) or 'no description'}"


class Uses:
    """Which teachers' folders the configurations use.

    Attributes:
        folders: names of the configurations that use a folder, with their categories, by the folder's name.
        caches: resolved cache folders of the configurations, in order.
        problems: why a configuration's folders cannot be determined, one text each.
    """

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, list[str]]] = {}
        self.caches: dict[Path, None] = {}
        self.problems: list[str] = []

    def add(self, path: Path, directories: Sequence[Path], parse_args: GenerateParser) -> None:
        """Add the folders of one configuration. Stops at the first category that no directory has the teacher of."""
        name = path.name
        try:
            config = read_config(path)
            self.caches |= {(directory / config["cache"]).resolve(): None for directory in directories}
            own = {category: get_category_config(config, category) for category in config["categories"]}
            places = {category: find_places(own[category], category, directories) for category in own}
            places = {category: found for category, found in places.items() if found}
            if not places:
                raise InputError(f"no category has its raw files in {' or '.join(map(str, directories))}")
            for category, found in places.items():
                name = f"{path.name} ({category})"
                for folder in find_folders(own[category], category, found, parse_args):
                    self.folders.setdefault(folder, {}).setdefault(path.name, []).append(category)
        except (InputError, OSError) as error:
            self.problems.append(f"{name}: {error}")

    def get_users(self, folder: str) -> tuple[str, ...]:
        """Return the configurations that use a folder, with their categories: `own.yaml (banks, funds)`."""
        return tuple(f"{name} ({', '.join(found)})" for name, found in self.folders.get(folder, {}).items())


def read_config(path: Path) -> Config:
    """Read and check a configuration, and fill in its defaults.

    Raises:
        InputError: the file is not YAML, or the configuration is invalid.
    """
    try:
        return check_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"expected YAML: {error}") from error


def find_places(config: Config, category: str, directories: Sequence[Path]) -> list[Path]:
    """Return the directories in which the workflow uses a category's teacher.

    A category that is skipped for missing raw files may also lack its adapter; such a directory is left out.
    """
    found = []
    for directory in directories:
        with contextlib.chdir(directory):
            adapter = get_adapter(config, category)
            if category not in get_missing_files(config) or adapter is None or Path(adapter).exists():
                found.append(directory)
    return found


def find_folders(config: Config, category: str, directories: Sequence[Path], parse_args: GenerateParser) -> set[str]:
    """Return the names of the folders that a category's jobs use in any of the directories.

    Raises:
        InputError: no directory has the model and the adapter.
    """
    folders: set[str] = set()
    errors: dict[str, None] = {}
    for directory in directories:
        try:
            with contextlib.chdir(directory):
                folders |= find_folders_here(config, category, parse_args)
        except (InputError, OSError) as error:
            errors[str(error)] = None
            logger.info("%s: skipped: %s", directory, error)
    if not folders:
        raise InputError("; ".join(errors))
    return folders


def find_folders_here(config: Config, category: str, parse_args: GenerateParser) -> set[str]:
    """Return the names of the folders that a category's jobs use in the current working directory.

    Jobs on a GPU without bfloat16 fall back to float16. The GPU is unknown here, so both dtypes are included.

    Raises:
        InputError: the download of a model is missing or incomplete, so that its fingerprint is unknown.
    """
    for model in filter(is_download, get_teacher_models(config, category)):
        if not all(Path(path).exists() for path in get_made_files(config, model)):
            raise InputError(f"{model}: expected a downloaded model, found no {MANIFEST} in it")
    line = f"{generate_flags(config, category)} {generate_run_flags(config)} --device cpu --prompts - --out - --stats -"
    args = parse_args(shlex.split(line))
    dtypes = {args.dtype, "float16"} if args.dtype == "bfloat16" else {args.dtype}
    return {build_engine(argparse.Namespace(**vars(args) | {"dtype": dtype})).fingerprint() for dtype in dtypes}


def find_uses(configfiles: Iterable[Path], directories: Sequence[Path], parse_args: GenerateParser) -> Uses:
    """Find the folders that the configurations use.

    Args:
        configfiles: paths of the configurations.
        directories: working directories, which relative paths in the configurations start from.
        parse_args: `parse_args` of generate_answers.py, which ensures the same folder names as in its jobs.
    """
    uses = Uses()
    for path in configfiles:
        uses.add(path, [directory.resolve(strict=True) for directory in directories], parse_args)
    return uses


def check_sharing(uses: Uses, directory: Path) -> None:
    """Check that all caches are inside the working directory, where no other directory is likely to use them.

    Raises:
        InputError: a cache is outside.
    """
    outside = [cache for cache in uses.caches if not cache.is_relative_to(directory.resolve())]
    if outside:
        listed = "\n".join(f"  {cache}" for cache in outside)
        text = f"nothing is removed: other working directories may share these caches outside this one:\n{listed}"
        raise InputError(f"{text}\nname all working directories that use them with --directory DIR…")


def describe_folder(path: Path) -> dict[str, Any]:
    """Read a folder's teacher.json; an empty description if it is missing or incomplete."""
    try:
        found = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def list_teachers(cache: Path, uses: Uses) -> list[Teacher]:
    """List the teachers' folders in a cache, latest first. Other files and folders are ignored."""
    teachers = []
    for path in sorted(cache.glob("*")):
        if not (TEACHER_FOLDER.fullmatch(path.name) and path.is_dir()):
            continue
        stats = {file: file.stat() for file in path.glob("*")}
        times = [stat.st_mtime for file, stat in stats.items() if file.suffix == ".jsonl"] or [path.stat().st_mtime]
        answers = len({(answer["uid"], answer["sample"]) for answer in iterate_answers(path)})
        size, last = sum(stat.st_size for stat in stats.values()), datetime.fromtimestamp(max(times))
        teachers.append(Teacher(path, answers, size, last, describe_folder(path), uses.get_users(path.name)))
    return sorted(teachers, key=lambda teacher: teacher.last, reverse=True)


def format_size(count: int) -> str:
    """Format a number of bytes in MiB.

    >>> format_size(3 * 2**20 // 2)
    '1.5 MiB'
    """
    return f"{count / 2**20:,.1f} MiB"


def format_total(teachers: Sequence[Teacher]) -> str:
    """Format the totals of several teachers on one line."""
    answers = sum(teacher.answers for teacher in teachers)
    number = f"{len(teachers)} teacher{'' if len(teachers) == 1 else 's'}"
    return f"{number}, {answers:,} answers, {format_size(sum(one.bytes for one in teachers))}"


def list_cache(uses: Uses) -> str:
    """Describe all teachers in the configurations' caches, after the configurations whose use is unknown."""
    parts = [f"unknown use: {problem}" for problem in uses.problems]
    for cache in uses.caches:
        teachers = list_teachers(cache, uses)
        parts += [f"{cache}: {format_total(teachers)}", *map(str, teachers)]
    return "\n".join(parts)


def prune_cache(uses: Uses, is_confirmed: bool) -> str:
    """Remove the folders that no configuration uses; without confirmation, only list them.

    Raises:
        InputError: the folders of a configuration cannot be determined. Nothing is removed.
    """
    if uses.problems:
        listed = "\n".join(f"  {problem}" for problem in uses.problems)
        text = f"nothing is removed: cannot tell which answers these configurations use:\n{listed}"
        hint = "name their working directories with --directory, or, if their answers may go, only the others with"
        raise InputError(f"{text}\n{hint} --configfile")
    unused = [one for cache in uses.caches for one in list_teachers(cache, uses) if not one.used_by]
    parts = [f"{one.path.parent}/{one}" for one in unused]
    if is_confirmed:
        for teacher in unused:
            shutil.rmtree(teacher.path)
    end = "removed" if is_confirmed else "would be removed: pass --yes to remove them"
    return "\n".join([*parts, f"{format_total(unused)} {end}" if unused else "no answers to remove"])
