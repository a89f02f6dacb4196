# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as it is published: built once a run, and unpacked wherever a gate wants to have it for itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

from gates.environments import CACHE, ROOT, Environment

PROGRAMS = Path(sys.executable).parent


@cache
def built() -> Path:
    """The artifact of the checkout as it is now."""
    folder = CACHE / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(PROGRAMS / "ansible-galaxy"), "collection", "build", "--output-path", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (found,) = folder.glob("*.tar.gz")
    return found


def unpacked(into: Path, environment: Environment) -> Path:
    """Unpack the artifact into the empty collections path ``into``, beside what it depends on; returns its folder.

    The dependencies are those that the package ``ansible`` has brought into ``environment``.
    """
    shutil.rmtree(into, ignore_errors=True)
    collections = into / "ansible_collections"
    target = collections / "inferops" / "cluster"
    target.mkdir(parents=True)
    with tarfile.open(built()) as archive:
        archive.extractall(target, filter="data")
    (collections / "kubernetes").mkdir()
    (collections / "kubernetes" / "core").symlink_to(environment.site_packages / "ansible_collections/kubernetes/core")
    return target
