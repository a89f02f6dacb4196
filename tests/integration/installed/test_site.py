# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook ``inferops.cluster.site`` by its full name, on every supported ansible-core and Python."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from gates.environments import CORES, PYTHONS

from .conftest import KEPT, ROOT, install

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("core", CORES)
def test_an_installed_artifact_checks_the_platform(core: str, python: str, kubeconfig: str, tmp_path: Path) -> None:
    installed = install(core, python, tmp_path)
    collection = tmp_path / "ansible_collections" / "inferops" / "cluster"
    assert {entry.name for entry in collection.iterdir()} == KEPT
    inventory = os.environ.get("INFEROPS_INVENTORY") or str(ROOT / "inventories" / "lab")
    given = {
        "inferops_kubeconfig": kubeconfig,
        "ansible_connection": "local",
        "ansible_python_interpreter": str(installed.environment.python),
    }
    command = [installed.program("ansible-playbook"), "-i", inventory, "-e", json.dumps(given), "--check", "--diff"]
    done = subprocess.run(
        [*command, "inferops.cluster.site"], cwd=tmp_path, env=installed.variables(), capture_output=True, text=True,
        check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.rpartition("PLAY RECAP")[2]
    assert "failed=0" in recap
    assert "unreachable=0" in recap
    for task in ("epp : Apply the endpoint pickers", "litellm : Apply LiteLLM"):
        assert f"TASK [inferops.cluster.{task}]" in done.stdout
    assert "DEPRECATION WARNING" not in done.stdout + done.stderr
