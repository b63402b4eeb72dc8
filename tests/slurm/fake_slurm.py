"""Stand-ins for SLURM's commands: they answer from files and log how they were called."""

import stat
from pathlib import Path

PARTITIONS = """\
main*|up|2-00:00:00|4|64|512000|gpu:v100:8(S:0-1)
debug|down|30:00|2|16|64000|gpu:v100:1
cpu|up|infinite|3|32|128000|(null)
old|inact|infinite|1|32|128000|(null)
"""
COMMANDS = {
    "sinfo": 'cat "$0.answer"; exit $(cat "$0.rc")',
    "squeue": 'cat "$0.answer"; exit $(cat "$0.rc")',
    "scancel": "true",
    "sacct": "true",
    "srun": "true",
    # keeps the scripts and counts ids; --test-only refuses an account called nobody
    "sbatch": 'case "$*" in'
    ' *--test-only*nobody*) echo "allocation failure: Invalid account or account/partition'
    ' combination specified" >&2; exit 1;;'
    " *--test-only*) exit 0;; esac;"
    ' n=$(ls "$(dirname "$0")" | grep -c script); cp "$1" "$(dirname "$0")/script.$n";'
    " echo Submitted batch job $((100+n))",
}


class FakeSlurm:
    """The commands in a folder of their own, first on PATH."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder = folder / "bin"
        self.folder.mkdir()
        for name, text in COMMANDS.items():
            path = self.folder / name
            path.write_text(f'#!/bin/sh\necho "$@" >>"$0.calls"\n{text}\n')
            path.chmod(stat.S_IRWXU)
        self.answers("sinfo", PARTITIONS)
        self.answers("squeue", "")
        monkeypatch.setenv("PATH", f"{self.folder}:/usr/bin:/bin")
        monkeypatch.delenv("SSL_CLUSTERS", raising=False)

    def answers(self, command: str, text: str, status: int = 0) -> None:
        """What a command prints, and its exit status, from now on."""
        (self.folder / f"{command}.answer").write_text(text)
        (self.folder / f"{command}.rc").write_text(str(status))

    def calls(self, command: str) -> list[str]:
        """The arguments of every call so far."""
        path = self.folder / f"{command}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def script(self, number: int) -> str:
        """A script that sbatch was given."""
        return (self.folder / f"script.{number}").read_text()
