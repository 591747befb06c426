"""A Slurm cluster of two nodes on this machine, for as long as tests need it.

Needs root, slurmctld, slurmd and munge.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={T}/run/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SrunPortRange=26900-26999
StateSaveLocation={T}/state
SlurmdSpoolDir={T}/spool/%n
SlurmctldPidFile={T}/run/slurmctld.pid
SlurmdPidFile={T}/run/slurmd-%n.pid
SlurmctldLogFile={T}/log/slurmctld.log
SlurmdLogFile={T}/log/slurmd-%n.log
ProctrackType={track}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=3600
InactiveLimit=0
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=100
"""
NODES = " ".join(
    [
        "NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[26821-26822]",
        "CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1",
        "RealMemory=100000 Gres=gpu:8 State=UNKNOWN",
    ]
)


def available():
    "Whether a cluster can be started here."
    return os.geteuid() == 0 and all(
        map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch", "unshare"))
    )


class Cluster:
    "A cluster with files in `folder`: between `start()` and `stop()` `SLURM_CONF` points to it."

    def __init__(self, folder):
        self.folder, self.daemons = Path(folder), []
        self.conf = self.folder / "slurm.conf"

    def write(self):
        for name in ("run", "state", "spool/node1", "spool/node2", "log", "dev"):
            (self.folder / name).mkdir(parents=True)
        cgroup = Path("/sys/fs/cgroup/freezer").exists()
        text = CONF.format(
            nodes=NODES,
            T=self.folder,
            track="proctrack/cgroup" if cgroup else "proctrack/linuxproc",
        )
        self.conf.write_text(text)
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n"
        )
        files = f"{self.folder}/dev/nvidia[0-7]"
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName=node[1-2] Name=gpu File={files}\n"
        )
        for i in range(8):
            subprocess.run(
                ["mknod", "-m", "666", self.folder / f"dev/nvidia{i}", "c", "1", "3"], check=True
            )
        (self.folder / "hosts").write_text("127.0.0.1 localhost node1 node2\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def daemon(self, *command):
        with open(self.folder / "log" / "daemons.txt", "a") as log:
            self.daemons.append(
                subprocess.Popen(
                    list(map(str, command)), stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            )

    def start(self):
        self.write()
        os.environ["SLURM_CONF"] = str(self.conf)
        t = self.folder
        self.daemon(
            "munged",
            "--foreground",
            "--force",
            f"--socket={t}/run/munge.sock",
            f"--key-file={t}/munge.key",
            f"--pid-file={t}/run/munged.pid",
            f"--seed-file={t}/run/munge.seed",
            f"--log-file={t}/log/munged.log",
        )
        self.wait(lambda: (t / "run/munge.sock").exists(), "munged")
        self.daemon("slurmctld", "-D", "-f", self.conf)
        self.wait(lambda: " UP" in self.ask("scontrol", "ping"), "slurmctld")
        for node in ("node1", "node2"):
            script = f"hostname {node}; mount --bind {t}/hosts /etc/hosts"
            script += f"; exec slurmd -D -f {self.conf} -N {node}"
            self.daemon("unshare", "-m", "-u", "sh", "-c", script)
        self.wait(
            lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"],
            "two idle nodes",
        )
        return self

    def ask(self, *command):
        return subprocess.run(command, capture_output=True, text=True).stdout

    def wait(self, condition, what, deadline=60):
        end = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(
                    f"{p.name}: {p.read_text()[-800:]}" for p in (self.folder / "log").iterdir()
                )
                self.stop()
                raise TimeoutError(f"no {what} within {deadline} s\n{logs}")
            time.sleep(0.1)

    def stop(self):
        self.ask("scancel", "--user", "root")
        end = time.monotonic() + 15
        while self.ask("squeue", "-h").strip() and time.monotonic() < end:
            time.sleep(0.2)
        for process in reversed(self.daemons):
            process.terminate()
        for process in reversed(self.daemons):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.environ.pop("SLURM_CONF", None)
