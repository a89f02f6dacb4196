# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests against a cluster start from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """The cluster that KUBECONFIG names, else the lab's."""
    path = os.environ.get("KUBECONFIG") or str(ROOT / ".lab" / "kubeconfig")
    if not Path(path).exists():
        pytest.fail(f"no cluster: {path} does not exist. Start the lab (make lab-up), or set KUBECONFIG", pytrace=False)
    return path
