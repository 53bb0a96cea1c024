"""A real Slurm of two hosts on this machine, for tests: munged, slurmctld and two slurmd in namespaces of their own.

Each host has its own name, network address and process table, as far as a job can tell: `head` holds the controller,
`node1` and `node2` the compute daemons, all joined by a bridge. Nothing outside the namespaces is touched, and when the
first process of the namespace is killed, the kernel ends everything in it.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare", "nsenter", "ip")
# Names, network, mounts and processes of its own.
_OWN_NAMESPACES = ("unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_HOSTS = {"head": "10.77.0.1", "node1": "10.77.0.2", "node2": "10.77.0.3"}

# Debian's slurmd takes several instances on one machine (-N); each gets a network and a host name of its own.
_START = """
set -e
cd "$1"
export SLURM_CONF="$1/slurm.conf"
ip link set lo up
hostname head
mount --bind "$1/hosts" /etc/hosts
ip link add bridge0 type bridge
ip addr add 10.77.0.1/24 dev bridge0
ip link set bridge0 up
munged --force --foreground --key-file="$1/munge.key" --socket="$1/munge.sock" --pid-file="$1/munged.pid" \\
    --seed-file="$1/munge.seed" --log-file="$1/munged.log" > munged.out 2>&1 &
for number in 1 2; do
    unshare --net --uts bash -c '
        set -e
        hostname node$0
        ip link set lo up
        until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
        ip addr add 10.77.0.$(($0 + 1))/24 dev eth0
        ip link set eth0 up
        exec slurmd -D -N node$0 -f "$1/slurm.conf"' $number "$1" > slurmd$number.out 2>&1 &
    until [[ $(readlink /proc/$!/ns/net) != $(readlink /proc/$$/ns/net) ]]; do sleep 0.02; done
    ip link add port$number type veth peer name eth0 netns $!
    ip link set port$number master bridge0 up
done
exec slurmctld -D -f "$1/slurm.conf" > slurmctld.out 2>&1
"""

_SETTINGS = """
ClusterName=test
SlurmctldHost=head
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
MinJobAge=600
JobRequeue=1
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node1 NodeAddr=10.77.0.2 CPUs=4 Gres=gpu:4 State=UNKNOWN
NodeName=node2 NodeAddr=10.77.0.3 CPUs=4 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE GraceTime=20 PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    if missing := [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"{', '.join(missing)} not installed (Debian, Ubuntu: apt install slurm-wlm munge iproute2)"
    if os.geteuid() != 0:
        return (
            "Slurm's daemons drop supplementary groups, which only root may: run the tests as root, in a container say"
        )
    tried = subprocess.run([*_OWN_NAMESPACES, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return f"this system allows no namespaces: {tried.stderr.strip()}" if tried.returncode else None


class SlurmCluster:
    """Context that runs the cluster; state and logs lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool.node1", "spool.node2"):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{ip} {host}\n" for host, ip in _HOSTS.items())
        )
        (folder / "slurm.conf").write_text(_SETTINGS.format(folder=folder, user="root"))
        # Devices that every machine has stand for GPUs: only their number matters here.
        devices = "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full", "random"))
        (folder / "gres.conf").write_text(f"AutoDetect=off\n{devices}")

    def __enter__(self) -> "SlurmCluster":
        start = self.folder / "start.sh"
        start.write_text(_START)
        command = [*_OWN_NAMESPACES, "bash", str(start), str(self.folder)]
        with (self.folder / "start.out").open("w") as output:
            self._outer = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self._environment())
        try:
            self.wait_until(lambda: self._state_of_nodes().count("idle") == 2, "two idle nodes", seconds=40)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        first = _first_child(self._outer.pid)
        if first is not None:
            os.kill(first, signal.SIGKILL)  # the kernel ends the whole namespace with its first process
        else:
            self._outer.kill()
        self._outer.wait()

    def call(self, *command: str, **environment: str) -> str:
        """Output of a command run on the head; AssertionError with its output when it fails."""
        done = self._run(*command, **environment)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def wait_until(self, is_true: Callable[[], bool], what: str, *, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not is_true():
            assert self._outer.poll() is None, f"Slurm ended\n{self.logs()}"
            assert time.monotonic() < end, f"no {what} within {seconds} s\n{self.logs()}"
            time.sleep(0.2)

    def job(self, number: str) -> dict[str, str]:
        """Fields of `scontrol show job`; of an array, its task's (`12_1`)."""
        words = self.call("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        """The ends of all logs, for messages."""
        files = [file for file in sorted(self.folder.glob("*.[ol]*")) if file.suffix in (".out", ".log")]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)

    def _state_of_nodes(self) -> list[str]:
        return self._run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").stdout.split()

    def _run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        inside = _first_child(self._outer.pid)
        if inside is None:
            return subprocess.CompletedProcess(command, 1, "", "the cluster has not started")
        enter = ["nsenter", f"--target={inside}", "--mount", "--uts", "--net", "--pid", f"--wd={self.folder}"]
        known = self._environment() | environment
        return subprocess.run([*enter, *command], capture_output=True, text=True, env=known, timeout=60)

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "PYTEST"))}
        return kept | {"PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}


def _first_child(process: int) -> int | None:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
