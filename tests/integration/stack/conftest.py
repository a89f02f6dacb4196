# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole platform on the cluster in use: playbooks run as people run them, and what they leave in the cluster."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .state import State

ROOT = Path(__file__).parents[3]
RECAP = re.compile(r"^localhost\s.*?changed=(\d+).*?failed=(\d+)", re.MULTILINE)
TASK = re.compile(r"^TASK \[(.*?)\] \*", re.MULTILINE)
Json = dict[str, Any]


@dataclass
class Outcome:
    """How a playbook ended. ``changed`` counts tasks; ``cpu`` is the processor time of all its processes."""

    code: int
    output: str
    seconds: float
    cpu: float

    @property
    def changed(self) -> int:
        found = RECAP.search(self.output)
        assert found, self.output[-3000:]
        return int(found[1])


class Ansible:
    """Runs playbooks on the inventory in use, each in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inventory = os.environ.get("INFEROPS_INVENTORY") or str(ROOT / "inventories" / "lab")
        self._number = 0

    def start(self, playbook: Path, *options: str, variables: Json | None = None) -> subprocess.Popen[str]:
        """Begin; the output goes to ``.log`` of this run."""
        self._number += 1
        self.log = self._folder / f"{self._number}.log"
        extra: list[str] = []
        if variables:
            given = self._folder / f"{self._number}.yml"
            given.write_text(json.dumps(variables))
            extra = ["--extra-vars", f"@{given}"]
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, "--inventory", self._inventory, *options, *extra, str(playbook)]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".cache" / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        with self.log.open("w") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, playbook: str | Path, *options: str, variables: Json | None = None, fails: bool = False) -> Outcome:
        """Run to the end. ``fails``: that is expected."""
        started, spent = time.monotonic(), _cpu()
        process = self.start(ROOT / playbook, *options, variables=variables)
        code = process.wait(timeout=900)
        outcome = Outcome(code, self.log.read_text(), time.monotonic() - started, _cpu() - spent)
        assert bool(code) == fails, outcome.output[-6000:]
        return outcome

    def site(self, *options: str, variables: Json | None = None) -> Outcome:
        return self.run("site.yml", *options, variables=variables)

    def interrupt(self, tasks: int, seconds: float, variables: Json | None = None) -> str:
        """Begin site.yml, and kill it with all its processes so many seconds into that task; its name."""
        process = self.start(ROOT / "site.yml", variables=variables)
        names: list[str] = []
        while process.poll() is None and len(names) < tasks:
            time.sleep(0.05)
            names = TASK.findall(self.log.read_text())
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return TASK.findall(self.log.read_text())[-1]

    def role(self, role: str, part: str, variables: Json | None = None, fails: bool = False) -> Outcome:
        """One part of one role, with nothing but its variables, as the platform's list of models makes them."""
        included: list[Json] = [{"name": f"inferops.cluster.{role}", "tasks_from": part}]
        if role == "inference_pool":  # whose ports the list takes from the runtimes' definitions
            included.insert(0, {"name": "inferops.cluster.kserve_runtimes", "tasks_from": "preflight", "public": True})
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "vars_files": [str(ROOT / "playbooks" / "vars" / "roles.yml")],
            "tasks": [{"ansible.builtin.include_role": each} for each in included],
        }
        book = self._folder / f"{role}-{part}.yml"
        book.write_text(yaml.safe_dump([play]))
        return self.run(book, variables=variables, fails=fails)

    def module(self, name: str, options: Json, fails: bool = False) -> Json:
        """What one of our modules returns on the cluster in use."""
        answer = self._folder / "answer.json"
        tasks: list[Json] = [
            {f"inferops.cluster.{name}": options, "register": "result", "ignore_errors": fails},
            {"ansible.builtin.copy": {"content": "{{ result | to_json }}", "dest": str(answer), "mode": "0600"}},
        ]
        book = self._folder / f"{name}.yml"
        book.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
        self.run(book)
        found: Json = json.loads(answer.read_text())
        assert bool(found.get("failed")) == fails, found
        return found


def _cpu() -> float:
    """Processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    return Ansible(tmp_path_factory.mktemp("ansible"))


@pytest.fixture(scope="session")
def state() -> State:
    return State()


@pytest.fixture(scope="session")
def variables() -> Json:
    """What the inventory says, for tests that vary it."""
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "--list", "--inventory"]
    inventory = os.environ.get("INFEROPS_INVENTORY") or str(ROOT / "inventories" / "lab")
    shown = subprocess.run([*command, inventory], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hosts: Json = json.loads(shown)["_meta"]["hostvars"]
    found: Json = hosts["localhost"]
    return found


@pytest.fixture(scope="session")
def empty(ansible: Ansible, state: State) -> set[str]:
    """Names of all objects of the cluster without the platform, whatever an earlier run has left. The first test asks
    for it: later, the platform would have to be taken away and made once more."""
    if state.installed():
        ansible.run("playbooks/teardown.yml")
    return state.names()


@pytest.fixture(scope="module")
def converged(ansible: Ansible) -> None:
    """The platform as the inventory says. Tests leave it so."""
    ansible.site()
