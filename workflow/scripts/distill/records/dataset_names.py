"""Datasets on the Hugging Face hub: their names, `hf:datasets/OWNER/NAME[@REVISION][:[SUBSET/]SPLIT]`, and folders."""

import re
from pathlib import Path
from typing import NamedTuple

from distill.common.downloads import MANIFEST
from distill.common.downloads import NAME_PART as PART

NAME = re.compile(
    rf"hf:datasets/(?P<repository>{PART}/{PART})(?:@(?P<revision>{PART}))?(?::(?:(?P<subset>{PART})/)?(?P<split>{PART}))?"
)
HUB_PREFIX = re.compile(r"[A-Za-z0-9]+:")
FORM = "hf:datasets/OWNER/NAME, optionally with @REVISION and then :SPLIT or :SUBSET/SPLIT"
DEFAULT_SPLIT = "train"


class DatasetName(NamedTuple):
    """A split of a dataset on the hub.

    Attributes:
        repository: `OWNER/NAME`.
        revision: branch, tag or commit; None for the main branch.
        subset: name of the subset, which the hub also calls configuration; None for the default one.
        split: name of the split.
    """

    repository: str
    revision: str | None
    subset: str | None
    split: str

    @property
    def folder(self) -> str:
        """The folder that the split is downloaded to."""
        revision = f"@{self.revision}" if self.revision else ""
        subset = f"{self.subset}/" if self.subset else ""
        return f"datasets/hf/{self.repository}{revision}/{subset}{self.split}"


def parse_dataset(path: str) -> DatasetName | None:
    """Return the dataset that a path names; None for the path of a file.

    >>> parse_dataset("hf:datasets/openai/gsm8k@main:socratic/test")
    DatasetName(repository='openai/gsm8k', revision='main', subset='socratic', split='test')
    """
    found = NAME.fullmatch(path)
    if not found:
        return None
    return DatasetName(found["repository"], found["revision"], found["subset"], found["split"] or DEFAULT_SPLIT)


def get_raw_file(path: str) -> str:
    """Return the file that a job reads for a path: for a dataset on the hub the manifest of its download.

    >>> get_raw_file("hf:datasets/openai/gsm8k@main:socratic/test"), get_raw_file("data/questions.json")
    ('datasets/hf/openai/gsm8k@main/socratic/test/download.json', 'data/questions.json')
    """
    dataset = parse_dataset(path)
    return f"{dataset.folder}/{MANIFEST}" if dataset else path


def is_dataset(path: str) -> bool:
    """Whether a path, which may contain {category}, names a dataset."""
    return parse_dataset(path.replace("{category}", "x")) is not None


def find_name_problem(path: str) -> str | None:
    """Return what is wrong with a malformed name of a dataset on a hub; None for valid ones and for paths of files."""
    if not HUB_PREFIX.match(path) or Path(path).exists() or is_dataset(path):
        return None
    return f"expected {FORM}"
