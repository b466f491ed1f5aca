"""A SLURM cluster on one machine, for tests: two nodes with a make-believe GPU each, on loopback.

Needs root and Debian's slurmctld, slurmd, slurm-client, munge and slurm-wlm-basic-plugins; with
accounting also slurmdbd, slurm-wlm-mysql-plugin and mariadb-server. The configuration has to lie in /etc/slurm (jobs start without SLURM_CONF), so a machine that has one
already is left alone; `stop` takes ours away again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.small_study import LONGEST, Call, has_plugin

ETC = Path("/etc/slurm")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db")
#: Where Debian's slurmdbd looks for the database.
DATABASE_SOCKET = Path("/run/mysqld/mysqld.sock")
#: What a node claims to have, so that the requests of profiles/slurm fit; less is there.
NODE_MB, NODE_CPUS = 16000, 8
#: "all", "chain" (the one that CI has time for) or "".
WANTED = os.environ.get("HISTOGEP_CLUSTER_TESTS", "")
#: Of every test module that starts a cluster and takes long.
MARKS = [
    pytest.mark.cluster,
    pytest.mark.skipif(WANTED != "all", reason="HISTOGEP_CLUSTER_TESTS is not all"),
]
#: The account that root's jobs are charged to, where accounts are kept.
ACCOUNT = "lab"


def missing(*, accounting: bool = False) -> str:
    """Return why no cluster can be started here, "" if one can."""
    if os.geteuid() != 0:
        return "needs root"
    programs = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    absent = [name for name in programs if not shutil.which(name)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if (ETC / "slurm.conf").exists():
        return f"{ETC}/slurm.conf exists: this machine belongs to a cluster"
    if accounting and DATABASE_SOCKET.exists():
        return f"{DATABASE_SOCKET} exists: this machine has a database, which would have to stop"
    return ""


def wait_for(true: Callable[[], Any], *, seconds: float, what: str, every: float = 0.2) -> Any:
    """Wait until a function returns something true, and return that; it is asked every 0.2 s."""
    end = time.monotonic() + seconds
    while not (answer := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return answer


def run(*command: str, check: bool = True) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


class SlurmCluster:
    """Start, disturb and stop the cluster.

    Parameters
    ----------
    folder
        Where keys, state and logs lie.
    nodes
        Number of nodes; all are this machine.
    accounting
        Keep an account of all jobs (slurmdbd on a MariaDB of its own), which `sacct` reads.
    """

    def __init__(self, folder: Path, *, nodes: int = 2, accounting: bool = False):
        self.folder = folder
        self.accounting = accounting
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]

    def start(self) -> None:
        """Start munge, the controller and the nodes."""
        for name in ("log", "run", "state", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for node in self.nodes:
            device = self.folder / f"run/gpu-{node}"
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))
        ETC.mkdir(exist_ok=True)
        (ETC / "slurm.conf").write_text(self._slurm_conf())
        (ETC / "gres.conf").write_text(
            "".join(
                f"NodeName={node} Name=gpu Type=fake File={self.folder}/run/gpu-{node}\n"
                for node in self.nodes
            )
        )
        Path("/run/munge").mkdir(exist_ok=True)
        munge = self.folder / "munge"
        run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--pid-file={self.folder}/run/munged.pid",
            f"--log-file={munge}/log",
            f"--seed-file={munge}/seed",
        )
        if self.accounting:
            self._start_database()
            self.start_accounting()
            run("sacctmgr", "--immediate", "add", "cluster", "test")
            run("sacctmgr", "--immediate", "add", "account", ACCOUNT, "cluster=test")
            run("sacctmgr", "--immediate", "add", "user", "root", f"account={ACCOUNT}")
        self.start_controller()
        for node in self.nodes:
            run("slurmd", "-N", node)
        wait_for(
            lambda: (
                run("sinfo", "-h", "-N", "-p", "cpu", "-o", "%t").split()
                == ["idle"] * len(self.nodes)
            ),
            seconds=30,
            what="idle nodes",
        )

    def stop(self) -> None:
        """Stop everything and take the configuration away."""
        run("scancel", "--user", "root", check=False)
        time.sleep(1)
        daemons = [*(f"slurmd-{node}" for node in self.nodes), "slurmctld"]
        for name in (*daemons, "slurmdbd", "mariadbd", "munged"):
            self._end(name, signal.SIGTERM)
        if self.accounting:
            DATABASE_SOCKET.unlink(missing_ok=True)  # a database that had to be killed leaves it
        for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
            (ETC / name).unlink(missing_ok=True)

    def start_controller(self) -> None:
        """Start slurmctld; it reads the state that an earlier one left."""
        run("slurmctld")
        wait_for(
            lambda: "is UP" in run("scontrol", "ping", check=False), seconds=30, what="slurmctld"
        )

    def kill_controller(self) -> None:
        """Kill slurmctld as a crash would."""
        self._end("slurmctld", signal.SIGKILL)

    def start_accounting(self) -> None:
        """Start slurmdbd on the database."""
        run("slurmdbd")
        ask = ["sacctmgr", "list", "cluster"]
        wait_for(
            lambda: not subprocess.run(ask, capture_output=True).returncode,
            seconds=30,
            what="slurmdbd",
        )

    def kill_accounting(self) -> None:
        """Kill slurmdbd as a crash would."""
        self._end("slurmdbd", signal.SIGKILL)

    def account_of(self, number: str) -> dict[str, str]:
        """Return State, Account and ReqMem of a job, as the account has them."""
        names = ("State", "Account", "ReqMem")
        told = run("sacct", "-XnP", "-j", number, "-o", ",".join(names))
        return dict(zip(names, told.strip().split("|"), strict=True))

    def jobs(self, *states: str) -> dict[str, str]:
        """Return the comment (rule and wildcards) of each job in some states, by its id."""
        listed = run("squeue", "--noheader", "--states", ",".join(states), "--format", "%i|%k")
        return dict(line.split("|", 1) for line in listed.splitlines())

    def job(self, number: str) -> dict[str, str]:
        """Return what the controller knows of one job."""
        return dict(
            word.split("=", 1)
            for word in run("scontrol", "--oneliner", "show", "job", number).split()
            if "=" in word
        )

    def pids(self, number: str) -> list[int]:
        """Return the processes of one running job."""
        marks = {f"SLURM_JOB_ID={number}".encode(), f"SLURM_JOBID={number}".encode()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marks & set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def _end(self, name: str, how: signal.Signals) -> None:
        path = self.folder / f"run/{name}.pid"
        if not path.is_file() or not path.read_text().strip():
            return
        pid = int(path.read_text())
        try:
            os.kill(pid, how)
            wait_for(
                lambda: not Path(f"/proc/{pid}/exe").exists(), seconds=15, what=f"end of {name}"
            )
        except ProcessLookupError:
            pass
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)

    def _start_database(self) -> None:
        data, log = self.folder / "database", self.folder / "log/mariadbd.log"
        run("mariadb-install-db", "--user=root", f"--datadir={data}", "--skip-test-db")
        DATABASE_SOCKET.parent.mkdir(exist_ok=True)
        options = [f"--datadir={data}", f"--socket={DATABASE_SOCKET}", "--skip-networking"]
        options += [f"--pid-file={self.folder}/run/mariadbd.pid", "--user=root"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
        with open(log, "w") as said:
            subprocess.Popen(["mariadbd", "--no-defaults", *options], stdout=said, stderr=said)
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={DATABASE_SOCKET}"]
        grant = (
            "create database slurm_acct_db; "
            "grant all on slurm_acct_db.* to 'slurm'@'localhost' identified by 'slurm'"
        )
        wait_for(
            lambda: not subprocess.run([*client, "-e", grant], capture_output=True).returncode,
            seconds=60,
            what="mariadbd",
        )
        path = ETC / "slurmdbd.conf"
        path.write_text(
            f"""\
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=26819
SlurmUser=root
LogFile={self.folder}/log/slurmdbd.log
PidFile={self.folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
        )
        path.chmod(0o600)

    def _accounting_conf(self) -> str:
        if not self.accounting:
            return "AccountingStorageType=accounting_storage/none"
        return (
            "AccountingStorageType=accounting_storage/slurmdbd\n"
            "AccountingStorageHost=127.0.0.1\nAccountingStoragePort=26819\n"
            "AccountingStorageTRES=gres/gpu"
        )

    def _slurm_conf(self) -> str:
        host = run("hostname", "-s").strip()
        nodes = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={26821 + number} "
            f"CPUs={NODE_CPUS} RealMemory={NODE_MB} Gres=gpu:fake:1 State=UNKNOWN\n"
            for number, node in enumerate(self.nodes)
        )
        return f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=26817
SlurmctldPidFile={self.folder}/run/slurmctld.pid
SlurmdPidFile={self.folder}/run/slurmd-%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd-%n.log
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
{self._accounting_conf()}
MinJobAge=600
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=60
JobRequeue=0
PropagateResourceLimits=NONE
GresTypes=gpu
MailProg=/bin/true
{nodes}PartitionName=cpu Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=10 State=UP
PartitionName=gpu Nodes=ALL MaxTime=1-00:00:00 DefaultTime=10 State=UP
"""


@contextlib.contextmanager
def started_cluster(folder: Path, **options: Any) -> Iterator[SlurmCluster]:
    """Start a cluster for a test and stop it; skip where that cannot be.

    In CI, which may be a container of any kind, a SLURM that does not start is skipped too.
    """
    if not has_plugin("slurm"):
        pytest.skip("requirements-slurm.txt is not installed: make slurm")
    if reason := missing(accounting=options.get("accounting", False)):
        pytest.skip(f"no SLURM cluster can be started here: {reason}")
    made = SlurmCluster(folder, **options)
    try:
        try:
            made.start()
        except Exception as error:
            if WANTED == "all":
                raise
            pytest.skip(f"SLURM does not start here: {error}")
        yield made
    finally:
        made.stop()


def started(cluster: SlurmCluster, call: Call, comment: str) -> str:
    """Wait for a job whose comment has this beginning to run; return its id."""

    def found():
        assert call.process.poll() is None, call.said[-4000:]
        return [job for job, told in cluster.jobs("RUNNING").items() if told.startswith(comment)]

    return wait_for(found, seconds=LONGEST, what=f"a running {comment}")[0]


def record(fault: str, jobs: list[str] | str, happened: str) -> None:
    """Note a fault, its jobs and what happened in the file HISTOGEP_CLUSTER_LOG, if that is set."""
    if path := os.environ.get("HISTOGEP_CLUSTER_LOG"):
        listed = jobs if isinstance(jobs, str) else ", ".join(jobs)
        with open(path, "a") as file:
            file.write(f"{fault}\t{listed}\t{happened}\n")
