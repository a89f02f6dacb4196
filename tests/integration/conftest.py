# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests against a cluster start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[2]


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist is not typed
    """A file for each process; but whatever brings definitions of the platform, or asks which the cluster has, stays in
    one process, as they come and go. Tests of ``apply_set`` have definitions of their own."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return file if "/apply_set/" in file else "definitions"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """With ``-n``, whatever ``--dist`` says."""
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """The cluster that KUBECONFIG names, else the lab's."""
    path = os.environ.get("KUBECONFIG") or str(ROOT / ".lab" / "kubeconfig")
    if not Path(path).exists():
        pytest.fail(f"no cluster: {path} does not exist. Start the lab (make lab-up), or set KUBECONFIG", pytrace=False)
    return path
