# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as Galaxy installs it, stripped to what has to suffice at run time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from gates import artifact
from gates.environments import PYTHONS, Environment, EnvironmentMissing, environment

ROOT = Path(__file__).parents[3]
# "A collection MUST work if every file or directory is deleted except those four", says Ansible's inclusion checklist.
KEPT = {"meta", "plugins", "roles", "playbooks"}


@dataclass(frozen=True)
class Installed:
    """An ansible-core, and the collections path into which its ansible-galaxy has installed the artifact."""

    environment: Environment
    path: Path

    def program(self, name: str) -> str:
        """One of ansible-core's programs."""
        return str(self.environment.bin / name)

    def variables(self) -> dict[str, str]:
        """Environment variables that let it find this collection, and nothing of the checkout, nor the cluster: that is
        for variables to say."""
        ours = ("ANSIBLE_", "PYTHON", "VIRTUAL_", "K8S_AUTH_", "KUBECONFIG")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join([str(self.environment.bin), kept["PATH"]])
        return {
            **kept,
            "PATH": path,
            "ANSIBLE_COLLECTIONS_PATH": str(self.path),
            "ANSIBLE_HOME": str(self.path / "home"),
        }


def install(core: str, python: str, path: Path) -> Installed:
    """Build, install into the empty ``path``, and delete all that is not needed. Skips without that Python."""
    try:
        place = environment(f"ansible-{core}", python)
    except EnvironmentMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    installed = Installed(place, path)
    command = [installed.program("ansible-galaxy"), "collection", "install", str(artifact.built()), "-p", str(path)]
    done = subprocess.run(
        [*command, "--offline", "--no-deps"], env=installed.variables(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for entry in (path / "ansible_collections" / "inferops" / "cluster").iterdir():
        if entry.name not in KEPT:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return installed


@pytest.fixture(scope="session")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The newest ansible-core, on the Python that runs this."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    return install("2.21", own if own in PYTHONS else PYTHONS[-1], tmp_path_factory.mktemp("newest"))
