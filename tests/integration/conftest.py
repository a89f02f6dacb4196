# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests against a cluster start from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHOLE_CLUSTER = tuple(Path(__file__).parent / room for room in ("installed", "playbooks"))
"""Tests that bring definitions for the whole cluster, and take them away again: no two of them at a time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep those together where tests run side by side (`--dist loadgroup`)."""
    for item in items:
        if any(room in item.path.parents for room in WHOLE_CLUSTER):
            item.add_marker(pytest.mark.xdist_group("whole cluster"))


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """The cluster that KUBECONFIG names, else the lab's."""
    path = os.environ.get("KUBECONFIG") or str(ROOT / ".lab" / "kubeconfig")
    if not Path(path).exists():
        pytest.fail(f"no cluster: {path} does not exist. Start the lab (make lab-up), or set KUBECONFIG", pytrace=False)
    return path
