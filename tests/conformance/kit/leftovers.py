# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else is at work: runs that share a cluster take turns, and clear away what killed ones have left.

A run says in its namespace which process it is. A namespace whose process is gone was left by a run that was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

MANAGED = {"app.kubernetes.io/managed-by": "epp-conformance"}
"""The label of everything that outlives a case."""
OWNER = "epp-conformance/owner"
LONGEST = timedelta(hours=2)
"""Runs of other machines count as killed after this long: their processes cannot be looked at from here."""
_PR_SET_PDEATHSIG = 1
_PREFIX = "epp-conformance-"


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine's start; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _machine() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def owner() -> str:
    """This process, told from all others on all machines."""
    return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}"


def alive(metadata: dict[str, Any]) -> bool:
    """Whether the run that made an object is still at work."""
    machine, _, process = metadata.get("annotations", {}).get(OWNER, "").partition("/")
    if machine != _machine():
        created = datetime.fromisoformat(metadata["creationTimestamp"])
        return datetime.now(UTC) - created < LONGEST
    pid, _, started = process.partition("/")
    return bool(started) and _started(int(pid)) == started


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.cache
def folder() -> Path:
    """A folder for logs and the like, gone when this process ends; those of killed processes go now."""
    for each in Path(tempfile.gettempdir()).glob(f"{_PREFIX}[0-9]*-*"):
        if not _started(int(each.name.removeprefix(_PREFIX).partition("-")[0])):
            shutil.rmtree(each, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


class Turns:
    """Turns of the runs on this machine that use the same API server.

    A picker looks when it starts which resources the cluster has, so nobody may define or remove one at that moment.
    """

    def __init__(self, server: str) -> None:
        digest = hashlib.sha256(server.encode()).hexdigest()[:12]
        self._file = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{digest}.lock"
        self._alone = 0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else starts a picker, or is alone, meanwhile."""
        with contextlib.nullcontext() if self._alone else self._lock(fcntl.LOCK_EX):
            self._alone += 1
            try:
                yield
            finally:
                self._alone -= 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Nobody else is alone meanwhile."""
        with contextlib.nullcontext() if self._alone else self._lock(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        with self._file.open("a") as file:
            fcntl.flock(file, how)
            yield
