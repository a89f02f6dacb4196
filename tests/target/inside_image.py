# SPDX-License-Identifier: GPL-3.0-or-later
"""pytest on what is installed in the endpoint picker's image, run by the image's own Python: ``make compiled``.

``inside_image.py SITE_PACKAGES [ARGUMENT...]``: from that folder comes what the image lacks, such as pytest; everything
else from the image, its compiled parts first of all. Fails if a module that pyproject.toml wants compiled is not.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "files" / "epp"


def uncompiled() -> list[str]:
    """Modules that should be compiled, and are Python."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    files = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]["include"]
    names = [file.removeprefix("src/").removesuffix(".py").replace("/", ".") for file in files]
    return [name for name in names if not str(importlib.import_module(name).__file__).endswith(".so")]


def main() -> int:
    """Look, then run pytest; its exit status, 1 where something is not compiled."""
    # In place of this folder, whose modules have names of the standard library's.
    del sys.path[0]
    sys.path.append(sys.argv[1])
    if names := uncompiled():
        print(f"not compiled in this image: {', '.join(names)}", file=sys.stderr)
        return 1
    pytest = importlib.import_module("pytest")
    return int(pytest.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
