# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs gates side by side, shows the output of those that fail, and ends with a line a gate."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gates.catalogue import Gate
from gates.environments import CACHE, EnvironmentBroken, EnvironmentMissing

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"


@dataclass(frozen=True)
class Outcome:
    """How a gate ended, after how many seconds, and where its output is."""

    gate: str
    verdict: str
    seconds: float
    log: Path
    reason: str = ""


class Runner:
    """Runs gates, as many at a time as there are processors; one that this machine cannot run fails if ``strict``."""

    def __init__(self, gates: Sequence[Gate], strict: bool) -> None:
        self.gates = gates
        self.strict = strict
        self.began = time.monotonic()
        self._printing = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self) -> bool:
        """Run all; true if none has failed."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                outcomes = list(pool.map(self._gate, self.gates))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
        self._report(outcomes)
        return not any(outcome.verdict == FAILED for outcome in outcomes)

    def _say(self, text: str) -> None:
        with self._printing:
            print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)

    def _gate(self, gate: Gate) -> Outcome:
        log = CACHE / "logs" / f"{gate.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        self._say(f"{gate.name} ...")
        verdict, reason = self._judge(gate, log)
        outcome = Outcome(gate.name, verdict, time.monotonic() - start, log, reason)
        self._say(_line(outcome))
        if verdict == FAILED:
            with self._printing:
                print(f"--- output of {gate.name}\n{log.read_text(errors='replace')}--- end of {gate.name}", flush=True)
        return outcome

    def _judge(self, gate: Gate, log: Path) -> tuple[str, str]:
        with log.open("wb") as output:
            try:
                for command in gate.commands():
                    output.write(f"$ {' '.join(command.words)}\n".encode())
                    output.flush()
                    process = subprocess.Popen(
                        command.words, cwd=command.folder, env=command.variables, stdin=subprocess.DEVNULL,
                        stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                    )  # fmt: skip
                    self._running.add(process)
                    status = process.wait()
                    self._running.discard(process)
                    if status:
                        return FAILED, f"exit status {status}"
            except EnvironmentMissing as error:
                return (FAILED if self.strict else NOT_RUN), str(error)
            except (EnvironmentBroken, OSError, subprocess.CalledProcessError) as error:
                output.write(f"{error}\n{getattr(error, 'stderr', '') or ''}\n".encode())
                return FAILED, "could not be run"
        told = gate.forbidden and re.search(gate.forbidden, log.read_text(errors="replace"), re.MULTILINE)
        return (FAILED, f"its output has {told.group()!r}") if told else (PASSED, "")

    def _stop(self) -> None:
        for process in list(self._running):
            os.killpg(process.pid, signal.SIGTERM)

    def _report(self, outcomes: Sequence[Outcome]) -> None:
        print()
        for outcome in outcomes:
            print(f"  {_line(outcome)}")
        count = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in (PASSED, FAILED, NOT_RUN)}
        whole = time.monotonic() - self.began
        told = ", ".join(f"{number} {verdict.lower()}" for verdict, number in count.items())
        print(f"gates: {told} in {whole:.0f} s", flush=True)


def _line(outcome: Outcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.gate:20} {outcome.verdict} in {outcome.seconds:.0f} s{reason}"
