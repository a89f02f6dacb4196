# SPDX-License-Identifier: GPL-3.0-or-later
"""Images into the lab's containerd."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lab import components, images
from lab.errors import LabError
from lab.progress import Progress
from lab.state import CONTAINERD_SOCKET, FOLDERS

_REFERENCES = "images.json"


def ensure(progress: Progress, only: Sequence[str] | None = None) -> dict[str, str]:
    """Build the images that are missing, load those that the lab lacks; return image key → reference.

    only: keys of `images.names()`; all by default. An image that cannot be built does not keep the others from being
    loaded; LabError is raised after them.
    """
    references: dict[str, str] = {}
    failures = []
    present = loaded()
    for name in only or images.names():
        try:
            references |= images.ensure(progress, [name])
        except LabError as error:
            failures.append(str(error))
        else:
            if references[name] not in present:
                with progress.step(f"load image {name}"):
                    _import(images.archive(references[name]))
    if missing := set(references.values()) - loaded():
        raise LabError(f"containerd imported the archives of {', '.join(sorted(missing))}, and does not list them.")
    if "pause" in references:
        _pin_sandbox(references["pause"])
    known = remembered() | references
    (FOLDERS.root / _REFERENCES).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    if failures:
        raise LabError("\n".join(failures))
    return references


def _pin_sandbox(reference: str) -> None:
    """Give the pause image the name that containerd's configuration knows."""
    _ctr("images", "tag", "--force", reference, components.SANDBOX_IMAGE)
    # Pinned: the kubelet must never remove it to make room.
    _ctr("images", "label", components.SANDBOX_IMAGE, "io.cri-containerd.pinned=pinned")


def remembered() -> dict[str, str]:
    """Image key → reference of what this lab has been given so far."""
    try:
        content = json.loads((FOLDERS.root / _REFERENCES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {str(name): str(reference) for name, reference in content.items()}


def loaded() -> set[str]:
    """References that containerd has. Raises LabError when it does not run."""
    return set(_ctr("images", "list", "--quiet").split())


def load(image: str, progress: Progress) -> None:
    """Load an archive file (OCI or docker), or an image of buildah's, podman's or docker's local store. Raises
    LabError.
    """
    with progress.step(f"load {image}"):
        if Path(image).is_file():
            _import(Path(image))
            return
        with tempfile.TemporaryDirectory(prefix="inferops-lab-") as scratch:
            file = Path(scratch, "image.tar")
            _export(image, file)
            _import(file)


def _export(image: str, file: Path) -> None:
    """Write an image of a local store to an archive; the first tool that has the image does it."""
    exporters: dict[str, Callable[[], list[str]]] = {
        "buildah": lambda: ["buildah", "push", "--quiet", image, f"docker-archive:{file}:{image}"],
        "podman": lambda: ["podman", "save", "--quiet", "--output", str(file), image],
        "docker": lambda: ["docker", "save", "--output", str(file), image],
    }
    said = []
    for tool, command in exporters.items():
        if shutil.which(tool):
            result = subprocess.run(command(), capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return
            said.append(f"{tool}: {result.stderr.strip()}")
            file.unlink(missing_ok=True)
    reasons = "; ".join(said) or "neither buildah nor podman nor docker is installed"
    raise LabError(f"{image} is neither an archive file nor an image of a local store: {reasons}.")


def _import(file: Path) -> None:
    # All references in the archive are whole ones: no prefix is wanted in front of them.
    _ctr("images", "import", "--snapshotter", _snapshotter(), str(file))


def _snapshotter() -> str:
    return "native" if components.is_overlay(FOLDERS.containerd) else "overlayfs"


def _ctr(*arguments: str) -> str:
    command = ["ctr", "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io", *arguments]
    if not CONTAINERD_SOCKET.exists():
        raise LabError("containerd does not run; run `python -m lab up` (without --control-plane) first.")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"`ctr {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result.stdout
