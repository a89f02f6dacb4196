# SPDX-License-Identifier: GPL-3.0-or-later
"""What the files that the image compiles have to be like."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HOOKS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
    "wheel"
]
FILES: list[str] = HOOKS["hooks"]["mypyc"]["include"]
SET_BY_TESTS = {"MAX_VALUES", "PREPARE_SECONDS"}


@pytest.mark.parametrize("file", FILES)
def test_constants_are_final(file: str) -> None:
    """Compiled code looks every other name up in the module's dictionary, each time."""
    module = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
    targets = [target for node in module.body if isinstance(node, ast.Assign) for target in node.targets]
    names = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    assert {name for name in names if name.isupper()} <= SET_BY_TESTS
