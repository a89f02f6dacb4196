# SPDX-License-Identifier: GPL-3.0-or-later
"""All tests: what ``make test`` and CI run.

Two lanes, as one of two processors would have nothing to do most of the time: the steps that need the cluster, and
beside them those that need none, the cheapest first. What these say is shown between the steps. It stops at the first
that fails in either lane, takes the cluster that it made away in any case, and ends with one line a step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from target.cluster import ROOT, Target, TargetError

BESIDE = ("unit", "gates", "envoy")
"""What needs no cluster in use."""
BESIDE_THE_LAB = ("compiled",)
"""The same, but needs root, as the lab does."""
BEFORE = ("lifecycle",)
"""The lab itself, which takes down one that runs."""
WITH_CLUSTER = ("conformance-ours", "platform", "molecule", "integration")
"""The last has processes enough for both processors, when nothing runs beside it any more."""
PATIENCE = 60.0
"""Seconds in which a goal that is asked to end may clean up behind itself."""
LOOK = 0.5
"""Seconds between two looks at what runs."""


class Interrupted(Exception):
    """A signal asked us to stop; what we started is still to be stopped."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"stopped by signal {number}")


@contextlib.contextmanager
def _started(goal: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A goal of the Makefile that runs, with all its processes in a group of their own: they end with the block."""
    process = subprocess.Popen(["make", goal], cwd=ROOT, start_new_session=True, **more)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Lane:
    """Goals that run one after the other beside the steps. The first that fails is the last."""

    def __init__(self, goals: tuple[str, ...], taken: list[tuple[str, float, bool]]) -> None:
        self._goals = deque(goals)
        self._taken = taken
        self._said: list[str] = []
        """What those have said that are done, not shown yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self._start = 0.0
        self.goal = ""
        """The one that runs."""
        self.failed = ""
        """The one that has failed."""

    def advance(self) -> bool:
        """Take note of what is done, and start what comes next; false if nothing runs any more."""
        if self._process is not None:
            if self._process.poll() is None:
                return True
            self._stack.close()
            good = self._process.returncode == 0
            self._taken.append((self.goal, time.monotonic() - self._start, good))
            heading = f"\n== {self.goal}, beside the steps: {'passed' if good else 'FAILED'}\n"
            self._said.append(heading + self._log().read_text(encoding="utf-8", errors="replace"))
            self.failed = "" if good else self.goal
            self._process, self.goal = None, ""
        if self.failed or not self._goals:
            return False
        self.goal = self._goals.popleft()
        self._log().parent.mkdir(exist_ok=True)
        self._start = time.monotonic()
        output = self._stack.enter_context(self._log().open("wb"))
        started = _started(self.goal, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self._process = self._stack.enter_context(started)
        return True

    def show(self) -> None:
        """What those have said that are done."""
        for said in self._said:
            print(said, end="", flush=True)
        self._said.clear()

    def finish(self) -> None:
        """Wait until all is done."""
        last = ""
        while self.advance():
            self.show()
            if self.goal != last:
                last = self.goal
                print(f"\n== {last}, until it is done; its output goes to {self._log().relative_to(ROOT)}", flush=True)
            time.sleep(LOOK)
        self.show()

    def close(self) -> None:
        """End what runs."""
        self._stack.close()

    def _log(self) -> Path:
        return ROOT / ".build" / f"{self.goal}.log"


class Steps:
    """Runs named steps and remembers how long each took."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.taken: list[tuple[str, float, bool]] = []
        self._lane = Lane((), self.taken)

    def make(self, goal: str, env: dict[str, str] | None = None) -> bool:
        """Run one goal of the Makefile; true if it succeeded, and nothing has failed beside it, which ends it."""
        lane = self._lane
        lane.show()
        start = time.monotonic()
        print(f"\n== {goal} ({start - self.began:.0f} s so far)", flush=True)
        with _started(goal, env={**os.environ, **(env or {})}) as process:
            while (code := process.poll()) is None:
                lane.advance()
                if lane.failed:
                    print(f"\n{goal} is stopped, as {lane.failed} has failed beside it", flush=True)
                    return False
                time.sleep(LOOK)
        self.taken.append((goal, time.monotonic() - start, code == 0))
        return code == 0

    @contextlib.contextmanager
    def beside(self, goals: tuple[str, ...]) -> Iterator[None]:
        """Run goals beside the steps of the block, one by one. They end if a step fails, or the block raises."""
        self._lane = Lane(goals, self.taken)
        print(f"\n== beside the steps: {', '.join(goals)}; their output goes to .build/*.log", flush=True)
        try:
            self._lane.advance()
            yield
            if all(good for _, _, good in self.taken):
                self._lane.finish()
        finally:
            self._lane.close()
            self._lane.show()

    def report(self, goals: tuple[str, ...]) -> int:
        """One line a step, those that were never reached included, then the count that a reader of logs looks for.
        Returns how many have failed, or were not done."""
        print()
        reached = {goal for goal, _, _ in self.taken}
        for goal, seconds, good in self.taken:
            print(f"  {goal:16} {'passed' if good else 'FAILED'} in {seconds:.0f} s")
        for goal in goals:
            if goal not in reached:
                print(f"  {goal:16} not done")
        failed = sum(not good for _, _, good in self.taken) + len(set(goals) - reached)
        print(f"steps: {len(goals) - failed} passed, {failed} failed", flush=True)
        return failed


def run(target: Target) -> int:
    """Every step on this machine; 0 only if every one of them passed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    ours = target.name == "lab"
    beside = BESIDE + (BESIDE_THE_LAB if ours else ())
    goals = (*beside, *(BEFORE if ours else ()), *WITH_CLUSTER)
    steps = Steps()
    try:
        with steps.beside(beside):
            _with_cluster(target, steps, BEFORE if ours else ())
    except (Interrupted, KeyboardInterrupt, TargetError) as error:
        print(f"error: {error}", flush=True)
    finally:
        if ours:
            target.down()
        failed = steps.report(goals)
    return 1 if failed else 0


def _with_cluster(target: Target, steps: Steps, before: tuple[str, ...]) -> None:
    """The steps, until one fails."""
    if not all(steps.make(goal) for goal in before):
        return
    for goal in WITH_CLUSTER:
        target.up()
        env = {**target.environment(), "PICKER": "image" if target.name == "lab" else "ours"}
        env |= {"INFEROPS_INVENTORY": str(target.inventory), "INFEROPS_KEEP_CLUSTER": "1"}
        if not steps.make(goal, env):
            return
