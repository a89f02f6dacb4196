# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's own control group, `/inferops-lab`, in every hierarchy of the machine (version 1, hybrid or 2).

Everything that the lab starts is born in it: its components in `system`, pods below `kubepods`. So membership is the
proof that a process is the lab's, also for one whose parents were killed, and no process is ever looked for by its
name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError

ROOT = "inferops-lab"
SYSTEM = f"{ROOT}/system"
PODS = f"{ROOT}/kubepods"
_SUBTREE = "cgroup.subtree_control"
# Of version 2; the kubelet refuses a root group without them.
_NEEDED = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")


def hierarchies() -> dict[Path, str]:
    """Mount point → file system type (`cgroup` or `cgroup2`) of every hierarchy."""
    found: dict[Path, str] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split()[0]
        if kind in ("cgroup", "cgroup2"):
            found[Path(before.split()[4])] = kind
    return found


def join() -> None:
    """Make the lab's group in every hierarchy and move this process into `system`; its children are born there.

    Raises LabError when the machine has no control groups, or keeps them read-only.
    """
    mounts = hierarchies()
    if not mounts:
        raise LabError(
            "No control groups are mounted on this machine (see `mount | grep cgroup`); a kubelet cannot run without."
        )
    for mount, kind in mounts.items():
        try:
            _make(mount, kind)
            (mount / SYSTEM / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        except OSError as error:
            raise LabError(
                f"Cannot make the control group {mount / ROOT}: {error.strerror}; "
                "a container needs `--privileged` for the lab."
            ) from error


def controllers_to_enable() -> list[str]:
    """Controllers that the machine has and its root group does not hand down yet, though a kubelet needs them.

    Version 2 alone knows this; in the others each controller has its own hierarchy.
    """
    mounts = hierarchies()
    if set(mounts.values()) != {"cgroup2"}:
        return []
    root = next(iter(mounts))
    there = (root / "cgroup.controllers").read_text(encoding="ascii").split()
    enabled = (root / _SUBTREE).read_text(encoding="ascii").split()
    return [name for name in _NEEDED if name in there and name not in enabled]


def switch(controllers: Sequence[str], *, on: bool) -> None:
    """Have the root group hand controllers down to its children, or not. Off: unless somebody else uses them now."""
    for root, kind in hierarchies().items():
        for name in controllers if kind == "cgroup2" else ():
            try:
                (root / _SUBTREE).write_text(f"{'+' if on else '-'}{name}", encoding="ascii")
            except OSError as error:
                if on or error.errno != errno.EBUSY:
                    raise LabError(
                        f"Cannot switch the controller {name} in {root / _SUBTREE}: {error.strerror}."
                    ) from error


def _make(mount: Path, kind: str) -> None:
    for part in (mount / ROOT, mount / SYSTEM):
        part.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            # Version 1: a new cpuset is empty, and an empty one admits no process.
            if kind == "cgroup" and (part / name).exists() and not (part / name).read_text(encoding="ascii").strip():
                (part / name).write_text((part.parent / name).read_text(encoding="ascii"), encoding="ascii")


def members(group: str = ROOT) -> set[int]:
    """Process ids in the group and in those below it, over all hierarchies.

    Numbers are those of this process's pid namespace.
    """
    found: set[int] = set()
    for mount in hierarchies():
        for folder, _, files in os.walk(mount / group):
            if "cgroup.procs" in files:
                with contextlib.suppress(FileNotFoundError, OSError):
                    found.update(map(int, Path(folder, "cgroup.procs").read_text(encoding="ascii").split()))
    # 0 stands for a process that this namespace cannot see.
    return found - {0}


def kill(group: str, number: signal.Signals, timeout_s: float) -> set[int]:
    """Send a signal to every process in the group; wait up to `timeout_s` for all to end. Return those still there."""
    for pid in members(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + timeout_s
    while (left := members(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def exists() -> bool:
    """Whether any hierarchy has the lab's group."""
    return any((mount / ROOT).exists() for mount in hierarchies())


def remove(timeout_s: float = 10.0) -> None:
    """Remove the lab's group everywhere, deepest first. Raises LabError when processes keep it."""
    deadline = time.monotonic() + timeout_s
    while exists():
        for mount in hierarchies():
            for folder, _, _ in os.walk(mount / ROOT, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        if exists() and time.monotonic() > deadline:
            raise LabError(
                f"The control group /{ROOT} cannot be removed; processes in it: {sorted(members()) or 'none'}."
            )
        time.sleep(0.02)


def memory_bytes() -> int | None:
    """Memory that all of the lab holds, without page cache. None: the machine does not account memory."""
    for mount, kind in hierarchies().items():
        file, key = mount / ROOT / "memory.stat", "anon" if kind == "cgroup2" else "total_rss"
        if file.exists():
            values = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
            if key in values:
                return int(values[key])
    return None
