# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as it is published: built once a run, and unpacked wherever a gate wants to have it for itself."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from functools import cache
from pathlib import Path

from gates.environments import ROOT, Environment

PROGRAMS = Path(sys.executable).parent

_building = threading.Lock()


@cache
def _scratch() -> Path:
    """A folder outside of every git work tree, in which ansible-test would look at nothing that git ignores."""
    path = Path(tempfile.mkdtemp(prefix="inferops-gates-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def _build() -> Path:
    folder = _scratch() / "artifact"
    command = [str(PROGRAMS / "ansible-galaxy"), "collection", "build", "--output-path", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (found,) = folder.glob("*.tar.gz")
    return found


def built() -> Path:
    """The artifact of the checkout as it was at the first call."""
    with _building:
        return _build()


def unpacked(name: str, environment: Environment) -> Path:
    """Unpack the artifact into the empty collections path ``name``, beside what it depends on; returns its folder.

    The dependencies are those that the package ``ansible`` has brought into ``environment``.
    """
    artifact = built()
    collections = _scratch() / name / "ansible_collections"
    target = collections / "inferops" / "cluster"
    target.mkdir(parents=True)
    with tarfile.open(artifact) as archive:
        archive.extractall(target, filter="data")
    # A copy, as antsibull-docs takes only what git would from where git rules: nothing of our cache.
    needed = environment.site_packages / "ansible_collections/kubernetes/core"
    shutil.copytree(needed, collections / "kubernetes" / "core", symlinks=True, ignore=shutil.ignore_patterns("tests"))
    return target
