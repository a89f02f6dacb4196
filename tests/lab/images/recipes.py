# SPDX-License-Identifier: GPL-3.0-or-later
"""What each image is made of, and the hash of it.

A build sees a staged copy of exactly the files that were hashed, so nothing that is not in the tag can get into an
image.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import binaries
from lab.errors import LabError
from lab.progress import Progress

ROOT = Path(__file__).resolve().parents[3]
REGISTRY = "localhost/inferops"
# Written by tests or by Python itself; never part of a program.
_NEVER_COPIED = frozenset({"tests", "__pycache__"})
_PAUSE_FLAGS = ("-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s")


@dataclass(frozen=True)
class Recipe:
    """One image.

    image: its name, without registry and tag; folder: where its Containerfile is, relative to the repository;
    sources: globs of the files that it copies, below `context`, each of which must match; context: another folder than
    `folder`, relative to the repository; binaries: lab programs (lab.binaries) that are put beside them; compiled: a C
    file in `folder` whose static program is put beside them; on_base: whether a stage starts from BASE_IMAGE.
    """

    image: str
    folder: str
    sources: tuple[str, ...] = ()
    context: str | None = None
    binaries: tuple[str, ...] = ()
    compiled: str | None = None
    on_base: bool = True

    @property
    def name(self) -> str:
        """Its key in the lab's facts."""
        return self.image.replace("-", "_")

    @property
    def context_folder(self) -> Path:
        return ROOT / (self.folder if self.context is None else self.context)

    @property
    def containerfile(self) -> Path:
        return ROOT / self.folder / "Containerfile"


_EPP_SOURCES = ("pyproject.toml", "requirements.txt", "requirements-build.txt", "src/epp/**/*")
_HERE = "tests/lab/images"

# In the order in which they are built: what the node itself needs comes first.
RECIPES: tuple[Recipe, ...] = (
    Recipe("pause", f"{_HERE}/pause", compiled="pause.c", on_base=False),
    Recipe("coredns", f"{_HERE}/coredns", binaries=("coredns",)),
    Recipe("epp", "files/epp", _EPP_SOURCES),
    Recipe("vllm-sim", "tests/sim", ("requirements.txt", "**/*.py")),
    Recipe("envoy", f"{_HERE}/envoy", ("requirements.txt",)),
    Recipe("envoy-gateway", f"{_HERE}/envoy-gateway", binaries=("envoy-gateway",)),
    Recipe("nvidia-device-plugin", f"{_HERE}/nvidia-device-plugin", binaries=("nvidia-device-plugin",)),
    Recipe("litellm", f"{_HERE}/litellm", ("requirements/litellm.txt",), context="."),
)


def source_files(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """(path below the context, file) of each file that the build may copy. Raises LabError if one is missing."""
    context = recipe.context_folder
    found: dict[str, Path] = {}
    for pattern in recipe.sources:
        matches = {
            path.relative_to(context).as_posix(): path
            for path in context.glob(pattern)
            if path.is_file() and _NEVER_COPIED.isdisjoint(path.relative_to(context).parts)
        }
        if not matches:
            raise LabError(f"The image {recipe.image} copies {context / pattern}, and there is no such file.")
        found |= matches
    yield from sorted(found.items())


def reference(recipe: Recipe, base: str) -> str:
    """`localhost/inferops/<image>:<tag>`; base: what identifies the base image that the build will use."""
    return f"{REGISTRY}/{recipe.image}:{_tag(recipe, base)}"


def _tag(recipe: Recipe, base: str) -> str:
    """Twelve hex digits over everything that shapes the image."""
    digest = hashlib.sha256()

    def add(label: str, content: bytes) -> None:
        # Lengths keep two different lists of parts from reading as the same bytes.
        digest.update(f"{len(label)}:{label}:{len(content)}:".encode() + content)

    add("platform", platform.machine().encode())
    add("Containerfile", recipe.containerfile.read_bytes())
    if recipe.on_base:
        add("base", base.encode())
    for path, file in source_files(recipe):
        add(f"file {path}", file.read_bytes())
    for name in recipe.binaries:
        add(f"binary {name}", _binary_identity(name).encode())
    if recipe.compiled:
        add(f"compiled {' '.join(_PAUSE_FLAGS)}", (recipe.context_folder / recipe.compiled).read_bytes())
    return digest.hexdigest()[:12]


def _binary_identity(name: str) -> str:
    go_set = next(candidate for candidate in binaries.SETS if name in candidate.packages)
    return f"{go_set.version} {binaries.key(go_set)}"


def stage(recipe: Recipe, folder: Path, progress: Progress) -> None:
    """Fill the empty `folder` with the build's context: sources, lab programs (built if missing), compiled programs."""
    for path, file in source_files(recipe):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for name, binary in binaries.ensure(recipe.binaries, progress).items():
        shutil.copyfile(binary, folder / name)
        (folder / name).chmod(0o755)
    if recipe.compiled:
        source = recipe.context_folder / recipe.compiled
        compile_static(source, folder / source.stem)


def compile_static(source: Path, target: Path) -> None:
    """Compile one C file to a static program. Raises LabError."""
    if shutil.which("gcc") is None:
        raise LabError(f"{source.name} needs a C compiler: install gcc and libc6-dev.")
    command = ["gcc", *_PAUSE_FLAGS, "-o", str(target), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"gcc could not compile {source}:\n{result.stderr.strip()}")
