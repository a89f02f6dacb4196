# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a command inside of an image, without a container: ``python -m lab.images.inside epp epp --help``

For tests and benchmarks of what is shipped: the program with the very interpreter, libraries and compiled parts of its
image. The image is built if it is missing, and unpacked once into the cache. The command sees the image's system
folders, and all other folders of this machine as they are, network included; it keeps the process ID that this one has.
Needs root, for a mount namespace of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from lab import binaries, images, preflight
from lab.errors import LabError
from lab.progress import Progress

# What comes from the image: all that programs are made of. Everything else is this machine's.
_OF_THE_IMAGE = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "etc"})
_KEPT = 2
"""Unpacked file systems of one image that stay in the cache."""


class Archive:
    """An OCI archive that is open."""

    def __init__(self, file: Path, tar: tarfile.TarFile) -> None:
        self.file = file
        self._tar = tar
        index = self._json("index.json")
        self._manifest = self._json(_blob(index["manifests"][0]["digest"]))

    def environment(self) -> dict[str, str]:
        """The variables that the image sets."""
        config = self._json(_blob(self._manifest["config"]["digest"]))
        return dict(each.split("=", 1) for each in config["config"].get("Env", ()))

    def unpack(self, target: Path) -> None:
        """All layers on top of each other. Raises LabError for one that deletes files: ours do not."""
        target.mkdir()
        for layer in self._manifest["layers"]:
            with tarfile.open(fileobj=self._tar.extractfile(_blob(layer["digest"]))) as inner:
                inner.extractall(target, filter="tar")
        if whiteout := next(target.rglob(".wh.*"), None):
            raise LabError(f"{self.file} deletes {whiteout.name} of an earlier layer, which is not supported here.")

    def _json(self, name: str) -> Any:
        try:
            found = self._tar.extractfile(name)
        except KeyError:
            found = None
        if found is None:
            raise LabError(f"{self.file} is no OCI archive: {name} is missing. Build it with buildah.")
        return json.load(found)


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def unpacked(archive: Archive) -> Path:
    """The image's file system, in the cache. Raises LabError."""
    folder = binaries.cache_dir() / "images" / "roots"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / archive.file.stem
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            archive.unpack(partial)
            partial.rename(target)
            pattern = f"{target.name.rpartition('-')[0]}-{'[0-9a-f]' * 12}"
            for old in sorted(folder.glob(pattern), key=lambda each: each.stat().st_ctime, reverse=True)[_KEPT:]:
                shutil.rmtree(old)
    return target


def enter(root: Path) -> None:
    """This process sees the image's system folders from now on, in a mount namespace of its own. Raises LabError."""
    here = Path.cwd()
    os.unshare(os.CLONE_NEWNS)
    _mount("--make-rprivate", "/")
    _mount("--bind", str(root), str(root))
    for folder in sorted(Path("/").iterdir()):
        if folder.is_dir() and not folder.is_symlink() and folder.name not in _OF_THE_IMAGE:
            inside = root / folder.name
            inside.mkdir(exist_ok=True)
            _mount("--rbind", str(folder), str(inside))
    os.chroot(root)
    os.chdir(here)


def _mount(*arguments: str) -> None:
    result = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"mount {' '.join(arguments)}: {result.stderr.strip()}")


def main() -> int:
    """Build, unpack, enter, and become the command; returns 2 if that cannot be."""
    if len(sys.argv) < 3:
        print("usage: python -m lab.images.inside IMAGE COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    name, *command = sys.argv[1:]
    progress = Progress()
    try:
        preflight.machine()
        preflight.packages(progress, with_images=True)
        reference = images.ensure(progress, [name], "buildah")[name]
        file = images.archive(reference)
        with tarfile.open(file) as tar:
            archive = Archive(file, tar)
            root, environment = unpacked(archive), archive.environment()
        enter(root)
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        os.execvpe(command[0], command, {**ours, **environment})
    except (LabError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
