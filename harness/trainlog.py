"""What a training run tells the world: JSON lines, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from harness import dist


class TrainLog:
    """Writes `log.jsonl` and TensorBoard events in `workdir` and draws a bar on stderr.

    On other processes than the main one every call does nothing.
    """

    def __init__(self, workdir: Path, label: str, *, step: int, steps: int) -> None:
        self._steps = steps
        self._first_step = step
        self._started = time.monotonic()
        self._bar: Progress | None = None
        if not dist.is_main():
            return
        # TensorBoard takes a second to import; processes that never log should not pay.
        from torch.utils.tensorboard import SummaryWriter

        path = workdir / "log.jsonl"
        _forget_after(path, step)
        self._file = path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step)
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(label, total=steps, completed=step, now="")
        self._bar.start()

    def write(self, step: int, images: int, values: dict[str, float]) -> None:
        """Report after `step` steps.

        Args:
            step: Steps done.
            images: Images per step, over all processes.
            values: Loss terms, learning rate and the like by name.
        """
        if self._bar is None:
            return
        pace = (step - self._first_step) / max(time.monotonic() - self._started, 1e-9)
        left = (self._steps - step) / max(pace, 1e-9)
        line: dict[str, Any] = {"step": step, "steps": self._steps, **values}
        line |= {"images_per_s": round(pace * images, 1), "seconds_left": round(left, 1)}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        terms = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        now = f"{step}/{self._steps}  {terms}  {pace * images:.0f} images/s  {left:.0f} s left"
        self._bar.update(self._task, completed=step, now=now)

    def close(self) -> None:
        """Flush and end the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._tensorboard.close()
            self._file.close()


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    path.write_text("".join(kept))
