"""Downloads of models and datasets: the parts of their names on a hub, and the manifest of a download.

The manifest is a JSON file, written last, that lists the files with their sizes and checksums.
"""

import json
from pathlib import Path
from typing import Any

from distill.common.errors import InputError

NAME_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # owner, name, revision, subset or split
MANIFEST = "download.json"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check that its files are on disk in the size that it states.

    Returns:
        `source`, `commit` and `files`, a list of `{"name", "size", "sha256"}`; names are relative to the manifest.

    Raises:
        InputError: the manifest is missing or malformed, or a file is missing or has another size.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sizes = {path.parent / file["name"]: file["size"] for file in manifest["files"]}
    except (ValueError, LookupError, TypeError) as error:
        text = "expected the manifest of a download, with files of name, size and sha256"
        raise InputError(f"{path}: {text} ({type(error).__name__}: {error})") from None
    for file, size in sizes.items():
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            seen = "no such file" if found is None else f"{found} bytes"
            raise InputError(f"{file}: expected {size} bytes, found {seen}; remove {path} to download it again")
    return manifest
