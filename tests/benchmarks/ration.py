# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives processes a part of a core each, through control groups (version 1 or 2). Needs root.

On a machine of two cores several have then what they would have on one with a slower core for each.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.rig import RigError
from lab import cgroups

PERIOD_MICROSECONDS = 5000
"""Each gets its part anew so often: short, so that who has used it up does not wait long."""


@contextlib.contextmanager
def rationed(pids: Sequence[int], cores: float) -> Iterator[None]:
    """Each of these processes, with all its threads, gets so much of a core at most, until the block ends.

    Raises RigError where control groups cannot be used.
    """
    mount = where()
    if mount is None:
        raise RigError("no control group here lets us share out processors; run as root, or without --cores")
    groups = [mount / f"inferops-bench-{os.getpid()}-{pid}" for pid in pids]
    try:
        for pid, group in zip(pids, groups, strict=True):
            try:
                group.mkdir()
                _limit(group, cores)
                (group / "cgroup.procs").write_text(str(pid))
            except OSError as error:
                raise RigError(f"{group} cannot be used ({error.strerror}); run without --cores") from None
        yield
    finally:
        for group in groups:
            if not group.exists():
                continue
            for member in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (mount / "cgroup.procs").write_text(member)
            group.rmdir()


def _limit(group: Path, cores: float) -> None:
    quota = round(PERIOD_MICROSECONDS * cores)
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    else:
        (group / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")


def where() -> Path | None:
    """Where groups can be made that share out processors; None on a machine, or for a user, that cannot."""
    for mount, kind in cgroups.hierarchies().items():
        if not os.access(mount, os.W_OK):
            continue
        if kind == "cgroup" and (mount / "cpu.shares").exists():
            return mount
        if kind == "cgroup2" and "cpu" in (mount / "cgroup.subtree_control").read_text().split():
            return mount
    return None
