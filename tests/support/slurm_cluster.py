"""A real Slurm cluster of two nodes on this machine, with two GPUs each that are none.

All of it lies in one folder and listens on the loopback address; the daemons run in the foreground
as children of the test process.
"""

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from counting import until

from alignflow.jobs.processes import all_processes

NODES = ("n1", "n2")
GPUS_PER_NODE = 2

_CONFIG = """
ClusterName=alignflow-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=30
InactiveLimit=0
KillWait=5
MinJobAge=2
Waittime=0
JobRequeue=1
SlurmdParameters=config_overrides
GresTypes=gpu
SwitchType=switch/none
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=4 RealMemory=16000 \
Gres=gpu:fake:2 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=4 RealMemory=16000 \
Gres=gpu:fake:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerNode=1000 GraceTime=20 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefMemPerNode=1000 PriorityTier=10 State=UP
"""


def missing_programs() -> str:
    """Return what a cluster needs and this machine lacks; empty where nothing does."""
    names = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
    path = f"{os.environ['PATH']}:/usr/sbin"
    return ", ".join(name for name in names if shutil.which(name, path=path) is None)


class Cluster:
    """The daemons of one cluster, each of which may be stopped and started again."""

    def __init__(self) -> None:
        # Not below pytest's folder: others must be able to reach munge's socket.
        self.root = Path(tempfile.mkdtemp(prefix="alignflow-slurm-", dir="/tmp"))
        self.config = self.root / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def running(self) -> Iterator["Cluster"]:
        """Start all daemons, and at the end cancel all jobs and stop them."""
        self._write_files()
        os.environ["SLURM_CONF"] = str(self.config)
        try:
            self.start("munged")
            until((self.root / "munge/munge.sock").exists)
            self.start("slurmctld")
            for node in NODES:
                self.start(node)
            self.wait_for_nodes()
            yield self
        finally:
            self._stop_all()
            del os.environ["SLURM_CONF"]
            shutil.rmtree(self.root)

    def start(self, name: str) -> None:
        """Start munged, slurmctld or the slurmd of a node."""
        munge = self.root / "munge"
        commands = {
            "munged": [
                "/usr/sbin/munged",
                "--foreground",
                f"--key-file={munge}/munge.key",
                f"--socket={munge}/munge.sock",
                f"--pid-file={munge}/munged.pid",
                f"--log-file={munge}/munged.log",
                f"--seed-file={munge}/munged.seed",
            ],
            "slurmctld": ["/usr/sbin/slurmctld", "-D", "-i"],
        }
        command = commands.get(name, ["/usr/sbin/slurmd", "-D", "-N", name])
        with (self.root / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop a daemon."""
        daemon = self._daemons.pop(name)
        daemon.send_signal(how)
        daemon.wait(timeout=30)

    def crash(self, node: str) -> None:
        """Kill the slurmd of a node and all that runs on it, as a power cut does."""
        self.kill(node, signal.SIGKILL)
        # The configuration tells this cluster's nodes from those of another on the same machine.
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.config}".encode()}
        doomed = [each for each in all_processes() if marks <= set(_environment(each.pid))]
        for process in doomed:
            for pid in (process.parent, process.pid):  # its slurmstepd has no such variable
                if "slurmstepd" in _name(pid) or pid == process.pid:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def wait_for_nodes(self) -> None:
        """Wait until every node takes jobs."""
        idle = "".join(f"{node}=idle\n" for node in NODES)
        until(lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N=%t") == idle)

    def wait_for_controller(self) -> None:
        """Wait until the controller answers."""
        until(lambda: "UP" in self.run("scontrol", "ping"))

    def run(self, *command: str) -> str:
        """Return what one of Slurm's commands prints."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout

    def _write_files(self) -> None:
        munge, devices = self.root / "munge", self.root / "dev"
        for folder in (munge, devices, self.root / "state"):
            folder.mkdir(parents=True)
        self.root.chmod(0o755)
        key = munge / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        for index in range(GPUS_PER_NODE):  # more of /dev/null: a device file is all that is asked
            os.mknod(devices / f"nvidia{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        self.config.write_text(
            _CONFIG.format(
                host=socket.gethostname().partition(".")[0],
                ports=free_ports(3),
                root=self.root,
                user=os.environ.get("USER") or "root",
            )
        )
        (self.root / "gres.conf").write_text(
            "AutoDetect=off\n"
            + "".join(
                f"NodeName={node} Name=gpu Type=fake File={devices}/nvidia[0-1]\n" for node in NODES
            )
        )

    def _stop_all(self) -> None:
        with suppress(subprocess.TimeoutExpired, AssertionError):
            self.run("scancel", "--signal=KILL", "--full", "--state=RUNNING")
            self.run("scancel", "--state=PENDING")
            until(lambda: self.run("squeue", "-h") == "")
        for name in (*NODES, "slurmctld", "munged"):
            if name in self._daemons:
                self.kill(name)


def _environment(pid: int) -> list[bytes]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
