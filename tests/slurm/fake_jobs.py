"""Jobs that take no time, importable by workers: they write what happened into a folder."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace


@dataclass
class FakeTask:
    key: str
    runs: Path
    parent: str = ""
    fails: bool = False
    seconds: float = 0.3
    alive: Path | None = None

    @property
    def evaluation(self):
        return self.parent or None

    @property
    def pretraining(self):
        return SimpleNamespace(key=self.parent or self.key)

    def __call__(self):
        if self.alive:
            from slurm.jobs import end_with_dispatcher

            end_with_dispatcher(self.alive)
        start = time.time()
        (self.runs / f"{self.key}.pid").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        if self.fails:
            raise ValueError("the loss isn't finite")
        text = f"{start} {time.time()} {os.environ.get('OMP_NUM_THREADS')}"
        (self.runs / f"{self.key}.done").write_text(text)
