"""A two-node Slurm for each pytest-xdist worker, and working directories to submit to it."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from running import Directory, make_models, make_records
from slurm_testbed import SBIN, SETTINGS, Testbed, find_obstacle

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def testbed():
    """A running Slurm, stopped at the end of the tests."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    above = Path(tempfile.mkdtemp(prefix="stillhouse-slurm-"))
    above.chmod(0o755)  # munge requires that everybody can enter it
    bed = Testbed(above / "testbed")
    try:
        subprocess.run([HERE / "up.sh", bed.folder], env=os.environ | {"PATH": SBIN}, check=True)
        yield bed
    finally:
        subprocess.run([HERE / "down.sh", bed.folder], check=True)
        shutil.rmtree(above)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Records and tiny models before any run."""
    path = tmp_path_factory.mktemp("prepared")
    make_records(path)
    make_models(path)
    return Directory(path, SETTINGS)
