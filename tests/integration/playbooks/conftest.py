# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks of the collection, run as a person runs them, and what their tasks returned."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A playbook that has ended."""

    code: int
    output: str
    tasks: list[Json]

    def result(self, task: str) -> Json:
        """What the first task returned whose name ends so."""
        for found in self.tasks:
            if found["task"].endswith(task):
                result: Json = found["result"]
                return result
        raise AssertionError(f"no task {task} among {[found['task'] for found in self.tasks]}")

    def ran(self) -> list[str]:
        """The names of the tasks that were not skipped, in order."""
        return [found["task"] for found in self.tasks if found["outcome"] != "skipped"]

    def objects(self, *actions: str) -> set[tuple[str, str]]:
        """Kind and name of all objects for which a set had one of these actions."""
        entries = [entry for found in self.tasks for entry in found["result"].get("objects") or []]
        return {(entry["kind"], entry["name"]) for entry in entries if entry.get("action") in actions}


Playbook = Callable[..., Run]


@pytest.fixture
def namespace() -> str:
    """The name of a namespace that is not there."""
    return f"playbooks-{secrets.token_hex(4)}"


@pytest.fixture
def playbook(tmp_path: Path, kubeconfig: str, namespace: str) -> Playbook:
    """Run a playbook of the collection by its name, or any by its path; the roles are in a namespace of the test's own,
    and it is check mode unless told otherwise.
    """

    def run(name: str | Path, variables: Json, *options: str, check: bool = True) -> Run:
        roles = ("kserve_runtimes", "inference_pool", "epp", "litellm")
        given = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "inferops_kubeconfig": kubeconfig,
            **{f"{role}_namespace": namespace for role in roles},
            **{f"{role}_wait": False for role in roles},
            **variables,
        }
        inventory = tmp_path / "inventory.json"
        inventory.write_text(json.dumps({"all": {"hosts": {"localhost": None}, "vars": given}}))
        answers = tmp_path / "results.json"
        answers.unlink(missing_ok=True)
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), *options]
        command += ["--check"] if check else []
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "task_results",
            "TASK_RESULTS": str(answers),
        }
        command.append(str(name if isinstance(name, Path) else ROOT / "playbooks" / f"{name}.yml"))
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
        tasks = json.loads(answers.read_text()) if answers.exists() else []
        return Run(done.returncode, done.stdout + done.stderr, tasks)

    return run
