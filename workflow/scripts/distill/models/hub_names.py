"""Models that are named with their hub, `hf:OWNER/NAME` or `modelscope:OWNER/NAME`, and the folders they stand for."""

import re
from pathlib import Path

HUBS = {"hf": "Hugging Face", "modelscope": "ModelScope"}
PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
SOURCE = re.compile(rf"(?P<hub>{'|'.join(HUBS)}):(?P<owner>{PART})/(?P<name>{PART})(?:@(?P<revision>{PART}))?")
FOLDER = re.compile(rf"models/(?P<hub>{'|'.join(HUBS)})/(?P<owner>{PART})/(?P<name>{PART})(?:@(?P<revision>{PART}))?")
MANIFEST = "download.json"


def get_folder(model: str) -> str:
    """The folder that a model of a hub is downloaded into; any other name, path or hub id, as it is.

    >>> get_folder("hf:Qwen/Qwen2.5-7B-Instruct")
    'models/hf/Qwen/Qwen2.5-7B-Instruct'
    """
    found = SOURCE.fullmatch(model)
    return "models/" + model.replace(":", "/", 1) if found else model


def get_public_name(model: str) -> str:
    """What a model is called on the Hugging Face hub, of a source or a folder of it; any other name as it is."""
    found = SOURCE.fullmatch(model) or FOLDER.fullmatch(model)
    return f"{found['owner']}/{found['name']}" if found and found["hub"] == "hf" else model


def is_download(folder: str) -> bool:
    """Whether a folder is one that the workflow downloads."""
    return FOLDER.fullmatch(folder) is not None


def find_source_problem(model: str) -> str | None:
    """What is wrong with a name that begins as a hub's; None for all others, and where nothing is."""
    if ":" not in model or Path(model).exists() or SOURCE.fullmatch(model.replace("{category}", "x")):
        return None
    return f"expected {' | '.join(f'{hub}:OWNER/NAME' for hub in HUBS)}, with @REVISION where it matters"
