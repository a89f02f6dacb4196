# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold before the lab touches the machine, each with one sentence when it does not."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import binaries
from lab.components import CNI_PROGRAMS
from lab.errors import LabError
from lab.progress import Progress
from lab.state import FOLDERS, STATE

# Program → Debian package.
_PROGRAMS = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
}
_IMAGE_PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap"}
_CNI_PACKAGE = "containernetworking-plugins"
# Images, their layers unpacked, and etcd: at first, and once they are there.
_NEW_STATE_BYTES = 8 * 10**9
_STATE_BYTES = 10**9


def machine() -> None:
    """Refuse a machine that cannot carry the lab. Raises LabError."""
    if sys.platform != "linux":
        raise LabError(f"The lab needs Linux, and this is {platform.system()}; use kind, or a Linux virtual machine.")
    if os.geteuid() != 0:
        raise LabError(
            "The lab needs root: it makes namespaces, control groups and containers. Run it as root, or with sudo."
        )


def disk() -> None:
    """Refuse when the state folder's disk is nearly full. Raises LabError."""
    needed = _STATE_BYTES if FOLDERS.containerd.exists() else _NEW_STATE_BYTES
    binaries.check_disk(STATE, needed, "the lab's images and data")


def packages(progress: Progress, *, with_images: bool) -> None:
    """Have the Debian packages that the lab takes programs from; install them where apt-get can. Raises LabError."""
    missing = _missing(with_images)
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise LabError(
            f"These programs of the lab are missing: {', '.join(missing)}; install the packages that have them "
            f"(on Debian: {' '.join(sorted(set(missing.values())))})."
        )
    names = sorted(set(missing.values()))
    with progress.step(f"install Debian packages: {' '.join(names)}"):
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *names)
    if still := _missing(with_images):
        raise LabError(f"apt-get installed {', '.join(names)}, and still there is no {', '.join(still)} on PATH.")


def _missing(with_images: bool) -> dict[str, str]:
    """Program → package of what this machine lacks."""
    wanted = _PROGRAMS | (_IMAGE_PROGRAMS if with_images else {})
    missing = {program: package for program, package in wanted.items() if shutil.which(program) is None}
    for plugin in ("ptp", "host-local", "portmap", "loopback"):
        if not Path(CNI_PROGRAMS, plugin).exists():
            missing[f"{CNI_PROGRAMS}/{plugin}"] = _CNI_PACKAGE
    return missing


def _apt_get(*arguments: str) -> None:
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "--quiet", *arguments]
    result = subprocess.run(
        command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise LabError(f"`{' '.join(command)}` failed; install the packages by hand, then run this again:\n{tail}")


@contextmanager
def one_at_a_time(progress: Progress) -> Iterator[None]:
    """Let one command change the lab at a time; another one waits here.

    The lock is a socket name in the kernel: it ends with its process, and leaves no file.
    """
    with socket.socket(socket.AF_UNIX) as lock:
        said = False
        while True:
            try:
                lock.bind("\0inferops-lab")
                break
            except OSError:
                if not said:
                    progress.say("waiting for another lab command on this machine to end")
                    said = True
                time.sleep(0.2)
        yield
