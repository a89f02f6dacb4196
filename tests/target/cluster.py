# SPDX-License-Identifier: GPL-3.0-or-later
"""The three places where the platform can run, behind one interface.

A kubeconfig that the user names wins; then kind, where a Docker engine answers; then the lab, which needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

ROOT = Path(__file__).resolve().parents[2]
KIND_NAME = "inferops"


class TargetError(Exception):
    """No cluster could be had; the text says why and what to do."""


class Target(Protocol):
    """A cluster that playbooks can run on."""

    name: str
    inventory: Path

    def up(self) -> None:
        """Make the cluster answer, with the images it needs. Quick when it already does."""

    def api(self) -> None:
        """Make its API server answer; for tests of API objects, whose pods never run."""

    def down(self) -> None:
        """Take away what ``up`` made. A cluster that the user gave stays."""

    def environment(self) -> dict[str, str]:
        """What the programs that talk to the cluster find in their environment."""


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a step with its output on this terminal; its failure is the end of ours."""
    code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if code:
        raise TargetError(f"`{' '.join(command)}` failed with exit status {code}; what it printed above says why")


def _inventory(default: str) -> Path:
    return (ROOT / os.environ.get("INVENTORY", default)).resolve()


@dataclass
class Given:
    """A cluster that exists: the user's kubeconfig and inventory say everything."""

    kubeconfig: Path
    name: str = "kubeconfig"
    inventory: Path = field(default_factory=lambda: _inventory("inventories/example"))

    def up(self) -> None:
        """Only look whether the kubeconfig is there: its cluster is not ours to make."""
        if not self.kubeconfig.is_file():
            raise TargetError(f"KUBECONFIG names {self.kubeconfig}, which is no file: correct it, or unset it")

    def api(self) -> None:
        """The same."""
        self.up()

    def down(self) -> None:
        """Leave it alone."""

    def environment(self) -> dict[str, str]:
        """The user's own kubeconfig, for clients and for Ansible."""
        return {"KUBECONFIG": str(self.kubeconfig), "K8S_AUTH_KUBECONFIG": str(self.kubeconfig)}


@dataclass
class Kind:
    """A kind cluster of our own name, with the images built by Docker and loaded into its node."""

    name: str = "kind"
    inventory: Path = field(default_factory=lambda: _inventory("inventories/kind"))
    kubeconfig: Path = ROOT / ".build" / "kind" / "kubeconfig"

    def up(self) -> None:
        """Create the cluster unless it is there, then build and load images that are missing."""
        from lab import images
        from lab.progress import Progress

        self.api()
        references = images.ensure(Progress(), only=("epp", "vllm_sim"), builder="docker")
        for reference in references.values():
            _run("kind", "load", "docker-image", "--name", KIND_NAME, reference)
        facts = {"kubeconfig": str(self.kubeconfig), "images": references}
        (self.kubeconfig.parent / "facts.yml").write_text(yaml.safe_dump(facts))

    def api(self) -> None:
        """Create the cluster unless it is there."""
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(["kind", "get", "clusters"], capture_output=True, text=True, check=True).stdout.split()
        if KIND_NAME not in listed:
            _run("kind", "create", "cluster", "--name", KIND_NAME, "--config", "tests/target/kind.yml",
                 "--kubeconfig", str(self.kubeconfig), "--wait", "120s")  # fmt: skip
        _run("kind", "export", "kubeconfig", "--name", KIND_NAME, "--kubeconfig", str(self.kubeconfig))

    def down(self) -> None:
        """Delete the cluster."""
        _run("kind", "delete", "cluster", "--name", KIND_NAME)

    def environment(self) -> dict[str, str]:
        """kind's kubeconfig, kept apart from the user's own."""
        return {"KUBECONFIG": str(self.kubeconfig), "K8S_AUTH_KUBECONFIG": str(self.kubeconfig)}


@dataclass
class Lab:
    """The lab: a real single-node Kubernetes of Go-built binaries on this machine."""

    name: str = "lab"
    inventory: Path = field(default_factory=lambda: _inventory("inventories/lab"))
    kubeconfig: Path = ROOT / ".lab" / "kubeconfig"

    def up(self) -> None:
        """Start it, or find it running."""
        _run(sys.executable, "-m", "lab", "up", "--gpus", "1")

    def api(self) -> None:
        """Only its control plane: no image is built, and what runs already stays."""
        _run(sys.executable, "-m", "lab", "up", "--control-plane")

    def down(self) -> None:
        """Stop it, without a trace."""
        _run(sys.executable, "-m", "lab", "down")

    def environment(self) -> dict[str, str]:
        """The lab's admin kubeconfig."""
        return {"KUBECONFIG": str(self.kubeconfig), "K8S_AUTH_KUBECONFIG": str(self.kubeconfig)}


def docker_answers() -> bool:
    """Whether a Docker engine is behind the client, not only the client there."""
    if not (shutil.which("docker") and shutil.which("kind")):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def choose() -> Target:
    """The cluster in use: a given KUBECONFIG, else kind if Docker answers, else the lab."""
    given = os.environ.get("KUBECONFIG")
    if given and Path(given).resolve() not in {Lab().kubeconfig, Kind().kubeconfig}:
        return Given(Path(given).resolve())
    return Kind() if docker_answers() else Lab()
