"""Download the files of one split of a dataset. The library `datasets` says which files these are."""

import contextlib
import difflib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from distill.common.errors import InputError, cut
from distill.models.checked_files import CHECKED, CheckedFiles
from distill.models.download import check_space, download_files, list_files, lock_folder, write_manifest
from distill.models.hub_files import Hub, RemoteFile, describe_failure
from distill.records.dataset_names import DatasetName
from distill.records.raw_files import COLUMNAR

logger = logging.getLogger(__name__)

# Where a repository says what its subsets and splits are; see LocalDatasetModuleFactory of `datasets`.
CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
ENDINGS = (*COLUMNAR, ".json", ".jsonl")


class Split(NamedTuple):
    """The files of a split.

    Attributes:
        names: their paths in the repository.
        separator: character between the cells of CSV files, where the repository sets one; otherwise None.
    """

    names: list[str]
    separator: str | None


def choose_name(what: str, name: str | None, known: Iterable[str], advice: str) -> str:
    """Return a name if it is known.

    Raises:
        InputError: it is not; lists the names that are.
    """
    names = sorted(known)
    if name in names:
        return str(name)
    near = difflib.get_close_matches(name or "", names, n=1)
    hint = f"; did you mean {near[0]}?" if near else f" ({advice})"
    raise InputError(f"expected a {what} of the dataset, one of {', '.join(names)}, found {name or 'none'}{hint}")


@contextlib.contextmanager
def build_outline(files: Iterable[RemoteFile], cards: Path) -> Iterator[Path]:
    """Yield a folder with a repository's cards, and with empty files in place of its data.

    The library finds subsets and splits by the names of files and the texts of cards alone. Archives are left out,
    since it would look into them.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "dataset"
        folder.mkdir()
        for file in files:
            path = folder / file.name
            if path.suffix != ".zip":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((cards / file.name).read_bytes() if file.name in CARDS else b"")
        yield folder


def find_split(files: Iterable[RemoteFile], cards: Path, dataset: DatasetName) -> Split:
    """Return the files of a split of a repository with these files.

    Args:
        files: all files of the repository.
        cards: folder with those of CARDS.
        dataset: names the subset and the split.

    Raises:
        InputError: there is no such subset or split, or its files have a format that is not supported.
    """
    from datasets import get_dataset_config_names, get_dataset_default_config_name, load_dataset_builder
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError
    from yaml import YAMLError

    files = list(files)
    with build_outline(files, cards) as folder:
        try:
            subset = dataset.subset or get_dataset_default_config_name(str(folder))
            subset = choose_name("subset", subset, get_dataset_config_names(str(folder)), "append :SUBSET/SPLIT")
            builder: Any = load_dataset_builder(str(folder), subset, cache_dir=str(folder.parent / "cache"))
        except (EmptyDatasetError, DataFilesNotFoundError, FileNotFoundError) as error:
            names = cut(", ".join(sorted(file.name for file in files)), 200)
            text = "expected files of Parquet, Arrow, CSV or JSON that are not compressed"
            raise InputError(f"{text}, found {names or 'no file'}") from error
        except (ValueError, TypeError, LookupError, AttributeError, YAMLError) as error:
            text = "expected a dataset that the library `datasets` reads"
            raise InputError(f"{text}, found: {describe_failure(error)}") from error
        splits = {str(name): paths for name, paths in builder.config.data_files.items()}
        split = choose_name("split", dataset.split, splits, "append :SPLIT")
        found = [to_name(path, folder.resolve()) for path in splits[split]]
        check_endings(found)
        # The library takes the format of the first subset for that of all.
        separator = getattr(builder.config, "sep", None) if found[0].lower().endswith(".csv") else None
    return Split(found, separator)


def to_name(path: str, folder: Path) -> str:
    """Return the path in the repository of a file in its outline.

    Raises:
        InputError: the file is none of the repository.
    """
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        raise InputError(f"expected files of the dataset's own repository, found {path}") from None


def check_endings(names: Iterable[str]) -> None:
    """Check that the files of a split are of a supported format, by their names.

    Raises:
        InputError: they are not.
    """
    if others := [name for name in names if not name.lower().endswith(ENDINGS)]:
        raise InputError(f"expected files that end in {', '.join(ENDINGS)}, found {others[0]}")


def remove_outdated(files: Iterable[RemoteFile], folder: Path, checked: CheckedFiles) -> None:
    """Remove files of an earlier download that are not in this revision's split."""
    kept = {file.name for file in files}
    for name in checked.known:
        if name not in kept and (folder / name).is_file():
            logger.warning("%s: removed, since it is not a file of this revision", folder / name)
            (folder / name).unlink()


def download_dataset(source: str, dataset: DatasetName, hub: Hub, folder: Path, workers: int) -> None:
    """Download the files of a split into a folder, check them, and write the manifest last.

    Args:
        source: the dataset as named in the configuration, for messages and the manifest.
        dataset: the same, parsed.
        hub: client for the dataset.
        folder: folder to download to.
        workers: number of files to download at a time.

    Raises:
        InputError: the dataset or the split is not available, does not fit on the disk, has another format than
            Parquet, Arrow, CSV or JSON, or a file cannot be downloaded. Correct files are kept.
    """
    with lock_folder(folder):
        commit, listed = list_files(source, hub)
        (folder / CHECKED).touch()
        cards = [file for file in listed if file.name in CARDS]
        checked = CheckedFiles(folder)
        if cards:
            download_files(source, hub, cards, folder, workers, checked)
        try:
            names, separator = find_split(listed, folder, dataset)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        files = [file for file in listed if file.name in names]
        check_space(files, hub, folder)
        digests = download_files(source, hub, files, folder, workers, checked)
        remove_outdated([*cards, *files], folder, checked)
        more = {"separator": separator} if separator else {}
        write_manifest(source, commit, files, digests, folder, **more)
