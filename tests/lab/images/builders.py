# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that can build an image, behind one interface.

buildah serves the lab: it needs no daemon, works in a store of its own below the cache (so no image of the user's is
touched, and deleting the cache deletes everything), starts from the lab's own base, and hands over archives. podman and
docker serve people who have them: images go to their store, and start from the base that the Containerfiles name.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lab import binaries
from lab.components import is_overlay
from lab.errors import LabError
from lab.images import recipes, rootfs
from lab.images.commands import answer, build_log, run
from lab.images.recipes import Recipe
from lab.progress import Progress

NAMES = ("buildah", "podman", "docker")
# Archives of one image that stay: the one in use, and those of a branch or checkout or two beside it.
_KEPT = 3
_ROOM_BYTES = 5 * 10**9
_PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_DEFAULT_TIMEOUT")
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
# Both bases have this file, so mounting over it leaves no new file behind in a layer.
_CERTIFICATES_INSIDE = "/etc/ssl/certs/ca-certificates.crt"


class Builder(Protocol):
    """What `lab.images.ensure` needs of a program that builds."""

    def base_identity(self) -> str:
        """What the images start from, as part of their hash."""

    def has(self, reference: str) -> bool:
        """Whether the image is there."""

    def make(self, recipe: Recipe, reference: str, progress: Progress) -> None:
        """Build it. Raises LabError."""


def choose(name: str | None) -> Builder:
    """The builder of that name, or the first that is installed. Raises LabError when there is none."""
    installed = [candidate for candidate in NAMES if shutil.which(candidate)]
    if name is not None and name not in installed:
        others = ", ".join(installed) or "none is there"
        raise LabError(f"{name} is not on PATH; install it, or use another builder ({others}).")
    if not installed:
        raise LabError(f"No program that builds images is on PATH: install one of {', '.join(NAMES)}.")
    chosen = name or installed[0]
    return Buildah() if chosen == "buildah" else Engine(chosen)


def archive_path(reference: str) -> Path:
    """Where the archive of an image is, or would be."""
    image, tag = reference.rsplit("/", 1)[-1].split(":")
    return binaries.cache_dir() / "images" / f"{image}-{tag}.tar"


def archive(reference: str) -> Path:
    """The archive of a built image; taken out of podman's or docker's store when buildah did not make one."""
    target = archive_path(reference)
    if target.exists():
        # The time of last use decides which archives stay.
        target.touch()
        return target
    for engine in (Engine(name) for name in NAMES[1:] if shutil.which(name)):
        if engine.has(reference):
            engine.save(reference, target)
            return target
    raise LabError(f"The image {reference} is not built: run `python -m lab images` first.")


class Buildah:
    """buildah with a store of its own below the cache."""

    def __init__(self) -> None:
        store = binaries.cache_dir() / "store"
        self._program = ["buildah", "--root", str(store), "--runroot", "/run/inferops-lab-images"]
        if is_overlay(store):
            self._program += ["--storage-driver", "vfs"]
        else:
            # Without skip_mount_home every call would leave a mount on the store behind.
            self._program += ["--storage-driver", "overlay", "--storage-opt", "skip_mount_home=true"]

    def _command(self, *arguments: str) -> list[str]:
        return [*self._program, *arguments]

    def base_identity(self) -> str:
        return rootfs.identity()

    def has(self, reference: str) -> bool:
        return archive_path(reference).exists()

    def make(self, recipe: Recipe, reference: str, progress: Progress) -> None:
        """Build with a layer cache, so that a change of a program does not install its dependencies again."""
        if os.geteuid() != 0:
            raise LabError("buildah builds the lab's images as root: run this as root, or use --builder docker.")
        with _locked():
            if self.has(reference):
                return
            # A build that was killed leaves its working container, and perhaps its mount.
            answer(self._command("rm", "--all"))
            with _staged(recipe, reference, self.base_identity(), progress) as context:
                base = self._base(progress) if recipe.on_base else None
                with progress.step(f"image {recipe.image}"):
                    self._build(recipe.containerfile, context, reference, base, recipe.image)
                    self._export(reference, recipe.image)
            self._prune(recipe.image)

    def _base(self, progress: Progress) -> str:
        """The reference of the base image in the store, made first when it is not there."""
        reference = f"{recipes.REGISTRY}/base:{rootfs.identity()}"
        if not answer(self._command("images", "--quiet", reference)):
            packed = rootfs.tar(progress)
            # Whatever is in the store stands on an older base, and is of no use to any build from now on.
            answer(self._command("rmi", "--all", "--force"))
            with progress.step("image base"), tempfile.TemporaryDirectory(dir=packed.parent, prefix=".base-") as folder:
                os.link(packed, Path(folder) / "rootfs.tar")
                self._build(rootfs.FOLDER / "Containerfile", Path(folder), reference, None, "base")
        return reference

    def _build(self, containerfile: Path, context: Path, reference: str, base: str | None, name: str) -> None:
        options = ["--isolation", "chroot", "--network", "host", "--layers", "--pull-never", *_pip_options(mount=True)]
        if base:
            options += ["--build-arg", f"BASE_IMAGE={base}"]
        options += ["--file", str(containerfile), "--tag", reference]
        run(self._command("bud", *options, str(context)), build_log(name), "buildah")

    def _export(self, reference: str, name: str) -> None:
        target = archive_path(reference)
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        push = ["push", "--quiet", reference, f"oci-archive:{partial}:{reference}"]
        run(self._command(*push), build_log(name), "buildah push")
        partial.rename(target)

    def _prune(self, image: str) -> None:
        """Delete the archives of one image that were longest not used, and their layers."""
        for old in outdated(image):
            old.unlink()
            tag = old.stem.removeprefix(f"{image}-")
            answer(self._command("rmi", f"{recipes.REGISTRY}/{image}:{tag}"))


class Engine:
    """podman or docker, with the user's own store."""

    def __init__(self, program: str) -> None:
        self._program = program

    def base_identity(self) -> str:
        # The name of the base is in the Containerfile, which is hashed; this keeps the tags of the two ways apart.
        return "as named in the Containerfile"

    def has(self, reference: str) -> bool:
        return answer([self._program, "image", "inspect", reference]) is not None

    def make(self, recipe: Recipe, reference: str, progress: Progress) -> None:
        """Build into the engine's own store."""
        # A certificate can be mounted into a build by podman only; docker's builder trusts what its images trust.
        options = ["--network", "host", *_pip_options(mount=self._program == "podman")]
        options += ["--file", str(recipe.containerfile), "--tag", reference]
        with _locked(), _staged(recipe, reference, self.base_identity(), progress) as context:
            with progress.step(f"image {recipe.image} ({self._program})"):
                run([self._program, "build", *options, str(context)], build_log(recipe.image), self._program)

    def save(self, reference: str, target: Path) -> None:
        """Write the image to an archive."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        run([self._program, "save", "--output", str(partial), reference], build_log("save"), self._program)
        partial.rename(target)


def outdated(image: str) -> list[Path]:
    """The archives of one image beyond those that stay, by time of last use."""
    # Tags are twelve characters; the pattern must not take `envoy-gateway-<tag>` for an archive of `envoy`.
    files = (binaries.cache_dir() / "images").glob(f"{image}-{'[0-9a-f]' * 12}.tar")
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[_KEPT:]


def _pip_options(*, mount: bool) -> list[str]:
    """Build arguments for pip's settings of this environment, and mounts for the files and folders that they name."""
    settings = [f"{name}={os.environ[name]}" for name in _PIP_SETTINGS if os.environ.get(name)]
    options = [part for setting in settings for part in ("--build-arg", setting)]
    if mount:
        certificates = next((os.environ[name] for name in _CERTIFICATES if os.environ.get(name)), None)
        if certificates and Path(certificates).is_file():
            options += ["--volume", f"{certificates}:{_CERTIFICATES_INSIDE}:ro"]
            options += ["--build-arg", f"PIP_CERT={_CERTIFICATES_INSIDE}"]
        folders = [word for word in os.environ.get("PIP_FIND_LINKS", "").split() if Path(word).is_dir()]
        options += [part for folder in folders for part in ("--volume", f"{folder}:{folder}:ro")]
    return options


@contextmanager
def _staged(recipe: Recipe, reference: str, base: str, progress: Progress) -> Iterator[Path]:
    """A folder with the build's context, deleted afterwards; a fresh log. Raises LabError."""
    binaries.check_disk(binaries.cache_dir(), _ROOM_BYTES, f"building the image {recipe.image}")
    build_log(recipe.image).unlink(missing_ok=True)
    folder = binaries.cache_dir() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{recipe.image}-") as context:
        recipes.stage(recipe, Path(context), progress)
        if recipes.reference(recipe, base) != reference:
            raise LabError(f"Files of the image {recipe.image} changed while it was being made; run this again.")
        yield Path(context)


@contextmanager
def _locked() -> Iterator[None]:
    """One build at a time: two would compete for the same store, layers and cores. Clears what a killed one left."""
    folder = binaries.cache_dir() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob(".?*"):
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != ".lock":
                left.unlink()
        yield
