# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rooms of the EPP may know which: the imports say it, so the imports are checked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import epp

SOURCE = Path(epp.__file__).parent
FORBIDDEN = {
    "scheduling": {"plugins", "extproc", "transport", "requests"},
    "datalayer": {"plugins", "extproc", "transport", "scheduling", "flowcontrol", "config", "observe", "requests"},
    "config": {"extproc", "transport", "requests", "observe"},
    "observe": {"extproc", "transport", "plugins", "flowcontrol", "scheduling", "config", "requests"},
    "plugins": {"extproc", "transport", "requests", "config", "observe"},
    "extproc": {"plugins", "transport"},
    "bbr": {"scheduling", "plugins", "flowcontrol", "config", "statesync"},
    "requests": {"scheduling", "plugins", "extproc", "transport", "flowcontrol", "datalayer", "config", "observe"},
    "transport": {"scheduling", "plugins", "flowcontrol", "datalayer", "requests", "config", "observe"},
}

SHARED = {"epp.config.document", "epp.config.errors"}
"""Strict reading of YAML, which knows no EndpointPickerConfig: body-based routing has a configuration of its own."""


def imported(tree: ast.AST) -> set[str]:
    """The parts of ``epp`` that a module imports when it runs; imports for type checkers do not count."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        found |= imported(node)
    return found


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_rooms(room: str) -> None:
    files = sorted((SOURCE / room).rglob("*.py"))
    assert files, f"there is no room {room}"
    for file in files:
        names = {name for name in imported(ast.parse(file.read_text())) if name.startswith("epp.")}
        rooms = {name.split(".")[1] for name in names if name.rpartition(".")[0] not in SHARED}
        assert not rooms & (FORBIDDEN[room] | {"cli"}), (
            f"{file.relative_to(SOURCE)} may not know {rooms & FORBIDDEN[room]}"
        )
