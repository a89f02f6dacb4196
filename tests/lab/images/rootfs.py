# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of the lab's images: a small Debian with Python, from debootstrap, kept as a tar in the cache.

It stands in for `python:3.13-slim`, which is what the Containerfiles start from everywhere else. The tar is keyed by
its recipe (suite, packages, what is left out) and not by the day's package versions: to take newer ones, delete the
folders `images` and `store` from the cache.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

from lab import binaries
from lab.errors import LabError
from lab.images.commands import PATH, build_log, run
from lab.progress import Progress

SUITE = "trixie"
FOLDER = Path(__file__).parent / "base"
_ROOM_BYTES = 2 * 10**9


def identity() -> str:
    """Twelve hex digits over the recipe."""
    digest = hashlib.sha256(f"{SUITE} {platform.machine()}\0".encode())
    for name in ("Containerfile", "packages.txt", "exclude.txt"):
        digest.update((FOLDER / name).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def tar(progress: Progress) -> Path:
    """The packed tree, made first when the cache lacks it (about a minute and a half). Raises LabError."""
    target = binaries.cache_dir() / "images" / f"base-{identity()}.tar"
    if not target.exists():
        _check()
        target.parent.mkdir(parents=True, exist_ok=True)
        with progress.step(f"base system: Debian {SUITE} with Python"):
            # Below the cache and not below /tmp, which may be small, or mounted without devices.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".base-") as scratch:
                _debootstrap(Path(scratch) / "root")
                _pack(Path(scratch) / "root", Path(scratch) / "base.tar")
                (Path(scratch) / "base.tar").rename(target)
    return target


def _check() -> None:
    if os.geteuid() != 0:
        raise LabError("debootstrap, which makes the base of the images, must run as root.")
    for command in ("debootstrap", "unshare", "tar"):
        if shutil.which(command, path=PATH) is None:
            raise LabError(f"{command} is missing, and the base of the images is made with it: install it.")
    binaries.check_disk(binaries.cache_dir(), _ROOM_BYTES, "making the base of the images")


def _debootstrap(root: Path) -> None:
    packages = ",".join((FOLDER / "packages.txt").read_text(encoding="utf-8").split())
    # In a mount namespace of its own: what debootstrap mounts in the tree goes when it ends, however it ends.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(root)]
    run(command, build_log("base"), "debootstrap")


def _pack(root: Path, target: Path) -> None:
    command = [
        "tar", "--create", f"--file={target}", f"--directory={root}", f"--exclude-from={FOLDER / 'exclude.txt'}",
        "--numeric-owner", "--one-file-system", "--sort=name", ".",
    ]  # fmt: skip
    run(command, build_log("base"), "tar")
