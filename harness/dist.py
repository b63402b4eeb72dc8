"""Processes: torchrun, srun and submitit from one entry point, and collectives with gradients.

With one process every function here is the identity, so that nothing else asks how many there are.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from harness.errors import UserError
from harness.rendezvous import TIMEOUT, HungRankError, job_store, timeout

_SRUN = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_CHECK_IN_SECONDS = 5.0  # within which all who waited for a hung process say so
_TIMED_OUT = ("Timed out", "timed out", "Timeout", "timeout")


def _environment() -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK and the master's address, from torchrun or from srun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return dict(os.environ)
    # Only a process that srun started has a step id; sbatch's own shell has SLURM_NTASKS too.
    if "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ:
        return {ours: os.environ[theirs] for ours, theirs in _SRUN.items()}
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def init() -> None:
    """Join the process group if this process is one of several; do nothing otherwise.

    NCCL with one GPU per process, gloo on CPU. Calling it twice is fine.

    Raises:
        UserError: More processes on this machine than GPUs, or no free port.
        HungRankError: The first process never came.
    """
    if torch_dist.is_initialized():
        return
    env = _environment()
    if int(env["WORLD_SIZE"]) == 1:
        return
    local = int(env.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if local >= gpus:
            # srun with one visible GPU per task numbers each of them 0.
            if gpus != 1:
                raise UserError(
                    f"local rank {local} has no GPU: {gpus} are visible on "
                    f"{socket.gethostname()}; start one process per GPU"
                )
            local = 0
        torch.cuda.set_device(local)
    rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    meeting: dict[str, Any]
    if "MASTER_ADDR" in env:
        meeting = {"init_method": f"tcp://{env['MASTER_ADDR']}:{env['MASTER_PORT']}"}
    else:
        meeting = {"store": job_store(rank, world)}
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(
        backend, rank=rank, world_size=world, timeout=timeout(), **meeting
    )


@contextmanager
def naming_hung_ranks() -> Iterator[None]:
    """Turn the timeout of a collective into a sentence that says which process didn't come.

    With gloo; NCCL's watchdog ends the process itself and names the collective in its log.

    Raises:
        HungRankError: Some process didn't come.
    """
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not any(word in str(error) for word in _TIMED_OUT):
            raise
        hung = _absent()
        if not hung:
            raise
        ranks = ", ".join(map(str, hung))
        raise HungRankError(
            f"rank {ranks} of {world()} hung: the others waited for it for "
            f"{timeout().total_seconds():.0f} s; look at its own log, and raise {TIMEOUT} if it "
            "was only slow"
        ) from error


def _absent() -> list[int]:
    """Ranks that don't say, soon after this one, that they waited in vain as well."""
    store = torch_dist.distributed_c10d._get_default_store()
    try:
        store.set(f"waited/{rank()}", "")
        time.sleep(_CHECK_IN_SECONDS)
        return [other for other in range(world()) if not store.check([f"waited/{other}"])]
    except torch_dist.DistError:
        return [0]  # the store is the first process's


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 when alone."""
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world() -> int:
    """How many processes work together."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and reports."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        torch_dist.barrier()


def broadcast_object(value: Any) -> Any:
    """The main process's `value`, on every process."""
    if world() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def broadcast(x: Tensor) -> Tensor:
    """The main process's tensor, on every process; no gradient."""
    if world() > 1:
        torch_dist.broadcast(x, src=0)
    return x


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the block alone before the others do (to fill a cache)."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes, in rank order, on every process; no gradient.

    Args:
        x: (n_r, …); the number of rows may differ from rank to rank.
    """
    if world() == 1:
        return x
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world())]
    torch_dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    rows = [int(count) for count in counts]
    padded = torch.cat([x, x.new_zeros((max(rows) - len(x), *x.shape[1:]))]).contiguous()
    parts = [torch.empty_like(padded) for _ in rows]
    torch_dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])


def exchange(x: Tensor, counts: list[int]) -> Tensor:
    """What every process has for this one's rows; no gradient.

    Args:
        x: (sum of counts, …), rows for each process in rank order.
        counts: Rows for each process, the same list on all.

    Returns:
        (counts[rank], world, …).
    """
    if world() == 1:
        return x[:, None]
    mine = counts[rank()]
    found = x.new_empty((world() * mine, *x.shape[1:]))
    torch_dist.all_to_all_single(found, x.contiguous(), [mine] * world(), counts)
    return found.unflatten(0, (world(), mine)).transpose(0, 1)


def gather_batch(x: Tensor) -> Tensor:
    """Rows of all processes in the order of the global batch, on every process; no gradient.

    The loader gives process r the images r, r + W, … of a step, so this order, and with it what a
    queue holds, doesn't depend on the number of processes.

    Args:
        x: (n, …), as many rows on each process.
    """
    if world() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world())]
    torch_dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """all_gather forward; backward sums the gradients that all processes have for these rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world())]
        torch_dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.contiguous()
        torch_dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Sum(torch.autograd.Function):
    """all_reduce(sum) forward; backward sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch_dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.contiguous().clone()
        torch_dist.all_reduce(gradient)
        return gradient


def gather(x: Tensor) -> Tensor:
    """The global batch (world * n, …) from each process's (n, …), with the exact gradient.

    Every process then computes the same global loss L. Backward returns the sum over processes
    of dL/dx, i.e. world * dL/dx, and the mean that DDP takes over processes makes it the gradient
    of L with respect to the weights, exactly as on one process with the whole batch.
    """
    return x if world() == 1 else _Gather.apply(x)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over processes, with the exact gradient (see `gather`)."""
    return x if world() == 1 else _Sum.apply(x)


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean over processes, with the exact gradient (see `gather`)."""
    return all_reduce_sum(x) / world()


class _CpuSyncBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the batches of all processes, for gloo.

    torch's own SyncBatchNorm runs on accelerators only.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() >= 2, input.shape

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        # A detector's images and regions differ in number from process to process.
        count = input.new_tensor([input.numel() / input.shape[1]])
        totals = all_reduce_sum(torch.cat([input.sum(axes), count]))
        mean, count = totals[:-1] / totals[-1], totals[-1]
        centred = input - mean.view(shape)
        variance = all_reduce_sum(centred.square().sum(axes)) / count
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None and self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normalised = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is None or self.bias is None:
            return normalised
        return normalised * self.weight.view(shape) + self.bias.view(shape)


def sync_batchnorm(module: nn.Module) -> nn.Module:
    """`module` with every batch norm taking its statistics over all processes."""
    if world() == 1:
        return module
    if device().type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            # Same parameters and buffers, another forward: nothing to copy, nothing to lose.
            child.__class__ = _CpuSyncBatchNorm  # pyright: ignore[reportAttributeAccessIssue]
    return module
