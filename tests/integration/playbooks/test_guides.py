# SPDX-License-Identifier: GPL-3.0-or-later
"""The first hour, as its guide has it: the inventory that it writes, and those of its commands that change nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab import manifests
from lab.errors import LabError
from lab.progress import Progress

from .conftest import ROOT, Json

pytestmark = pytest.mark.cluster

GUIDE = (ROOT / "docs" / "first-hour.md").read_text()
VARIABLES = "inventories/mine/group_vars/all/main.yml"
CHECKS = [line for line in GUIDE.splitlines() if line.startswith("ansible-playbook ") and " --check" in line]


@pytest.fixture(scope="module")
def releases() -> Json:
    """Where the manifests of the releases are, that the guide fetches from the network."""
    try:
        found = manifests.ensure(Progress())
    except LabError as error:
        pytest.skip(f"the manifests of the releases cannot be had here: {error}")
    return {
        "gateway_api_crds_src": [found["gateway_api"]],
        "gateway_api_crds_inference_src": found["inference_extension"],
        "envoy_gateway_src": [found["envoy_gateway"]],
    }


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """inventories/mine, as the guide writes it."""
    folder = tmp_path_factory.mktemp("guide") / "inventories"
    shutil.copytree(ROOT / "inventories" / "example", folder / "mine")
    written = re.findall(rf"```yaml\n# {re.escape(VARIABLES)}\n(.*?)```", GUIDE, re.DOTALL)
    assert len(written) > 1
    variables = {name: value for text in written for name, value in yaml.safe_load(text).items()}
    (folder.parent / VARIABLES).write_text(yaml.safe_dump(variables))
    return folder / "mine"


def test_the_guide_has_commands_that_change_nothing() -> None:
    playbooks = {shlex.split(line)[3] for line in CHECKS}
    assert playbooks == {"inferops.cluster.gpu_nodes", "inferops.cluster.site", "inferops.cluster.teardown"}


@pytest.mark.parametrize("line", CHECKS)
def test_the_command_does_as_it_is_told(line: str, inventory: Path, releases: Json, kubeconfig: str) -> None:
    words = shlex.split(line)
    words[0] = str(Path(sys.executable).with_name("ansible-playbook"))
    # Nodes with GPUs are what a test cluster has not; a RuntimeClass it may have, with a handler that cannot change.
    own = {"gpu_nodes_selector": "", "gpu_nodes_runtime_class": "guide"}
    given = {**releases, **own, "inferops_kubeconfig": kubeconfig}
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".cache" / "collections")}
    done = subprocess.run(
        [*words, "-e", json.dumps(given)],
        cwd=inventory.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed=0" in done.stdout
