"""Digests of values, and of the code that makes a step's result: editing it reruns the step, a comment does not."""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.common.errors import InputError

# They word what a step says on its way, and nothing of what it writes: a better message must not train anew.
WITHOUT_RESULT = ("distill.common.errors", "distill.common.progress")
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def digest_of(value: Any) -> str:
    """32 hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def strip_docstrings(tree: ast.Module) -> None:
    """Remove the docstrings of a module, its classes and its functions, in place."""
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def strip_help(tree: ast.Module) -> None:
    """Blank the texts that only `--help` and the configuration reference show, in place.

    These are the arguments `help` and `when` of any call, and the description that `option` and `group` of
    common/options.py take first.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg in ("help", "when") and isinstance(keyword.value, ast.Constant):
                keyword.value = ast.Constant("")
        if isinstance(node.func, ast.Name) and node.func.id in ("option", "group") and node.args:
            node.args[0] = ast.Constant("")


def find_imports(tree: ast.Module, package: str) -> set[str]:
    """Dotted names of all modules that the code may import, those inside functions too.

    Of `from a import b` both `a` and `a.b` are listed, since b may be a module. `package` is the dotted name of the
    package that relative imports start from.
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
    """32 hex digits over the contents of files in their order, for what decides a result and is no Python."""
    return digest_of([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])


@functools.cache
def read_module(path: Path, package: str) -> tuple[str, frozenset[str]]:
    """(code without comments, docstrings and formatting; names it imports) of a file.

    Raises:
        InputError: the file is no Python; names file and line.
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
    """(dotted name, its package, file) of a module beside the script and of the packages around it; none elsewhere."""
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
def code_digest(script: Path) -> str:
    """SHA-256 (64 hexadecimal digits) over a script and all modules beside it that it imports, directly or not.

    Comments, docstrings, help texts, formatting and the place of the checkout do not count, nor do the modules in
    WITHOUT_RESULT. Installed libraries and modules imported by name at run time (importlib) are not seen. Every file
    is read once per process.

    Raises:
        InputError: one of the files is no Python.
    """
    root = Path(script).parent
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
