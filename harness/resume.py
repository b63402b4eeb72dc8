"""What a run of several processes goes on from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from harness import dist
from harness.checkpoint import load_training
from harness.errors import UserError

_FILES_LATE_SECONDS = 120.0  # NFS clients cache a folder's listing for up to a minute


def agreed_checkpoint(workdir: Path) -> tuple[dict[str, Any], Path] | None:
    """The main process's newest checkpoint, on every process.

    A shared file system shows the last save to each machine at another time; processes that went
    on from different steps would train nonsense together.

    Raises:
        UserError: A process doesn't see the file.
    """
    found = load_training(workdir)
    newest = dist.broadcast_object(found[1].name if found else None)
    deadline = time.monotonic() + _FILES_LATE_SECONDS
    while (found[1].name if found else None) != newest:
        if time.monotonic() > deadline:
            raise UserError(
                f"process {dist.rank()} can't see {workdir / str(newest)}, from which the main "
                "process goes on; put the runs on a file system that all nodes share."
            )
        time.sleep(1.0)
        found = load_training(workdir)
    return found
