"""The digest of code: what changes it and what does not."""

import shutil
import textwrap
from pathlib import Path

import pytest

from distill.common.digest import code_digest
from distill.common.errors import InputError

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow" / "scripts"
SCRIPT = '''
"""Train."""
import json
from distill import loss
from distill.data import read

def main():
    """Run."""
    import distill.lazy
    return loss.compute(read())
'''
MODULES = {
    "__init__": "",
    "loss": "from .deep import weigh\nfrom . import near\n\ndef compute(x):\n    return weigh(x)\n",
    "deep": "def weigh(x):\n    return x + 1\n",
    "near": "A = 1\n",
    "data": 'def read():\n    """Read."""\n    return 3\n',
    "lazy": "def late():\n    from distill.inner import more\n    return more\n",
    "inner": "more = 1\n",
    "unused": "B = 2\n",
}
COUNT = 0


def digest(folder: Path, script: str = SCRIPT, **modules: str) -> str:
    """Return the digest of a project in a new folder, since digests are cached by path."""
    global COUNT
    COUNT += 1
    root = folder / f"checkout{COUNT}"
    (root / "distill").mkdir(parents=True)
    (root / "train.py").write_text(script, encoding="utf-8")
    for name, code in {**MODULES, **modules}.items():
        (root / "distill" / f"{name}.py").write_text(code, encoding="utf-8")
    return code_digest(root / "train.py")


def test_same_code_elsewhere_has_the_same_digest(tmp_path):
    assert digest(tmp_path) == digest(tmp_path)
    assert len(digest(tmp_path)) == 64


@pytest.mark.parametrize(
    "script",
    [
        "# A comment\n" + SCRIPT,
        SCRIPT.replace('"""Train."""', '"""Train a student, as described."""'),
        SCRIPT.replace('    """Run."""\n', ""),
        SCRIPT.replace("\n", "\n\n"),
        SCRIPT.replace("loss.compute(read())", "(\n        loss . compute( read( ) )\n    )  # why"),
        SCRIPT.replace("\n", "\r\n"),
    ],
)
def test_comments_docstrings_and_formatting_do_not_count(tmp_path, script):
    assert digest(tmp_path, script) == digest(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"script": SCRIPT.replace("read())", "read() + 1)")},
        {"script": SCRIPT + "\nmain()\n"},
        {"script": SCRIPT.replace("import json", "import csv")},
        {"__init__": "C = 3\n"},
        {"loss": MODULES["loss"].replace("weigh(x)\n", "-weigh(x)\n")},
        {"deep": MODULES["deep"].replace("1", "2")},
        {"near": "A = 2\n"},
        {"data": MODULES["data"].replace("3", "4")},
        {"lazy": MODULES["lazy"] + "D = 1\n"},
        {"inner": "more = 2\n"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_code_of_every_imported_module_counts(tmp_path, change):
    assert digest(tmp_path, **change) != digest(tmp_path)


def test_text_that_is_not_a_docstring_counts(tmp_path):
    one, two = (SCRIPT + f'\nTEXT = """{text}"""\n' for text in ("a", "b"))
    assert digest(tmp_path, one) != digest(tmp_path, two)


def test_modules_that_are_not_imported_do_not_count(tmp_path):
    assert digest(tmp_path, unused="B = 3\n") == digest(tmp_path)
    assert digest(tmp_path, deep=MODULES["deep"] + "# one more\n\n") == digest(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "import distill.unused",
        "import distill.unused as u",
        "from distill import unused",
        "from distill.unused import B",
    ],
)
def test_every_form_of_import_is_followed(tmp_path, line):
    script = f"{line}\n"
    assert digest(tmp_path, script, unused="B = 3\n") != digest(tmp_path, script)


def test_subpackages_and_sibling_scripts_are_followed(tmp_path):
    digests = []
    for place in ("a", "b"):
        root = tmp_path / place
        (root / "distill" / "sub").mkdir(parents=True)
        (root / "distill" / "__init__.py").touch()
        (root / "distill" / "sub" / "__init__.py").write_text("from ..other import x\nfrom .leaf import y\n")
        (root / "distill" / "sub" / "leaf.py").write_text("from . import z\ny = 1\n")
        (root / "distill" / "sub" / "z.py").write_text("z = 1\n")
        (root / "distill" / "other.py").write_text("x = 1\n")
        (root / "helper.py").write_text("h = 1\n")
        (root / "run.py").write_text("import helper\nfrom distill.sub import leaf\n")
    base = code_digest(tmp_path / "a" / "run.py")
    assert base == code_digest(tmp_path / "b" / "run.py")
    for number, name in enumerate(["distill/sub/leaf.py", "distill/sub/z.py", "distill/other.py", "helper.py"]):
        shutil.copytree(tmp_path / "a", tmp_path / f"c{number}")
        (tmp_path / f"c{number}" / name).write_text("x = y = z = h = 2\n")
        digests.append(code_digest(tmp_path / f"c{number}" / "run.py"))
    assert len({base, *digests}) == 5


def test_a_module_counts_with_what_it_imports_from_the_folder_above(tmp_path):
    def of_module(**modules):
        digest(tmp_path, **modules)
        root = tmp_path / f"checkout{COUNT}"
        return code_digest(root / "distill/user.py", root)

    user = "from distill.data import read\n"
    assert of_module(user=user) == of_module(user=user + "# A comment\n", loss="")
    assert of_module(user=user) != of_module(user=user, data="def read():\n    return 4\n")


def test_circular_imports_end(tmp_path):
    assert digest(tmp_path, near="from distill import loss\n")


def test_syntax_error_names_file_and_line(tmp_path):
    with pytest.raises(InputError, match=r"distill.deep.py:2: expected Python code"):
        digest(
            tmp_path,
            deep=textwrap.dedent("""\
            x = 1
            def f(:
        """),
        )


def test_scripts_of_the_data_path_depend_on_no_training_code(tmp_path):
    """Editing the losses must not rerun the data steps."""
    before = {name: code_digest(SCRIPTS / f"{name}.py") for name in ("mix_records", "make_prompts", "split_answers")}
    shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for module in (tmp_path / "scripts" / "distill").rglob("*.py"):
        if "import torch" in module.read_text(encoding="utf-8"):
            module.write_text(module.read_text(encoding="utf-8") + "\nCHANGED = 1\n", encoding="utf-8")
    after = {name: code_digest(tmp_path / "scripts" / f"{name}.py") for name in before}
    assert after == before
    assert len(set(before.values())) == 3


def test_the_wording_of_messages_does_not_count(tmp_path):
    def at(place, **code):
        package = tmp_path / place / "distill"
        (package / "common").mkdir(parents=True)
        for name, text in {"common/errors": "def fail():\n    return 1\n", **code}.items():
            (package / f"{name}.py").write_text(text)
        for folder in (package, package / "common"):
            (folder / "__init__.py").write_text("")
        script = tmp_path / place / "script.py"
        script.write_text("from distill import steps\n")
        return code_digest(script)

    steps = "from distill.common.errors import fail\n"
    before = at("before", steps=steps)
    assert at("message", steps=steps, **{"common/errors": "def fail():\n    return 2\n"}) == before
    assert at("step", steps=steps + "fail()\n") != before


@pytest.mark.parametrize(
    ("script", "free_of"),
    [
        # On-policy students generate answers, so training depends on generation.
        (
            "train_student",
            {
                "evaluation/likelihood",
                "evaluation/predict",
                "generation/answer_cache",
                "teacher/generate_answers",
                "generation/vllm_server",
                "teacher/compute_signal",
                "teacher/served_teacher",
                "teacher/signal_teacher",
            },
        ),
        # A signal may come from a server, through the client that answers come from.
        (
            "compute_signal",
            {
                "evaluation/likelihood",
                "evaluation/predict",
                "student/copy_layers",
                "student/train_student",
                "student/trainer",
                "teacher/generate_answers",
            },
        ),
        # Unfinished predictions are in the answer cache, so they depend on it.
        (
            "predict_answers",
            {
                "plan/prune_cache",
                "student/loss",
                "student/train_student",
                "student/trainer",
                "teacher/gather_answers",
                "teacher/generate_answers",
                "teacher/shards",
            },
        ),
        (
            "generate_answers",
            {
                "evaluation/likelihood",
                "evaluation/predict",
                "student/loss",
                "student/train_student",
                "student/trainer",
                "teacher/gather_answers",
            },
        ),
    ],
)
def test_a_step_depends_on_its_own_modules(tmp_path, script, free_of):
    """Editing one step's modules must not rerun the other steps."""
    for name in sorted(free_of):
        root = tmp_path / name.replace("/", "_")
        shutil.copytree(SCRIPTS, root, ignore=shutil.ignore_patterns("__pycache__"))
        module = root / f"distill/{name}.py"
        assert module.is_file(), name
        module.write_text("CHANGED = True\n")
        assert code_digest(root / f"{script}.py") == code_digest(SCRIPTS / f"{script}.py"), name


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ('add_argument("--a", help="old", default=1)', 'add_argument("--a", help="new", default=1)', False),
        ('add_argument("--a", help="old", default=1)', 'add_argument("--a", help="old", default=2)', True),
        ('option("Old.", 1, minimum=0, when="Never.")', 'option("New.", 1, minimum=0, when="Always.")', False),
        ('option("Old.", 1, minimum=0)', 'option("Old.", 2, minimum=0)', True),
        ('group("Old.", None)', 'group("New.", None)', False),
        ('Entry(description="Old.", rule="a")', 'Entry(description="New.", rule="a")', False),
        ('Entry(description="Old.", rule="a")', 'Entry(description="Old.", rule="b")', True),
        ('describe("Old.")', 'describe("New.")', True),
    ],
)
def test_help_texts_do_not_count(tmp_path, before, after, counts):
    """A better description of an option must not train students again."""
    digests = []
    for place, code in (("before", before), ("after", after)):
        script = tmp_path / place / "script.py"
        script.parent.mkdir()
        script.write_text(f"x = {code}\n")
        digests.append(code_digest(script))
    assert (digests[0] != digests[1]) == counts
