"""Working directories that the tests of the workflow start from."""

import shutil

import pytest
from running import LEFT_BEHIND, ROOT, Directory, make_models, make_records


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """Records and models, nothing run."""
    path = tmp_path_factory.mktemp("fresh")
    make_records(path)
    make_models(path)
    return Directory(path)


@pytest.fixture(scope="session")
def finished(fresh, tmp_path_factory):
    """The whole workflow, run through once; tests work on copies of it."""
    directory = fresh.copy(tmp_path_factory.mktemp("finished") / "run")
    directory.output = directory.run()
    return directory


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A copy of the project to edit."""
    path = tmp_path_factory.mktemp("checkout") / "stillhouse"
    left_behind = shutil.ignore_patterns(*LEFT_BEHIND)

    def ignore(folder, names):
        """At the root, all that is left behind; further down caches alone, since `models` is a package, too."""
        return left_behind(folder, names) if folder == str(ROOT) else {"__pycache__"} & set(names)

    shutil.copytree(ROOT, path, symlinks=True, ignore=ignore)
    return path
