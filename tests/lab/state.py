# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the lab keeps things, and the marker by which any checkout finds the lab that this machine runs.

Two places only: the state folder (`.lab/` of the checkout: keys, etcd data, images, logs; survives `down`) and the
run folder (`/run/inferops-lab`: sockets and the marker; goes with `down`). There is one lab per machine at a time,
whichever checkout started it, so the run folder's path is fixed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
STATE = REPOSITORY / ".lab"
RUN = Path("/run/inferops-lab")
CONTROL_SOCKET = RUN / "control.sock"
CONTAINERD_SOCKET = RUN / "containerd.sock"
OWNER = RUN / "owner.json"
NODE = "lab"


@dataclass(frozen=True)
class Folders:
    """The parts of one state folder."""

    root: Path

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def config(self) -> Path:
        """Configuration files and kubeconfigs of the components, written anew by each `up`."""
        return self.root / "config"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def containerd(self) -> Path:
        return self.root / "containerd"

    @property
    def kubelet(self) -> Path:
        return self.root / "kubelet"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def facts(self) -> Path:
        return self.root / "facts.yml"

    @property
    def network(self) -> Path:
        """The chosen address ranges; etcd's data and the certificates depend on them."""
        return self.root / "network.json"


FOLDERS = Folders(STATE)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; with the pid it names one process for good.

    None: there is no such process, or only its zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":  # a zombie runs nothing
        return None
    return int(fields[19])


@dataclass(frozen=True)
class Owner:
    """The marker: which checkout's lab this machine has.

    state: its state folder; pid, started: the supervisor's outer process and its start time; made_folders: empty
    folders that the lab made on the machine as mount points, removed by `down`; enabled_controllers: of control
    groups, switched off again by `down`; at: seconds since the epoch.
    """

    state: str
    pid: int
    started: int
    made_folders: list[str] = field(default_factory=list)
    enabled_controllers: list[str] = field(default_factory=list)
    at: float = 0.0

    def alive(self) -> bool:
        """Whether the supervisor that wrote this marker still runs."""
        return start_time(self.pid) == self.started


def write_owner(made_folders: list[str], enabled_controllers: list[str]) -> None:
    """Mark this process as the supervisor of this checkout's lab, before it changes the machine as the lists say."""
    started = start_time(os.getpid())
    assert started is not None, "/proc knows no start time of this very process"
    owner = Owner(str(STATE), os.getpid(), started, made_folders, enabled_controllers, time.time())
    scratch = OWNER.with_suffix(".partial")
    scratch.write_text(json.dumps(asdict(owner), indent=1) + "\n", encoding="utf-8")
    scratch.rename(OWNER)


def read_owner(path: Path = OWNER) -> Owner | None:
    """The marker of the lab on this machine. None: there is none, or one that a crash left half-written."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
