# SPDX-License-Identifier: GPL-3.0-or-later
"""The container images that the lab, and kind, run: what they are made of, and the one call that makes what is missing.

    references = ensure(Progress())          # {"epp": "localhost/inferops/epp:0a1b2c3d4e5f", ...}
    file = archive(references["epp"])        # what a container runtime imports

An image's tag is a hash of everything that shapes it (recipes.py), so an image that exists is never built again, and
one whose inputs changed always is. buildah, podman or docker does the work (builders.py); debootstrap gives the base
(rootfs.py). Nothing here talks to a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError
from lab.images import builders, recipes
from lab.progress import Progress

__all__ = ["archive", "ensure", "names"]


def names() -> list[str]:
    """The keys of all images, in the order in which they are built."""
    return [recipe.name for recipe in recipes.RECIPES]


def ensure(progress: Progress, only: Sequence[str] | None = None, builder: str | None = None) -> dict[str, str]:
    """Build the images that are missing; return image key → reference for all that were asked for.

    only: keys of `names()`, all of them by default. builder: `buildah`, `podman` or `docker`; by default the first of
    these that is installed. buildah leaves archives in the cache, podman and docker leave images in their own store.
    Raises LabError with the end of the build's output when a build fails.
    """
    wanted = _select(only)
    maker = builders.choose(builder)
    references = {recipe.name: recipes.reference(recipe, maker.base_identity()) for recipe in wanted}
    for recipe in wanted:
        if not maker.has(references[recipe.name]):
            maker.make(recipe, references[recipe.name], progress)
    return references


def archive(reference: str) -> Path:
    """The archive (OCI, or docker's own when docker built it) of an image that `ensure` returned. Raises LabError."""
    return builders.archive(reference)


def _select(only: Sequence[str] | None) -> list[recipes.Recipe]:
    unknown = sorted(set(only or ()) - set(names()))
    if unknown:
        raise LabError(f"No such image: {', '.join(unknown)}. There are: {', '.join(names())}.")
    return [recipe for recipe in recipes.RECIPES if only is None or recipe.name in only]
