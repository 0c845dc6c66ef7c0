"""Names of models on a hub, `hf:OWNER/NAME` or `modelscope:OWNER/NAME`, and the folders they are downloaded to."""

import re
from pathlib import Path

from distill.common.downloads import NAME_PART as PART

HUBS = {"hf": "Hugging Face", "modelscope": "ModelScope"}
SOURCE = re.compile(rf"(?P<hub>{'|'.join(HUBS)}):(?P<owner>{PART})/(?P<name>{PART})(?:@(?P<revision>{PART}))?")
LONGEST_NAME = 96  # characters of a name on Hugging Face
FOLDER = re.compile(rf"models/(?P<hub>{'|'.join(HUBS)})/(?P<owner>{PART})/(?P<name>{PART})(?:@(?P<revision>{PART}))?")


def get_folder(model: str) -> str:
    """Return the folder that a model named with its hub is downloaded to; any other name is returned unchanged.

    >>> get_folder("hf:Qwen/Qwen2.5-7B-Instruct")
    'models/hf/Qwen/Qwen2.5-7B-Instruct'
    """
    found = SOURCE.fullmatch(model)
    return "models/" + model.replace(":", "/", 1) if found else model


def get_public_name(model: str) -> str:
    """Return the Hugging Face id of a model given by its name or folder; any other name is returned unchanged."""
    found = SOURCE.fullmatch(model) or FOLDER.fullmatch(model)
    return f"{found['owner']}/{found['name']}" if found and found["hub"] == "hf" else model


def is_download(folder: str) -> bool:
    """Whether a folder is one that the workflow downloads a model to."""
    return FOLDER.fullmatch(folder) is not None


def find_repository_problem(name: str) -> str | None:
    """Return what is wrong with OWNER/NAME as the name of a new repository on Hugging Face; None for a valid one.

    >>> find_repository_problem("me/student-banks")
    >>> find_repository_problem("me/student--banks")
    'expected a name without --, .. and .git at its end'
    """
    if not re.fullmatch(f"{PART}/{PART}", name) or name[-1] in ".-":
        return "expected OWNER/NAME of letters, digits, dots, hyphens and underscores"
    if "--" in name or ".." in name or name.endswith(".git"):
        return "expected a name without --, .. and .git at its end"
    longest = max(map(len, name.split("/")))
    return f"expected at most {LONGEST_NAME} characters before and after the slash" if longest > LONGEST_NAME else None


def find_source_problem(model: str) -> str | None:
    """Return what is wrong with a malformed name of a model on a hub; None for valid and all other names."""
    if ":" not in model or Path(model).exists() or SOURCE.fullmatch(model.replace("{category}", "x")):
        return None
    return f"expected {' | '.join(f'{hub}:OWNER/NAME' for hub in HUBS)}, optionally with @REVISION"
