"""A real Slurm on this host: one controller and one node on loopback, with munge for authentication."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")


PATIENCE = 300
"""Seconds that the daemons have to start."""


class CannotStart(Exception):
    """Slurm is installed, but its daemons do not run on this host."""


def is_installed() -> bool:
    """Whether Slurm is installed, and this user may start it: slurmd needs root."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


@contextmanager
def cluster(cores: int = 2) -> Iterator[dict[str, str]]:
    """Start Slurm with a partition `main`, and end it after the block.

    Yields:
        Environment variables with which its commands find it.

    Raises:
        CannotStart: a daemon ends, or the node does not become idle within `PATIENCE`.
    """
    with ExitStack() as stack:
        # Short: paths of sockets are limited to 108 characters.
        folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        munge = folder / "munge.socket"
        configuration = folder / "slurm.conf"
        configuration.write_text(_configuration(folder, munge, cores))
        environment = {"SLURM_CONF": str(configuration)}
        daemons: dict[str, subprocess.Popen[bytes]] = {}
        for command in (
            (
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}",
                f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
            ),
            ("slurmctld", "-D", "-c"),
            ("slurmd", "-D", "-N", "here"),
        ):  # fmt: skip
            with (folder / f"{command[0]}.out").open("wb") as log:
                process = subprocess.Popen(
                    command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
                )
            stack.callback(_end, process)
            daemons[command[0]] = process
            if command[0] == "munged":
                _wait(munge.exists, daemons, folder)
        _wait(lambda: "idle" in _states(environment), daemons, folder)
        yield environment


def _wait(ready: Callable[[], bool], daemons: Mapping[str, subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait until `ready`; raise `CannotStart` if a daemon ends before, or after `PATIENCE`."""
    until = time.monotonic() + PATIENCE
    while not ready():
        for name, process in daemons.items():
            if process.poll() is not None:
                raise CannotStart(f"{name} ends: {(folder / f'{name}.out').read_text()[-500:]}")
        if time.monotonic() > until:
            raise CannotStart(f"the node is not idle after {PATIENCE} s")
        time.sleep(0.2)


def _states(environment: dict[str, str]) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False).stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _configuration(folder: Path, munge: Path, cores: int) -> str:
    user = getpass.getuser()
    return f"""\
ClusterName=test
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=1
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=2
SlurmdParameters=config_overrides
NodeName=here NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=here Default=YES MaxTime=INFINITE State=UP
"""
