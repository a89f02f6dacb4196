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
short:
	@sleep 1; echo a moment has passed
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


def test_goals_beside_others_are_waited_for_and_shown(steps: suite.Steps, capfd: pytest.CaptureFixture[str]) -> None:
    with steps.beside(("good", "short", "short")):
        assert steps.make("short")
        assert steps.make("good")
    assert sorted((goal, good) for goal, _, good in steps.taken) == [("good", True)] * 2 + [("short", True)] * 3
    assert steps.report(("good", "short")) == 0
    out = capfd.readouterr().out
    assert out.count("all is well") == 2
    assert out.count("a moment has passed") == 3
    assert out.index("== good, beside the steps: passed\nall is well") < out.index("== good (")
    assert "== short, until it is done" in out


def test_a_goal_beside_others_that_fails_ends_them(steps: suite.Steps, capfd: pytest.CaptureFixture[str]) -> None:
    with steps.beside(("bad", "good")):
        assert not steps.make("long")
    assert [(goal, good) for goal, _, good in steps.taken] == [("bad", False)]
    assert steps.report(("bad", "good", "long")) == 3
    out = capfd.readouterr().out
    assert "long is stopped, as bad has failed beside it" in out
    assert "something is wrong" in out
    assert out.endswith("steps: 0 passed, 3 failed\n")


def test_a_step_that_fails_ends_what_runs_beside_it(
    steps: suite.Steps, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with steps.beside(("long",)):
        assert not steps.make("bad")
    assert [(goal, good) for goal, _, good in steps.taken] == [("bad", False)]
    _assert_ended(tmp_path / "pid")
    assert steps.report(("long", "bad")) == 2


def test_a_goal_beside_others_ends_with_them(steps: suite.Steps, tmp_path: Path) -> None:
    def interrupted() -> None:
        with steps.beside(("long",)):
            while not (tmp_path / "pid").exists():
                time.sleep(0.01)
            raise suite.Interrupted("stopped")

    with pytest.raises(suite.Interrupted):
        interrupted()
    assert steps.taken == []
    _assert_ended(tmp_path / "pid")


def test_all_processes_of_a_goal_end_when_it_is_interrupted(steps: suite.Steps, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupt() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.01)
        time.sleep(0.5)  # by then the goal is not only started, but waited for
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
    _assert_ended(pid)
    assert steps.taken == []


def _assert_ended(pid: Path) -> None:
    """Its parent has been killed, too, so it may take a moment until init has seen it."""
    end = time.monotonic() + 10
    while _exists(int(pid.read_text())):
        assert time.monotonic() < end
        time.sleep(0.05)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
