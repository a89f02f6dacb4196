# SPDX-License-Identifier: GPL-3.0-or-later
"""Ending a lab, living, dead or half-dead, of this checkout or another one, so that nothing of it is left on the
machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import time

from lab import cgroups, control, network
from lab.errors import LabError
from lab.progress import Progress
from lab.state import RUN, Owner, read_owner

_STOP_TIMEOUT_S = 45.0
_KILL_TIMEOUT_S = 15.0


def traces() -> list[str]:
    """What of a lab is on the machine now, in words; empty: nothing."""
    found = []
    if RUN.exists():
        found.append(f"the folder {RUN}")
    if cgroups.exists():
        found.append(f"the control group /{cgroups.ROOT} with {len(cgroups.members())} processes")
    if network.link_exists():
        found.append(f"the link {network.LINK}")
    return found


def remove_lab(progress: Progress) -> None:
    """Stop the lab that this machine has, whosever it is, and remove all its traces. Data in its state folder stays.

    Raises LabError when something cannot be removed.
    """
    if not traces():
        return
    owner = read_owner()
    if owner is not None and owner.alive():
        with progress.step("stop pods and components"):
            _ask_to_stop(owner)
    with progress.step("remove what is left on the machine") as step:
        step.note("processes")
        if left := cgroups.kill(cgroups.ROOT, signal.SIGKILL, _KILL_TIMEOUT_S):
            raise LabError(
                f"Processes {sorted(left)} of the lab did not end within {_KILL_TIMEOUT_S:.0f} s of SIGKILL."
            )
        step.note("control groups")
        cgroups.remove()
        cgroups.switch(owner.enabled_controllers if owner else [], on=False)
        step.note("network link")
        _remove_link()
        step.note("folders")
        _remove_folders(owner)
        step.note("")


def _ask_to_stop(owner: Owner) -> None:
    """An orderly stop; whoever does not follow is killed by the caller."""
    try:
        control.ask("stop")
    except (OSError, ValueError):
        # Its inner process hangs or died: the signal reaches it through the outer one, if at all.
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while owner.alive() and time.monotonic() < deadline:
        time.sleep(0.05)


def _remove_link() -> None:
    """The link ends with the lab's network namespace, which the kernel takes down a moment after its last process."""
    deadline = time.monotonic() + 5
    while network.link_exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if network.link_exists():
        network.detach()


def _remove_folders(owner: Owner | None) -> None:
    for folder in owner.made_folders if owner else []:
        try:
            os.rmdir(folder)
        except OSError as error:
            # Gone, or filled by somebody since: then it is not the lab's any more.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise LabError(f"{folder}, which the lab made, cannot be removed: {error.strerror}.") from error
    if RUN.exists():
        shutil.rmtree(RUN)
