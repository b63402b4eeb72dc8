"""What a worker does when SLURM wants its place: save, queue itself again, go on later.

submitit's own handler of USR2 queues the job again at once; a pretraining would lose what it did
since its last periodic checkpoint. Here the training loop first ends its step and saves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_SAVE_SECONDS = 60  # a step that takes longer is not waited for
_REQUEUE_TRIES = 12  # five seconds apart: a controller that restarts is waited for
_RETRY_SECONDS = 5.0


class Interruptions:
    """The signals that SLURM sends before it takes a job's place.

    USR2 comes before the time limit and before a preemption: save and queue again. TERM comes
    before an end that SLURM itself will follow with a requeue, or with nothing: save and go on.
    """

    def __init__(self, requeue: Callable[[], None]) -> None:
        self._requeue = requeue
        self._pid = os.getpid()
        self._waiting: signal.Signals | None = None
        self._deferred = False

    def handle(self, signum: int, _: object = None) -> None:
        """The handler of both signals."""
        if os.getpid() != self._pid:  # a forked data loader, which the signal reaches too
            if signum == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._deferred:
            if self._waiting is not signal.SIGUSR2:
                self._waiting = signal.Signals(signum)
            if signum == signal.SIGUSR2:
                signal.alarm(_SAVE_SECONDS)
        elif signum == signal.SIGUSR2:
            self._requeue()

    def overdue(self, *_: object) -> None:
        """The step didn't end in time: what the last periodic checkpoint holds must do."""
        if os.getpid() == self._pid:
            self._requeue()

    def after_step(self, save: Callable[[], None]) -> None:
        """Called by a training loop where it can save; from the first call on signals wait for it.

        Args:
            save: Writes a checkpoint.
        """
        self._deferred = True
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        signal.alarm(0)
        save()
        if waiting is signal.SIGUSR2:
            self._requeue()

    def finish(self) -> None:
        """The training loop is over: what is left takes less time than a requeue."""
        signal.alarm(0)
        self._waiting = None


@contextlib.contextmanager
def interruptible() -> Iterator[Interruptions | None]:
    """Take USR2 and TERM over from submitit; None where no cluster sends them."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        yield None
        return
    theirs: Any = signal.getsignal(signal.SIGUSR2)
    found = Interruptions(lambda: _patiently(theirs))
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.signal(number, found.handle) for number in numbers]
    signal.signal(signal.SIGALRM, found.overdue)
    try:
        yield found
    finally:
        found.finish()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _patiently(handler: Callable[[int, None], None]) -> None:
    """Let submitit queue this job again and exit; on ranks other than the first it does nothing.

    Raises:
        SystemExit: The job is queued again, or it can't be: then the dispatcher submits it anew.
    """
    for _ in range(_REQUEUE_TRIES):
        try:
            handler(signal.SIGUSR2, None)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"not queued again yet: {error}", file=sys.stderr)
            time.sleep(_RETRY_SECONDS)
        else:
            return
    sys.exit(1)
