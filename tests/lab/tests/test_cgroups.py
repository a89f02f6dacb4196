# SPDX-License-Identifier: GPL-3.0-or-later
"""Control groups, on folders that look like the machine's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import cgroups


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with version 2 alone, some controllers of which are handed down."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma misc\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    monkeypatch.setattr(cgroups, "hierarchies", lambda: {tmp_path: "cgroup2"})
    return tmp_path


def test_this_machines_hierarchies_are_found() -> None:
    found = cgroups.hierarchies()
    assert found
    assert set(found.values()) <= {"cgroup", "cgroup2"}
    assert all((mount / "cgroup.procs").exists() for mount in found)


def test_only_missing_controllers_that_the_machine_has_are_enabled(machine: Path) -> None:
    assert cgroups.controllers_to_enable() == ["cpuset", "io"]


def test_hybrid_machines_are_left_alone(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: {tmp_path / "pids": "cgroup", machine: "cgroup2"})
    assert cgroups.controllers_to_enable() == []


def test_controllers_are_switched_one_by_one(machine: Path) -> None:
    cgroups.switch(["io"], on=True)
    assert (machine / "cgroup.subtree_control").read_text() == "+io"
    cgroups.switch(["io"], on=False)
    assert (machine / "cgroup.subtree_control").read_text() == "-io"


def test_members_are_collected_from_all_levels_and_ended(machine: Path) -> None:
    pods = machine / cgroups.PODS / "pod1"
    system = machine / cgroups.SYSTEM
    for folder in (pods, system):
        folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (pods / "cgroup.procs").write_text(f"{process.pid}\n")
        (system / "cgroup.procs").write_text(f"0\n{os.getpid()}\n")
        assert cgroups.members() == {process.pid, os.getpid()}
        assert cgroups.members(cgroups.PODS) == {process.pid}
        # The file is no kernel's: its content stays.
        assert cgroups.kill(cgroups.PODS, signal.SIGTERM, 0) == {process.pid}
        assert process.wait() == -signal.SIGTERM


def test_removal_takes_the_deepest_first(machine: Path) -> None:
    (machine / cgroups.PODS / "burstable" / "pod1").mkdir(parents=True)
    assert cgroups.exists()
    cgroups.remove()
    assert not cgroups.exists()
    assert (machine / "cgroup.controllers").exists()


def test_a_group_that_is_in_use_is_an_error(machine: Path) -> None:
    (machine / cgroups.SYSTEM).mkdir(parents=True)
    (machine / cgroups.SYSTEM / "cgroup.procs").write_text("")
    with pytest.raises(cgroups.LabError, match="cannot be removed"):
        cgroups.remove(timeout_s=0.05)


def test_memory_is_read_where_it_is_accounted(machine: Path) -> None:
    assert cgroups.memory_bytes() is None
    (machine / cgroups.ROOT).mkdir()
    (machine / cgroups.ROOT / "memory.stat").write_text("anon 12345\nfile 99\n")
    assert cgroups.memory_bytes() == 12345
