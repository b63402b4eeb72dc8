import pytest
import torch

from harness import dist, rendezvous
from tests.gloo import run_on


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-3,7],m2", "n1"), ("gpu[07,12]", "gpu07"), ("a,b", "a"), ("a,n[1-2]", "a")],
)
def test_the_first_host_of_a_slurm_node_list(nodes, first):
    assert rendezvous._first_host(nodes) == first


def test_srun_gives_rank_and_size(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "41",
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "n[2-3]",
    }.items():
        monkeypatch.setenv(name, value)
    assert dist._environment() == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
    }


def test_a_shell_inside_an_allocation_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert dist._environment()["WORLD_SIZE"] == "1"


def test_alone_every_collective_is_the_identity():
    x = torch.randn(3, 2)
    assert dist.gather(x) is x
    assert dist.gather_rows(x) is x
    assert dist.all_reduce_mean(x).equal(x)
    assert dist.broadcast_object("a") == "a"


def collectives() -> dict[str, torch.Tensor]:
    rank = dist.rank()
    x = torch.full((2, 1), float(rank + 1), dtype=torch.float64, requires_grad=True)
    everything = dist.gather(x)
    (everything * torch.arange(1, 5, dtype=torch.float64)[:, None]).sum().backward()
    return {
        "gathered": everything.detach(),
        "gradient": x.grad,
        "rows": dist.gather_rows(torch.full((rank + 1, 2), float(rank))),
        "sum": dist.all_reduce_sum(torch.tensor([float(rank + 1)])),
        "main": torch.tensor(dist.broadcast_object(rank)),
    }


def test_collectives_of_two_processes(tmp_path):
    results = run_on(2, collectives, tmp_path)
    for rank, found in enumerate(results):
        assert found["gathered"].flatten().tolist() == [1, 1, 2, 2]
        # Each process has the same global loss; the gradients of both are summed.
        expected = [2.0 * (2 * rank + 1), 2.0 * (2 * rank + 2)]
        assert found["gradient"].flatten().tolist() == expected
        assert found["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert found["sum"].item() == 3
        assert found["main"].item() == 0
