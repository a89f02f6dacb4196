# SPDX-License-Identifier: GPL-3.0-or-later
"""Job templates for AWX, and a job as AWX would run it: answers of a survey as extra variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Json, Playbook

pytestmark = pytest.mark.cluster

MODELS: dict[str, Any] = {"inferops_models": [{"name": "one", "model": "org/one"}, {"name": "two", "model": "org/two"}]}
ANSWERS: Json = {
    "inferops_model_name": "one",
    "inferops_model_replicas": 3,
    "inferops_model_more": "args: [--max-model-len, '4096']",
    "inferops_gpu_nodes_state": "absent",
    "inferops_lora_name": "poet",
    "inferops_lora_path": "org/poet",
    "inferops_lora_state": "present",
    "inferops_canary_name": "two",
    "inferops_canary_weight": 5,
    "inferops_epp_image": "registry.example.com/epp:1",
    "inferops_epp_pools": "[one]",
}


@pytest.fixture
def templates(playbook: Playbook, tmp_path: Path) -> list[Json]:
    """The job templates, written by the playbook."""
    path = tmp_path / "templates.yml"
    given = {
        "inferops_awx_file": str(path),
        "inferops_awx_project": "inference",
        "inferops_awx_inventory": "production",
    }
    run = playbook("awx", given, check=False)
    assert run.code == 0, run.output
    found: list[Json] = yaml.safe_load(path.read_text())["controller_templates"]
    return found


def test_each_playbook_has_a_job_template(templates: list[Json]) -> None:
    playbooks = {f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml") if ".meta" not in path.name}
    assert {template["playbook"] for template in templates} == playbooks - {"playbooks/awx.yml"}
    assert len({template["name"] for template in templates}) == len(templates)
    asked = {question["variable"] for template in templates for question in template["survey_spec"]["spec"]}
    assert not asked & {"inferops_kubeconfig", "inferops_context", "inferops_models"}


@pytest.mark.parametrize("name", ["model_deploy", "model_canary", "lora_rollout", "gpu_nodes", "epp_image"])
def test_answers_to_the_survey_are_what_the_playbook_takes(
    playbook: Playbook, templates: list[Json], name: str
) -> None:
    template = next(template for template in templates if template["playbook"] == f"playbooks/{name}.yml")
    asked = {question["variable"]: question for question in template["survey_spec"]["spec"]}
    answers = {variable: ANSWERS[variable] for variable in asked if variable in ANSWERS}
    assert {variable for variable, question in asked.items() if question["required"]} <= set(answers)
    run = playbook(name, MODELS, "-e", json.dumps(answers))
    assert run.code == 0, run.output
