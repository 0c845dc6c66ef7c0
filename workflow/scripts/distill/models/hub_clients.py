"""Clients for models on Hugging Face and ModelScope, and for datasets on Hugging Face.

Tokens and mirrors come from environment variables only.
"""

import os
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.models.hub_files import Hub, RemoteFile, describe_failure
from distill.models.hub_names import SOURCE
from distill.records.dataset_names import DatasetName


def open_hub(source: str) -> Hub:
    """Return the client for a model named with its hub.

    Raises:
        InputError: the name is malformed, or the hub's client package is not installed.
    """
    found = SOURCE.fullmatch(source)
    if not found:
        raise InputError(f"{source}: expected hf:OWNER/NAME or modelscope:OWNER/NAME, optionally with @REVISION")
    repository = f"{found['owner']}/{found['name']}"
    if found["hub"] == "hf":
        return HuggingFace(repository, found["revision"])
    return ModelScope(repository, found["revision"])


def open_dataset_hub(dataset: DatasetName) -> Hub:
    """Return the client for a dataset."""
    return HuggingFace(dataset.repository, dataset.revision, "dataset")


WRITE_BYTES = 2**16  # bytes written at a time: a lost connection or a kill loses no more


class HuggingFace:
    """A model or a dataset on Hugging Face. Unfinished files are named `.NAME.DIGEST.part`.

    HF_ENDPOINT sets a mirror, HF_TOKEN the access token.
    """

    def __init__(self, repository: str, revision: str | None, kind: str = "model"):
        import httpx2
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import build_hf_headers

        constants.DOWNLOAD_CHUNK_SIZE = WRITE_BYTES  # an unstable connection would never complete the default 10 MiB
        self.repository, self.revision, self.kind = repository, revision or "main", kind
        token = os.environ.get("HF_TOKEN") or False
        self.api, self.headers = HfApi(token=token), build_hf_headers(token=token)
        self.retryable: tuple[type[Exception], ...] = (httpx2.HTTPError, OSError)

    def list_files(self) -> tuple[str, list[RemoteFile]]:
        """List the files of the revision, and its commit; see `Hub.list_files`."""
        import httpx2
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            commit = self.api.repo_info(self.repository, revision=self.revision, repo_type=self.kind).sha
            options: dict[str, Any] = {"recursive": True, "revision": commit, "repo_type": self.kind}
            tree = list(self.api.list_repo_tree(self.repository, **options))
        except GatedRepoError as error:
            text = (
                f"access denied: accept the {self.kind}'s terms on its page, and set HF_TOKEN to that account's token"
            )
            raise InputError(f"{text}: {describe_failure(error)}") from error
        except RepositoryNotFoundError as error:
            text = f"no such {self.kind} at {self.api.endpoint}, or it is private and needs HF_TOKEN"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        except RevisionNotFoundError as error:
            raise InputError(f"expected a branch, tag or commit of the {self.kind}, found {self.revision!r}") from error
        except (httpx2.HTTPError, OSError) as error:
            text = f"{self.api.endpoint} cannot be reached (HF_ENDPOINT sets a mirror; HF_HUB_OFFLINE must not be set)"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        self.revision = str(commit)
        return str(commit), [
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in tree
            if isinstance(entry, RepoFile)
        ]

    def fetch(self, file: RemoteFile, folder: Path) -> None:
        """Download a file, resuming from the bytes on disk; see `Hub.fetch`.

        `hf_hub_download` would restart unfinished files of an earlier process.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get

        place: dict[str, Any] = {"repo_type": self.kind, "revision": self.revision, "endpoint": self.api.endpoint}
        url = hf_hub_url(self.repository, file.name, **place)
        part = self.get_part(file, folder)
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as out:
            size = out.tell()
            if size > file.size:
                out.truncate(size := 0)
            try:
                http_get(url, out, resume_size=size, headers=self.headers, expected_size=file.size)
            except HfHubHTTPError as error:
                if error.response.status_code in (401, 403, 404):
                    raise InputError(describe_failure(error)) from error
                raise
        os.replace(part, folder / file.name)

    def get_part(self, file: RemoteFile, folder: Path) -> Path:
        """Return the path of an unfinished file; it depends on the content, so another revision never resumes it."""
        whole = folder / file.name
        return whole.with_name(f".{whole.name}.{(file.digest or self.revision)[:12]}.part")

    def list_parts(self, file: RemoteFile, folder: Path) -> list[Path]:
        """List the unfinished and the finished file if they exist."""
        return [path for path in (self.get_part(file, folder), folder / file.name) if path.exists()]


class ModelScope:
    """A model on ModelScope.

    MODELSCOPE_ENDPOINT sets a mirror, MODELSCOPE_API_TOKEN the access token.
    """

    def __init__(self, repository: str, revision: str | None):
        try:
            from modelscope_hub import HubApi, HubConfig, HubError
        except ImportError as error:
            raise InputError(
                "modelscope: the package modelscope-hub is not installed; run `pip install modelscope-hub`"
            ) from error
        self.repository, self.revision = repository, revision or "master"
        self.api = HubApi(HubConfig(token=os.environ.get("MODELSCOPE_API_TOKEN", "")))
        self.retryable: tuple[type[Exception], ...] = (HubError, OSError)

    def list_files(self) -> tuple[str, list[RemoteFile]]:
        """List the files of the revision, and its name, since this hub reports no commit; see `Hub.list_files`."""
        from modelscope_hub import AuthenticationError, HubError, NotFoundError, PermissionDeniedError

        where = os.environ.get("MODELSCOPE_ENDPOINT") or "modelscope.cn"
        try:
            found = self.api.list_repo_files(self.repository, "model", revision=self.revision)
        except (AuthenticationError, NotFoundError, PermissionDeniedError) as error:
            text = f"no such model or revision {self.revision!r} at {where}, or MODELSCOPE_API_TOKEN gives no access"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        except (HubError, OSError) as error:
            text = f"{where} cannot be reached (MODELSCOPE_ENDPOINT sets a mirror)"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        return self.revision, [RemoteFile(one.path, one.size, one.sha256) for one in found if not one.is_dir]

    def fetch(self, file: RemoteFile, folder: Path) -> None:
        """Download a file with ModelScope's client, which resumes unfinished files; see `Hub.fetch`."""
        from modelscope_hub import AuthenticationError, NotExistError, PermissionDeniedError

        options: dict[str, Any] = {"revision": self.revision, "local_dir": folder, "file_size": file.size}
        try:
            self.api.download_file(self.repository, "model", file.name, **options)
        except (AuthenticationError, NotExistError, PermissionDeniedError) as error:
            raise InputError(describe_failure(error)) from error

    def list_parts(self, file: RemoteFile, folder: Path) -> list[Path]:
        """List the finished file and the client's unfinished ones: a single part, or several named by byte ranges."""
        names = (file.name, f"{file.name}.incomplete", f"{file.name}.parallel_tmp")
        found = [folder / name for name in names if (folder / name).exists()]
        return found + [path for path in folder.glob(f"{file.name}_*_*") if path.is_file()]
