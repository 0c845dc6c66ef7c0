"""What every start of Snakemake computes from files, kept in the working directory for the next start.

Each command parses the rules, which takes digests of their scripts' code and counts the tokens of answers. Both depend
on files alone, which rarely change.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

CACHE_FILE = Path(".snakemake/stillhouse/start.json")  # in the working directory
CODE = Path(__file__).resolve().parents[2]  # workflow/scripts
# A file that was changed less than this before it was read may change again without a later time stamp.
SETTLED_NS = 2_000_000_000

State = list[int] | None


def hash_code(folder: Path = CODE) -> str:
    """Hash the Python version and all Python files in a folder: what is computed depends on nothing else than input."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(folder.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder)}\0{content}\0".encode())
    return digest.hexdigest()


def get_state(path: str | Path) -> State:
    """Return size, times and inode of a file, some of which a change of its content changes; None without the file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def is_settled(state: State) -> bool:
    """Whether a change from now on changes the file's state: it would not within the resolution of the file's times."""
    return state is None or time.time_ns() - max(state[1:3]) > SETTLED_NS


class StartCache:
    """Values by key, each valid for one state of the files that it was computed from.

    Any edit of the project's code empties the cache, and so does another version of Python.
    """

    def __init__(self, path: Path = CACHE_FILE, code: Path = CODE):
        self.path, self.version, self.is_changed = path, hash_code(code), False
        self.entries: dict[str, dict[str, Any]] = self.read()

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the entries in the file; none if another version wrote them or the file is damaged."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return dict(found["entries"]) if found["version"] == self.version else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def get(self, key: str, compute: Callable[[], Any], files: Iterable[str | Path] = ()) -> Any:
        """Return the kept value, or compute it.

        Args:
            key: what the value is.
            compute: returns the value, which JSON must be able to hold.
            files: all files that it reads, besides code.
        """
        states = [get_state(path) for path in files]
        entry = self.entries.get(key)
        if entry is not None and entry["states"] == states:
            return entry["value"]
        value = compute()
        if all(map(is_settled, states)):
            self.entries[key] = {"states": states, "value": value}
            self.is_changed = True
        return value

    def save(self) -> None:
        """Write what is new. Dry runs do so at the same time, so each writes a file of its own and renames it."""
        if not self.is_changed:
            return
        content = json.dumps({"version": self.version, "entries": self.entries}, ensure_ascii=False)
        with suppress(OSError):  # in a folder that cannot be written, the next start computes everything again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self.path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, self.path)
