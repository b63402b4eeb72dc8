import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm import throwaway
from tests.slurm.fake_slurm import FakeSlurm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shared_cluster():
    """One real SLURM for all tests of this process."""
    reason = throwaway.missing()
    if reason:
        pytest.skip(f"a real SLURM {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge insists that all can reach its socket
    with throwaway.guarded(folder):
        yield throwaway.start(folder)


@pytest.fixture
def cluster(shared_cluster, monkeypatch):
    """The cluster with nothing on it, reached by this process and by those that it starts."""
    monkeypatch.setenv("SLURM_CONF", str(shared_cluster.conf))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where workers find the tests' jobs
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield shared_cluster
    shared_cluster.clear()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """SLURM's commands as stand-ins, and no DATA_ROOT."""
    monkeypatch.delenv("DATA_ROOT", raising=False)
    return FakeSlurm(tmp_path, monkeypatch)
