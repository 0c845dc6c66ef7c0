"""Whose answers the cache holds, which configurations use them, and removing what none does."""

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

from distill.common.errors import InputError
from distill.generation.answer_cache import DESCRIPTION, iterate_answers
from distill.generation.engine import build_engine
from distill.models.hub_names import MANIFEST, is_download
from distill.plan.command_lines import generate_flags, generate_run_flags
from distill.plan.experiment import Config, get_adapter, get_made_files, get_missing_files, get_teacher_models
from distill.plan.schema import check_config

logger = logging.getLogger(__name__)

TEACHER_FOLDER = re.compile(r"[0-9a-f]{32}")  # as digest_of names one
GenerateParser = Callable[[list[str]], argparse.Namespace]


@dataclass(frozen=True)
class Teacher:
    """One teacher's folder.

    Attributes:
        answers: different ones; those that two jobs gave count once.
        bytes: of all its files.
        last: when the last answer was written.
        description: of teacher.json; empty where there is none.
        used_by: configurations with their categories, in words.
    """

    path: Path
    answers: int
    bytes: int
    last: datetime
    description: dict[str, Any]
    used_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        users = f"used by {', '.join(self.used_by)}" if self.used_by else "used by none of these configurations"
        last = f"last answer {self.last:%Y-%m-%d %H:%M}"
        first = f"{self.path.name}: {self.answers:,} answers, {format_size(self.bytes)}, {last}; {users}"
        parts = dict(self.description)
        parts |= parts.pop("sampling", {})
        return f"{first}\n  {', '.join(f'{name} {value}' for name, value in parts.items()) or 'not described'}"


class Uses:
    """Which teacher's folder each configuration uses.

    Attributes:
        folders: by the folder's name, the configurations' names with their categories.
        caches: folders of all teachers, each once, however the configurations spell it.
        problems: why a configuration's use is not known, or not all of it.
    """

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, list[str]]] = {}
        self.caches: dict[Path, None] = {}
        self.problems: list[str] = []

    def add(self, path: Path, directories: Sequence[Path], parse_args: GenerateParser) -> None:
        """Take in one configuration, up to the first category whose teacher is known in none of the directories."""
        name = path.name
        try:
            config = read_config(path)
            self.caches |= {(directory / config["cache"]).resolve(): None for directory in directories}
            places = {category: find_places(config, category, directories) for category in config["categories"]}
            places = {category: found for category, found in places.items() if found}
            if not places:
                raise InputError(f"no category has its raw files in {' or '.join(map(str, directories))}")
            for category, found in places.items():
                name = f"{path.name} ({category})"
                for folder in find_folders(config, category, found, parse_args):
                    self.folders.setdefault(folder, {}).setdefault(path.name, []).append(category)
        except (InputError, OSError) as error:
            self.problems.append(f"{name}: {error}")

    def of(self, folder: str) -> tuple[str, ...]:
        """Who uses a folder, in words."""
        return tuple(f"{name} ({', '.join(found)})" for name, found in self.folders.get(folder, {}).items())


def read_config(path: Path) -> Config:
    """A configuration, checked and with its defaults.

    Raises:
        InputError: it is no YAML, or not right.
    """
    try:
        return check_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"expected YAML: {error}") from error


def find_places(config: Config, category: str, directories: Sequence[Path]) -> list[Path]:
    """Directories in which a category has a teacher; one that the workflow skips may be without an adapter there."""
    found = []
    for directory in directories:
        with contextlib.chdir(directory):
            adapter = get_adapter(config, category)
            if category not in get_missing_files(config) or adapter is None or Path(adapter).exists():
                found.append(directory)
    return found


def find_folders(config: Config, category: str, directories: Sequence[Path], parse_args: GenerateParser) -> set[str]:
    """Names of the folders that a category's jobs use, made as the jobs make them.

    Raises:
        InputError: model or adapter are in none of the directories.
    """
    folders: set[str] = set()
    errors: dict[str, None] = {}
    for directory in directories:
        try:
            with contextlib.chdir(directory):
                folders |= find_folders_here(config, category, parse_args)
        except (InputError, OSError) as error:
            errors[str(error)] = None
            logger.info("%s: not used there: %s", directory, error)
    if not folders:
        raise InputError("; ".join(errors))
    return folders


def find_folders_here(config: Config, category: str, parse_args: GenerateParser) -> set[str]:
    """As `find_folders`, for a job in the working directory.

    A GPU without bfloat16 computes in float16 instead. Whether the job's has it is not known here, so both count.

    Raises:
        InputError: a model from a hub is not there, or not all of it, so that its answers cannot be told from others.
    """
    for model in filter(is_download, get_teacher_models(config, category)):
        if not all(Path(path).exists() for path in get_made_files(config, model)):
            raise InputError(f"{model}: expected a model that is downloaded, found no {MANIFEST} in it")
    line = f"{generate_flags(config, category)} {generate_run_flags(config)} --device cpu --prompts - --out - --stats -"
    args = parse_args(shlex.split(line))
    dtypes = {args.dtype, "float16"} if args.dtype == "bfloat16" else {args.dtype}
    return {build_engine(argparse.Namespace(**vars(args) | {"dtype": dtype})).fingerprint() for dtype in dtypes}


def find_uses(configfiles: Iterable[Path], directories: Sequence[Path], parse_args: GenerateParser) -> Uses:
    """What the given configurations use in any of the working directories, where their relative paths start.

    Args:
        parse_args: of generate_answers.py, so that the folders are those of its jobs.
    """
    uses = Uses()
    for path in configfiles:
        uses.add(path, [directory.resolve(strict=True) for directory in directories], parse_args)
    return uses


def check_sharing(uses: Uses, directory: Path) -> None:
    """Whether all caches are the working directory's own, so that no other one is likely to use them.

    Raises:
        InputError: one is elsewhere.
    """
    outside = [cache for cache in uses.caches if not cache.is_relative_to(directory.resolve())]
    if outside:
        listed = "\n".join(f"  {cache}" for cache in outside)
        text = f"nothing is removed, for other working directories may share what lies outside of this one:\n{listed}"
        raise InputError(f"{text}\nname all of them, this one too if it does, with --directory DIR…")


def describe_folder(path: Path) -> dict[str, Any]:
    """What teacher.json says; nothing where it is not there or torn."""
    try:
        found = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def list_teachers(cache: Path, uses: Uses) -> list[Teacher]:
    """The teachers' folders in a cache, the one written last first; other files and folders are none of ours."""
    teachers = []
    for path in sorted(cache.glob("*")):
        if not (TEACHER_FOLDER.fullmatch(path.name) and path.is_dir()):
            continue
        stats = {file: file.stat() for file in path.glob("*")}
        times = [stat.st_mtime for file, stat in stats.items() if file.suffix == ".jsonl"] or [path.stat().st_mtime]
        answers = len({(answer["uid"], answer["sample"]) for answer in iterate_answers(path)})
        size, last = sum(stat.st_size for stat in stats.values()), datetime.fromtimestamp(max(times))
        teachers.append(Teacher(path, answers, size, last, describe_folder(path), uses.of(path.name)))
    return sorted(teachers, key=lambda teacher: teacher.last, reverse=True)


def format_size(count: int) -> str:
    """Bytes in MiB.

    >>> format_size(3 * 2**20 // 2)
    '1.5 MiB'
    """
    return f"{count / 2**20:,.1f} MiB"


def format_total(teachers: Sequence[Teacher]) -> str:
    """All of them in a line."""
    answers = sum(teacher.answers for teacher in teachers)
    number = f"{len(teachers)} teacher{'' if len(teachers) == 1 else 's'}"
    return f"{number}, {answers:,} answers, {format_size(sum(one.bytes for one in teachers))}"


def list_cache(uses: Uses) -> str:
    """All teachers of all caches that the configurations name, and what is not known."""
    parts = [f"the use of {problem}" for problem in uses.problems]
    for cache in uses.caches:
        teachers = list_teachers(cache, uses)
        parts += [f"{cache}: {format_total(teachers)}", *map(str, teachers)]
    return "\n".join(parts)


def prune_cache(uses: Uses, is_confirmed: bool) -> str:
    """Remove the teachers that no configuration uses; without confirmation only say which.

    Raises:
        InputError: what a configuration uses cannot be known; nothing is removed then.
    """
    if uses.problems:
        listed = "\n".join(f"  {problem}" for problem in uses.problems)
        hint = "name its working directory with --directory, or leave it out with --configfile where its answers may go"
        raise InputError(f"nothing is removed, for what these configurations use cannot be known:\n{listed}\n{hint}")
    unused = [one for cache in uses.caches for one in list_teachers(cache, uses) if not one.used_by]
    parts = [f"{one.path.parent}/{one}" for one in unused]
    if is_confirmed:
        for teacher in unused:
            shutil.rmtree(teacher.path)
    end = "removed" if is_confirmed else "would be removed: say --yes to do it"
    return "\n".join([*parts, f"{format_total(unused)} {end}" if unused else "nothing to remove"])
