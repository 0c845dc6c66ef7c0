"""The two hubs, each by its own client. Tokens and mirrors come from the environment alone."""

import os
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.models.download import Hub, RemoteFile, describe_failure
from distill.models.hub_names import SOURCE


def open_hub(source: str) -> Hub:
    """The client of a source's hub.

    Raises:
        InputError: the source names no hub, or the client is not installed.
    """
    found = SOURCE.fullmatch(source)
    if not found:
        raise InputError(f"{source}: expected hf:OWNER/NAME or modelscope:OWNER/NAME, with @REVISION where it matters")
    repository = f"{found['owner']}/{found['name']}"
    if found["hub"] == "hf":
        return HuggingFace(repository, found["revision"])
    return ModelScope(repository, found["revision"])


PIECE = 2**16  # bytes that are written at a time: what a broken connection or a kill loses at most


class HuggingFace:
    """Files of a model there, each in a `.NAME.part` until it is whole.

    HF_ENDPOINT names a mirror, HF_TOKEN holds the token.
    """

    def __init__(self, repository: str, revision: str | None):
        import httpx2
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import build_hf_headers

        constants.DOWNLOAD_CHUNK_SIZE = PIECE  # of 10 MiB, a line that breaks more often would never get one
        self.repository, self.revision = repository, revision or "main"
        token = os.environ.get("HF_TOKEN") or False
        self.api, self.headers = HfApi(token=token), build_hf_headers(token=token)
        self.passing: tuple[type[Exception], ...] = (httpx2.HTTPError, OSError)

    def list_files(self) -> tuple[str, list[RemoteFile]]:
        """The commit and its files."""
        import httpx2
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            commit = self.api.model_info(self.repository, revision=self.revision).sha
            tree = list(self.api.list_repo_tree(self.repository, recursive=True, revision=commit))
        except GatedRepoError as error:
            text = "expected the model's terms to be accepted on its page, and HF_TOKEN to be a token of that account"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        except RepositoryNotFoundError as error:
            text = f"no such model at {self.api.endpoint}, or a private one that needs HF_TOKEN"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        except RevisionNotFoundError as error:
            raise InputError(f"expected a branch, tag or commit of the model, found {self.revision!r}") from error
        except (httpx2.HTTPError, OSError) as error:
            text = f"{self.api.endpoint} cannot be reached (HF_ENDPOINT names another, HF_HUB_OFFLINE forbids it)"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        self.revision = str(commit)
        return str(commit), [
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in tree
            if isinstance(entry, RepoFile)
        ]

    def fetch(self, file: RemoteFile, folder: Path) -> None:
        """By ranges, from the last byte that is there; the client's own download begins anew in each process."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get

        url = hf_hub_url(self.repository, file.name, revision=self.revision, endpoint=self.api.endpoint)
        part = self.get_part(file, folder)
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
        """Where a file is until it is whole; of another content, elsewhere."""
        return folder / f".{file.name}.{(file.digest or self.revision)[:12]}.part"

    def list_parts(self, file: RemoteFile, folder: Path) -> list[Path]:
        """The part, or the whole."""
        return [path for path in (self.get_part(file, folder), folder / file.name) if path.exists()]


class ModelScope:
    """Files of a model there.

    MODELSCOPE_ENDPOINT names a mirror, MODELSCOPE_API_TOKEN holds the token.
    """

    def __init__(self, repository: str, revision: str | None):
        try:
            from modelscope_hub import HubApi, HubConfig, HubError
        except ImportError as error:
            raise InputError("modelscope: needs the package modelscope-hub, which is not installed") from error
        self.repository, self.revision = repository, revision or "master"
        self.api = HubApi(HubConfig(token=os.environ.get("MODELSCOPE_API_TOKEN", "")))
        self.passing: tuple[type[Exception], ...] = (HubError, OSError)

    def list_files(self) -> tuple[str, list[RemoteFile]]:
        """The revision's name and its files: this hub tells no commit."""
        from modelscope_hub import AuthenticationError, HubError, NotFoundError, PermissionDeniedError

        where = os.environ.get("MODELSCOPE_ENDPOINT") or "modelscope.cn"
        try:
            found = self.api.list_repo_files(self.repository, "model", revision=self.revision)
        except (AuthenticationError, NotFoundError, PermissionDeniedError) as error:
            text = f"no such model or revision {self.revision!r} at {where}, or a private one (MODELSCOPE_API_TOKEN)"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        except (HubError, OSError) as error:
            text = f"{where} cannot be reached (MODELSCOPE_ENDPOINT names another)"
            raise InputError(f"{text}: {describe_failure(error)}") from error
        return self.revision, [RemoteFile(one.path, one.size, one.sha256) for one in found if not one.is_dir]

    def fetch(self, file: RemoteFile, folder: Path) -> None:
        """By the client, which keeps parts and goes on from them."""
        from modelscope_hub import AuthenticationError, NotExistError, PermissionDeniedError

        options: dict[str, Any] = {"revision": self.revision, "local_dir": folder, "file_size": file.size}
        try:
            self.api.download_file(self.repository, "model", file.name, **options)
        except (AuthenticationError, NotExistError, PermissionDeniedError) as error:
            raise InputError(describe_failure(error)) from error

    def list_parts(self, file: RemoteFile, folder: Path) -> list[Path]:
        """The whole, or what the client has of it: one part, or several named by their bytes."""
        names = (file.name, f"{file.name}.incomplete", f"{file.name}.parallel_tmp")
        found = [folder / name for name in names if (folder / name).exists()]
        return found + [path for path in folder.glob(f"{file.name}_*_*") if path.is_file()]
