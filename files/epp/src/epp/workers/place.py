# SPDX-License-Identifier: GPL-3.0-or-later
"""Which worker a process is, and how it finds its parent and the others: what a new worker is told."""

from __future__ import annotations

import os
from dataclasses import dataclass

VARIABLE = "EPP_WORKER"
"""The environment variable that makes a process a worker."""


@dataclass(frozen=True)
class Place:
    """One worker among all. Written and read by the same program only."""

    index: int
    control: int
    """File descriptor of the socket on which parent and worker talk."""
    gate: int
    """File descriptor of the socket on which connections come."""
    group: str
    """Names the whole picker among all others."""

    def text(self) -> str:
        """As the environment has it."""
        return f"{self.index}:{self.control}:{self.gate}:{self.group}"

    @classmethod
    def read(cls, text: str) -> Place:
        """The opposite."""
        index, control, gate, group = text.split(":", 3)
        return cls(int(index), int(control), int(gate), group)

    @property
    def sender(self) -> str:
        """The name under which peers know this process."""
        return sender(self.group, self.index, os.getpid())

    def address(self, index: int) -> str:
        """The ZeroMQ address of a worker of this picker: an abstract UNIX socket, which needs no file system."""
        return f"ipc://@epp-{self.group.rpartition('_')[2]}-{index}"


def sender(group: str, index: int, pid: int) -> str:
    """As :attr:`Place.sender`; a worker that is started again is another one."""
    return f"{group}/{index}-{pid}"
