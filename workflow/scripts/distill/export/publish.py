"""Uploads an exported model to the Hugging Face hub."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.common.disk import format_bytes
from distill.common.errors import InputError
from distill.models.fingerprint import WEIGHTS
from distill.models.hub_files import describe_failure

logger = logging.getLogger(__name__)


def list_uploads(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file of an exported model, by its name.

    Raises:
        InputError: the folder has no model card, without which nothing is published.
    """
    if not (folder / "README.md").is_file():
        raise InputError(f"{folder}: expected the folder of an exported model with its card, README.md")
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def describe_uploads(folder: Path, repository: str, private: bool) -> list[str]:
    """Return what would be uploaded, as lines: the repository, then a file in each."""
    sizes = list_uploads(folder)
    kind = "private if it does not exist yet" if private else "public if it does not exist yet"
    head = f"{folder} -> {repository} ({kind}): {len(sizes)} files, {format_bytes(sum(sizes.values()))}"
    return [head, *(f"    {name}: {format_bytes(size)}" for name, size in sizes.items())]


def push(folder: Path, repository: str, private: bool) -> dict[str, Any]:
    """Upload the files of an exported model in one commit, and create the repository if there is none.

    Files that the hub has already are not sent again. Other files of the repository stay; a warning names weights
    among them, which a reader could load by mistake. The access token comes from HF_TOKEN alone.

    Args:
        folder: folder of the exported model.
        repository: OWNER/NAME.
        private: whether a new repository is private. An existing one must be, too.

    Returns:
        `repository`, `url`, `commit`, and `files` with their sizes in bytes.

    Raises:
        InputError: there is no token or it does not allow this, the hub cannot be reached, or a repository that should
            be private is public.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise InputError("HF_TOKEN: expected an access token with write permission in the environment, found none")
    files = list_uploads(folder)
    api = HfApi(token=token, library_name="stillhouse")
    try:
        prepare_repository(api, repository, private)
        logger.info("uploading %d files, %s, to %s", len(files), format_bytes(sum(files.values())), repository)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message=f"Upload {folder.name}"
        )
        warn_of_weights(repository, api.list_repo_files(repository), files)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            text = f"{repository}: HF_TOKEN has no permission to write there"
        else:
            text = f"{repository}: the upload failed; what has arrived is not sent again"
        raise InputError(f"{text}: {describe_failure(error)}") from error
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # a file that cannot be read
            raise InputError(str(error)) from error
        text = f"{api.endpoint} cannot be reached (HF_ENDPOINT sets a mirror; HF_HUB_OFFLINE must not be set)"
        raise InputError(f"{text}: {describe_failure(error)}") from error
    return {"repository": repository, "url": f"{api.endpoint}/{repository}", "commit": commit.oid, "files": files}


def prepare_repository(api: Any, repository: str, private: bool) -> None:
    """Create a repository, or check that an existing one is as private as it should be.

    Raises:
        InputError: it is public and should be private.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private, exist_ok=True)
        return
    if not private and found.private:
        logger.warning("%s is private and stays so; make it public on its page", repository)
    if private and not found.private:
        raise InputError(
            f"{repository}: expected a private repository, since export.push_private is true, found a public one; make "
            "it private on its page, or set export.push_private: false"
        )


def warn_of_weights(repository: str, found: Iterable[str], uploaded: Iterable[str]) -> None:
    """Warn of weights in a repository that are not of this model."""
    others = [name for name in sorted(set(found) - set(uploaded)) if name.endswith(WEIGHTS)]
    if others:
        logger.warning(
            "%s has weights from elsewhere, which were left alone: %s; remove them if they are of an earlier model",
            repository, ", ".join(others),
        )  # fmt: skip
