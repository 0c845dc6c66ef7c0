"""The library's packages: imports run one way, and a package's `__init__.py` holds its docstring alone."""

import ast

import pytest
from running import ROOT

LIBRARY = ROOT / "workflow/scripts/distill"
# Top first: a package imports from packages after it in this list only.
NAMES = "plan memory_plan demo export report evaluation student teacher generation models records common"
PACKAGES = tuple(NAMES.split())
MAY_IMPORT = {
    "plan": set(PACKAGES) - {"plan"},
    "memory_plan": {"student", "teacher", "generation", "models", "records", "common"},
    "demo": {"student", "models", "records", "common"},
    "export": {"report", "evaluation", "student", "teacher", "generation", "models", "records", "common"},
    "report": {"evaluation", "records", "common"},
    "evaluation": {"generation", "models", "records", "common"},
    "student": {"teacher", "generation", "models", "records", "common"},
    "teacher": {"generation", "models", "records", "common"},
    "generation": {"models", "records", "common"},
    "models": {"records", "common"},
    "records": {"common"},
    "common": set(),
}


def find_imported_packages(path):
    """Packages of the library that a file imports, those inside functions and of type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("distill.")}
    return found


def test_the_packages_are_those_that_are_listed():
    folders = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert folders == set(PACKAGES) == set(MAY_IMPORT)
    assert [path.name for path in LIBRARY.glob("*.py")] == ["__init__.py"]


def test_what_a_package_may_import_lies_below_it():
    for place, package in enumerate(PACKAGES):
        assert MAY_IMPORT[package] <= set(PACKAGES[place + 1 :]), package


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    modules = [path for path in (LIBRARY / package).rglob("*.py") if path.name != "__init__.py"]
    assert modules
    for path in modules:
        wrong = find_imported_packages(path) - MAY_IMPORT[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_a_package_is_described_and_holds_no_code():
    """digest.py adds every package's `__init__.py` to what it reads: code there would rerun what does not use it."""
    for path in LIBRARY.rglob("__init__.py"):
        (node,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(node, ast.Expr), path
        assert isinstance(node.value, ast.Constant), path
        assert isinstance(node.value.value, str), path


def test_an_upward_import_is_found(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("def load():\n    from distill.plan import schema\n    import distill.report.figures\n")
    assert find_imported_packages(module) == {"plan", "report"}
