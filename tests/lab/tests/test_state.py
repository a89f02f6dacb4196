# SPDX-License-Identifier: GPL-3.0-or-later
"""The marker: whose lab the machine has, and whether it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import cgroups, cleanup, cluster, control, network, report, state
from lab.progress import Progress


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, moved to where no lab is."""
    monkeypatch.setattr(state, "OWNER", tmp_path / "run" / "owner.json")
    monkeypatch.setattr(cleanup, "RUN", tmp_path / "run")
    monkeypatch.setattr(control, "CONTROL_SOCKET", tmp_path / "run" / "control.sock")
    monkeypatch.setattr(cgroups, "exists", lambda: False)
    monkeypatch.setattr(network, "link_exists", lambda: False)
    for module in (cluster, report):
        monkeypatch.setattr(module, "read_owner", lambda: state.read_owner(state.OWNER))
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "owner.json"


def test_a_process_is_known_by_number_and_start() -> None:
    started = state.start_time(os.getpid())
    assert started is not None
    assert state.Owner("/x", os.getpid(), started).alive()
    # The same number, given to a later process.
    assert not state.Owner("/x", os.getpid(), started - 1).alive()


def test_an_ended_process_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = state.start_time(process.pid)
        assert started is not None
        owner = state.Owner("/x", process.pid, started)
        assert owner.alive()
        process.kill()
        # Not waited for yet, it is a zombie: the number is taken, and nothing runs.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not owner.alive()
    assert not owner.alive()


def test_what_is_written_is_read(marker: Path) -> None:
    state.write_owner(["/var/lib/kubelet"], ["io"])
    owner = state.read_owner(marker)
    assert owner is not None
    assert (owner.state, owner.pid) == (str(state.STATE), os.getpid())
    assert (owner.made_folders, owner.enabled_controllers) == (["/var/lib/kubelet"], ["io"])
    assert owner.alive()


@pytest.mark.parametrize("content", ["", "{", '{"state": "/x"}', "[]", '{"other": 1}'])
def test_a_half_written_marker_is_none(marker: Path, content: str) -> None:
    marker.write_text(content, encoding="utf-8")
    assert state.read_owner(marker) is None


def test_no_lab_is_not_running_and_nothing_is_said(marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker.parent.rmdir()
    assert not cluster._running(Progress())
    assert capsys.readouterr().err == ""
    assert report.show() == 1
    assert capsys.readouterr().out == "down\n"


def test_a_lab_of_another_checkout_is_named(marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = state.start_time(os.getpid())
    marker.write_text(
        f'{{"state": "/home/x/other/.lab", "pid": {os.getpid()}, "started": {started}}}', encoding="utf-8"
    )
    assert not cluster._running(Progress())
    assert "belongs to /home/x/other; taking it down" in capsys.readouterr().err
    assert report.show() == 1
    assert "belongs to /home/x/other" in capsys.readouterr().out


def test_a_killed_lab_is_recognised(marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker.write_text(f'{{"state": "{state.STATE}", "pid": 1, "started": -1}}', encoding="utf-8")
    assert not cluster._running(Progress())
    assert "killed without `down`" in capsys.readouterr().err
    assert report.show() == 1
    assert "down, but not cleanly" in capsys.readouterr().out


def test_only_empty_mount_points_are_removed(marker: Path, tmp_path: Path) -> None:
    empty, filled = tmp_path / "empty", tmp_path / "filled"
    empty.mkdir()
    filled.mkdir()
    (filled / "file").touch()
    owner = state.Owner("/x", 1, -1, [str(empty), str(tmp_path / "gone")])
    cleanup._remove_folders(owner)
    assert not empty.exists()
    assert not marker.parent.exists()
    cleanup._remove_folders(state.Owner("/x", 1, -1, [str(filled)]))
    assert (filled / "file").exists()
