# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of ``make test``: in order, one beside the others, and what is said of them at the end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from target import suite

MAKEFILE = """\
good:
	@echo all is well
bad:
	@echo something is wrong; exit 3
long:
	@echo $$$$ > pid; sleep 60
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> suite.Steps:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    return suite.Steps()


def test_a_goal_beside_others_is_waited_for_and_shown(steps: suite.Steps, capfd: pytest.CaptureFixture[str]) -> None:
    with steps.beside("good"):
        assert steps.make("good")
    assert [(goal, good) for goal, _, good in steps.taken] == [("good", True), ("good", True)]
    assert capfd.readouterr().out.count("all is well") == 2


def test_a_goal_beside_others_that_fails(steps: suite.Steps, capfd: pytest.CaptureFixture[str]) -> None:
    with steps.beside("bad"):
        pass
    assert [(goal, good) for goal, _, good in steps.taken] == [("bad", False)]
    steps.report(("bad", "good"))
    out = capfd.readouterr().out
    assert "something is wrong" in out
    assert out.endswith("steps: 0 passed, 2 failed\n")


def test_a_goal_beside_others_ends_with_them(steps: suite.Steps, tmp_path: Path) -> None:
    def interrupted() -> None:
        with steps.beside("long"):
            while not (tmp_path / "pid").exists():
                time.sleep(0.01)
            raise suite.Interrupted("stopped")

    with pytest.raises(suite.Interrupted):
        interrupted()
    assert steps.taken == []


def test_all_processes_of_a_goal_end_when_it_is_interrupted(steps: suite.Steps, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupt() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, suite._interrupt)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(suite.Interrupted):
            steps.make("long")
        thread.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert steps.taken == []
