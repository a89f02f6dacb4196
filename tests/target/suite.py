# SPDX-License-Identifier: GPL-3.0-or-later
"""All tests in order, cheapest first: what ``make test`` and CI run.

The gates wait for programs most of their time, so they run beside the steps that need no cluster in use; their output
comes when they are done. It stops at the first step that fails, takes the cluster that it made away in any case, and
ends with one line a step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from target.cluster import ROOT, Target, TargetError

BESIDE = "gates"
WITHOUT_CLUSTER = ("unit", "envoy")
PATIENCE = 60.0
"""Seconds in which a goal that is asked to end may clean up behind itself."""
ON_THE_LAB = ("compiled", "lifecycle")
"""What needs root, as the lab does."""
WITH_CLUSTER = ("integration", "conformance-ours", "platform", "molecule")


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


class Steps:
    """Runs named steps and remembers how long each took."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.taken: list[tuple[str, float, bool]] = []

    def make(self, goal: str, env: dict[str, str] | None = None) -> bool:
        """Run one goal of the Makefile; true if it succeeded."""
        start = time.monotonic()
        print(f"\n== {goal} ({start - self.began:.0f} s so far)", flush=True)
        with _started(goal, env={**os.environ, **(env or {})}) as process:
            code = process.wait()
        self.taken.append((goal, time.monotonic() - start, code == 0))
        return code == 0

    @contextlib.contextmanager
    def beside(self, goal: str) -> Iterator[None]:
        """Run one goal beside what happens in the block; waits for it, and shows what it said, at the block's end."""
        log = ROOT / ".build" / f"{goal}.log"
        log.parent.mkdir(exist_ok=True)
        start = time.monotonic()
        print(f"\n== {goal}, beside the next steps; its output goes to {log.relative_to(ROOT)}", flush=True)
        with (
            log.open("wb") as output,
            _started(goal, stdout=output, stderr=output, stdin=subprocess.DEVNULL) as process,
        ):
            yield
            print(f"\n== {goal}, until it is done ({time.monotonic() - self.began:.0f} s so far)", flush=True)
            code = process.wait()
        print(log.read_text(encoding="utf-8", errors="replace"), end="", flush=True)
        self.taken.append((goal, time.monotonic() - start, code == 0))

    def report(self, goals: tuple[str, ...]) -> None:
        """One line a step, those that were never reached included, then the count that a reader of logs looks for."""
        print()
        reached = {goal for goal, _, _ in self.taken}
        for goal, seconds, good in self.taken:
            print(f"  {goal:16} {'passed' if good else 'FAILED'} in {seconds:.0f} s")
        for goal in goals:
            if goal not in reached:
                print(f"  {goal:16} not run")
        failed = sum(not good for _, _, good in self.taken) + len(set(goals) - reached)
        print(f"steps: {len(goals) - failed} passed, {failed} failed", flush=True)


def run(target: Target) -> int:
    """Every step on this machine; 0 only if every one of them passed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    ours = target.name == "lab"
    meanwhile = WITHOUT_CLUSTER + (ON_THE_LAB if ours else ())
    goals = (BESIDE, *meanwhile, *WITH_CLUSTER)
    steps = Steps()
    passed = False
    try:
        passed = _all(target, steps, meanwhile)
    except (Interrupted, KeyboardInterrupt, TargetError) as error:
        print(f"error: {error}", flush=True)
    finally:
        if ours:
            target.down()
        steps.report(goals)
    return 0 if passed else 1


def _all(target: Target, steps: Steps, meanwhile: tuple[str, ...]) -> bool:
    with steps.beside(BESIDE):
        if not all(steps.make(goal) for goal in meanwhile):
            return False
    if not steps.taken[-1][2]:
        return False
    for goal in WITH_CLUSTER:
        target.up()
        env = {**target.environment(), "PICKER": "image" if target.name == "lab" else "ours"}
        env |= {"INFEROPS_INVENTORY": str(target.inventory), "INFEROPS_KEEP_CLUSTER": "1"}
        if not steps.make(goal, env):
            return False
    return True
