"""Digests of values and of code. A step reruns if the digest of its code changes; comments do not change it."""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.common.errors import InputError

# Modules that affect messages, memory, speed or the choice of a GPU only, never results: editing them reruns nothing.
WITHOUT_RESULT = tuple(
    f"distill.common.{name}"
    for name in (
        "allocator",
        "control_groups",
        "disk",
        "errors",
        "gpu_claims",
        "progress",
        "progress_file",
        "reporter",
        "threads",
        "trackers",
    )
)
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def digest_of(value: Any) -> str:
    """Hash a JSON value to 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def strip_docstrings(tree: ast.Module) -> None:
    """Remove the docstrings of a module, its classes and its functions, in place."""
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def strip_help(tree: ast.Module) -> None:
    """Blank the texts that only `--help` and the configuration reference show, in place.

    These are the arguments `help`, `when` and `description` of any call, and the description that `option` and `group`
    of common/options.py take first. So no step may write the description of a registry's entry into its result.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg in ("help", "when", "description") and isinstance(keyword.value, ast.Constant):
                keyword.value = ast.Constant("")
        if isinstance(node.func, ast.Name) and node.func.id in ("option", "group") and node.args:
            node.args[0] = ast.Constant("")


def find_imports(tree: ast.Module, package: str) -> set[str]:
    """List the dotted names of all modules that the code may import, also inside functions.

    For `from a import b`, the result contains both `a` and `a.b`, since b may be a module.

    Args:
        tree: the parsed module.
        package: dotted name of the package that relative imports refer to.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def files_digest(paths: Iterable[Path]) -> str:
    """Hash the contents of files, in order, to 32 hexadecimal digits; for inputs of a step that are not Python."""
    return digest_of([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])


@functools.cache
def read_module(path: Path, package: str) -> tuple[str, frozenset[str]]:
    """Parse a Python file.

    Returns:
        Its code without comments, docstrings, help texts and formatting; the dotted names that it imports.

    Raises:
        InputError: the file is not valid Python; names file and line.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise InputError(f"{path}:{line}: expected Python code ({getattr(error, 'msg', error)})") from None
    strip_docstrings(tree)
    strip_help(tree)
    return ast.unparse(tree), frozenset(find_imports(tree, package))


def locate(root: Path, name: str) -> list[tuple[str, str, Path]]:
    """Find a module in the script's folder.

    Returns:
        (dotted name, package, file) for each package that contains the module and for the module itself; empty for
        modules outside the folder.
    """
    found = []
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        here, folder = ".".join(parts[:depth]), root.joinpath(*parts[:depth])
        if (folder / "__init__.py").is_file():
            found.append((here, here, folder / "__init__.py"))
        elif folder.with_suffix(".py").is_file():
            found.append((here, ".".join(parts[: depth - 1]), folder.with_suffix(".py")))
    return found


@functools.cache
def code_digest(script: Path, folder: Path | None = None) -> str:
    """Hash a script and all modules in its folder that it imports, directly or indirectly.

    Comments, docstrings, help texts, formatting and the location of the checkout do not change the digest, nor do the
    modules in WITHOUT_RESULT. Installed libraries and modules imported by name at run time (importlib) are ignored.
    Every file is read once per process.

    Args:
        script: the script, or a module.
        folder: the folder that imports start from, if it is not the script's.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        InputError: one of the files is not valid Python.
    """
    root = folder or Path(script).parent
    waiting = [("__main__", "", Path(script))]
    seen: dict[str, str] = {}
    while waiting:
        name, package, path = waiting.pop()
        if name not in seen and name not in WITHOUT_RESULT:
            seen[name], imports = read_module(path, package)
            waiting += [module for imported in imports for module in locate(root, imported)]
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name}\0{seen[name]}\0".encode())
    return digest.hexdigest()
