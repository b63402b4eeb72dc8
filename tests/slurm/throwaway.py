"""A real SLURM on this machine for tests: controller, accounting, four nodes with fake GPUs.

Everything lives in one private folder and on its own ports, nothing touches the machine's
configuration, and `stop` leaves no process behind. Needs root and Debian's packages `slurm-wlm`,
`slurmdbd`, `munge` and `mariadb-server-core`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

NODES = 4
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "sacctmgr")

SLURM_CONF = """\
ClusterName=throwaway
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
CredType=cred/munge
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={root}/run/munge.sock
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=2000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
EnforcePartLimits=ALL
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=2
MessageTimeout=10
NodeName=127.0.0.[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] \
CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={root}/run/slurmdbd.pid
LogFile={root}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""

MARIADB = (
    "--no-defaults --user=root --skip-networking --skip-grant-tables --skip-log-bin "
    "--performance-schema=OFF --innodb-buffer-pool-size=32M --innodb-log-file-size=8M "
    "--innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync "
    "--innodb-lock-wait-timeout=900"
)


class StartError(RuntimeError):
    """A daemon didn't come up."""


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    if os.geteuid() != 0:
        return "needs root to run slurmd and munged"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs Debian's SLURM packages ({', '.join(absent)} not found)" if absent else None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running cluster; SLURM_CONF in the environment is what reaches it."""

    root: Path
    port: int  # the first of 2 + NODES

    @property
    def conf(self) -> Path:
        """The file that SLURM_CONF must name."""
        return self.root / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Of every command that talks to this cluster."""
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def call(self, *command: str) -> str:
        """Output of a SLURM command."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def node(self, number: int) -> str:
        """Name of a node, from 1."""
        return f"127.0.0.{number}"

    def start_node(self, number: int) -> None:
        """Start a slurmd."""
        self.call("slurmd", "-N", self.node(number))

    def start_controller(self) -> None:
        """Start slurmctld, which takes up its saved state."""
        self.call("slurmctld")

    def kill(self, daemon: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End a daemon by the name of its pid file, and wait for its end."""
        path = self.root / "run" / f"{daemon}.pid"
        try:
            pid = int(path.read_text())
            os.kill(pid, how)
        except (OSError, ValueError):
            return
        until(lambda: not lives(pid), 30, f"the end of {daemon}")

    def clear(self) -> None:
        """Cancel all jobs and wait until every node is idle."""
        self.call("scancel", "-f", "-u", "root")
        until(lambda: not self.call("squeue", "-h"), 30, "an empty queue")
        until(lambda: self.idle_nodes() == NODES, 60, "four idle nodes")

    def idle_nodes(self) -> int:
        """How many nodes wait for work."""
        states = self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split()
        return sum(state == "idle" for state in states)


@contextlib.contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Stop what is started in `root` at the end of the block, and when this process is killed."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.throwaway", str(root)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.communicate()
    assert guard.returncode == 0, f"{root} could not be stopped"


def start(root: Path) -> Cluster:
    """Start everything."""
    cluster = Cluster(root=root, port=_free_ports(2 + NODES))
    _write_files(cluster)
    _start(cluster)
    return cluster


def _write_files(cluster: Cluster) -> None:
    root = cluster.root
    for name in ("etc", "log", "run", "state", "db", "munge"):
        (root / name).mkdir(parents=True)
    for number in range(1, NODES + 1):
        (root / "spool" / cluster.node(number)).mkdir(parents=True)
    (root / "munge").chmod(0o700)
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    values = {
        "root": root,
        "host": socket.gethostname().split(".")[0],
        # ids that start anew would let submitit take old results for new ones
        "first_job": int(time.time()) % 60_000_000 + 1000,
        "port": cluster.port,
        "dbd_port": cluster.port + 1,
        "first": cluster.port + 2,
        "last": cluster.port + 1 + NODES,
        "nodes": NODES,
    }
    cluster.conf.write_text(SLURM_CONF.format_map(values))
    nodes = f"127.0.0.[1-{NODES}]"
    gres = f"NodeName={nodes} Name=gpu File=/dev/null,/dev/zero\n"
    (root / "etc" / "gres.conf").write_text(gres)
    database = root / "etc" / "slurmdbd.conf"
    database.write_text(SLURMDBD_CONF.format_map(values))
    database.chmod(0o600)


def _start(cluster: Cluster) -> None:
    root = cluster.root
    run, socket_ = root / "run", root / "run" / "my.sock"
    cluster.call(
        *("munged", "--num-threads=10", f"--key-file={root}/munge/key"),
        *(f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"),
        *(f"--log-file={root}/munge/munged.log", f"--seed-file={root}/munge/seed"),
    )
    places = [f"--datadir={root}/db", f"--socket={socket_}", f"--pid-file={run}/mariadbd.pid"]
    places += [f"--log-error={root}/log/mariadbd.log"]
    # forked off: it is nobody's child, as the other daemons
    subprocess.run(
        ["setsid", "--fork", "mariadbd", *MARIADB.split(), *places],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    until(lambda: (run / "mariadbd.pid").exists() and socket_.exists(), 60, "mariadbd")
    subprocess.run(
        ["slurmdbd"], env=cluster.environment | {"MYSQL_UNIX_PORT": str(socket_)}, check=True
    )
    until(lambda: _answers(cluster.port + 1), 60, "slurmdbd")
    cluster.call("sacctmgr", "-i", "add", "cluster", "throwaway")
    cluster.call("slurmctld", "-i")
    until(lambda: _answers(cluster.port), 60, "slurmctld")
    for number in range(1, NODES + 1):
        cluster.start_node(number)
    until(lambda: cluster.idle_nodes() == NODES, 60, "four idle nodes")


def stop(root: Path) -> None:
    """End all jobs and daemons, whatever state they are in, and remove the folder."""
    found = re.search(r"SlurmctldPort=(\d+)", (root / "etc" / "slurm.conf").read_text())
    assert found
    cluster = Cluster(root=root, port=int(found[1]))
    if _answers(cluster.port):
        with contextlib.suppress(AssertionError):
            cluster.call("scancel", "-u", "root")
    nodes = [f"slurmd-{cluster.node(number)}" for number in range(1, NODES + 1)]
    for daemon in (*nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"):
        with contextlib.suppress(AssertionError):
            cluster.kill(daemon, signal.SIGTERM)
    for pid in processes(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not list(processes(cluster)), 30, "the end of all processes")
    shutil.rmtree(root)


def processes(cluster: Cluster) -> Iterator[int]:
    """Living processes that belong to the cluster: its daemons, and all that jobs started."""
    mine = f"SLURM_CONF={cluster.conf}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        belongs = mine in environment or str(cluster.root / "run").encode() in arguments
        if belongs and lives(int(entry.name)):
            yield int(entry.name)


def lives(pid: int) -> bool:
    """Whether a process runs; zombies don't."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition, with an error that names it."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> int:
    """The first of `count` consecutive free ports, below the ephemeral range."""
    for first in range(17000 + os.getpid() % 1000 * count, 30000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return first
    raise StartError(f"no {count} consecutive free ports between 17000 and 30000")


if __name__ == "__main__":
    sys.stdin.read()  # until the process that started the cluster closes it, or dies
    stop(Path(sys.argv[1]))
