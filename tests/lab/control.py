# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command line says to the running supervisor: one JSON line each way over a Unix socket."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.state import CONTROL_SOCKET


@dataclass
class Options:
    """What the lab is wanted to run.

    components: names; gpus: fake `nvidia.com/gpu` of the node, None: leave them as they are.
    """

    components: list[str] = field(default_factory=list)
    gpus: int | None = None

    @staticmethod
    def load(file: Path) -> Options:
        try:
            return Options(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Options()

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ComponentStatus:
    """One component.

    pid: as the lab's namespace numbers it (0: not running); rss: resident memory in bytes; state: `starting`, `ready`,
    `unready` (runs, but its check fails), `waiting` (for others), `backoff` (ended, will be started again).
    """

    name: str
    pid: int
    state: str
    restarts: int
    rss: int
    uptime_s: float


@dataclass(frozen=True)
class Status:
    """What runs.

    components: in start order; gpus: fake ones of the node; processes: how many the whole lab has, pods included;
    memory: what they hold, in bytes, None where the machine does not account it.
    """

    components: list[ComponentStatus]
    gpus: int | None
    processes: int
    memory: int | None

    def ready(self, names: list[str]) -> bool:
        states = {component.name: component.state for component in self.components}
        return all(states.get(name) == "ready" for name in names)


def ask(command: str, *, timeout_s: float = 15.0, **arguments: object) -> dict[str, object]:
    """Send one command and return the answer.

    Raises OSError when no supervisor listens, ValueError when it refuses the command or answers nonsense.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(CONTROL_SOCKET))
        connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        with connection.makefile("rb") as stream:
            answer = json.loads(stream.readline())
    if not isinstance(answer, dict) or "error" in answer:
        raise ValueError(f"the supervisor answered: {answer}")
    return answer


def status() -> Status:
    """What runs now. Raises as `ask` does."""
    answer = ask("status")
    components = [ComponentStatus(**entry) for entry in _list(answer["components"])]
    gpus, processes, memory = answer["gpus"], answer["processes"], answer["memory"]
    assert gpus is None or isinstance(gpus, int)
    assert isinstance(processes, int)
    assert memory is None or isinstance(memory, int)
    return Status(components, gpus, processes, memory)


def _list(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"not a list: {value!r}")
    return value
