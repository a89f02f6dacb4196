# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the images that are missing, and print `key: reference` lines (YAML)."""

from __future__ import annotations

import argparse
import sys

from lab import images
from lab.errors import LabError
from lab.images import builders
from lab.progress import Progress


def main() -> int:
    """Parse the command line and build; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.images", description=__doc__)
    known = ", ".join(images.names())
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"any of: {known} (default: all)")
    parser.add_argument("--builder", choices=builders.NAMES, help="default: the first of these that is installed")
    options = parser.parse_args()
    try:
        references = images.ensure(Progress(), options.images or None, options.builder)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, reference in references.items():
        print(f"{name}: {reference}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
