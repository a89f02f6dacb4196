# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports for programs that a test starts.

They lie below the range from which the kernel takes the ports of clients (32768 and up) and that of NodePorts (30000
and up): a port of those may be free now, and be some connection's own by the time that the program listens.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from random import SystemRandom

_FIRST, _COUNT = 17_600, 12_300
# In an order of its own for each process, not that of the shared generator, which test frameworks seed: two test runs
# side by side would go in step.
_PORTS = itertools.cycle(SystemRandom().sample(range(_FIRST, _FIRST + _COUNT), _COUNT))


def free_port(host: str = "") -> int:
    """A port that is free on ``host`` (all addresses unless given), another one each time; OSError if none is."""
    for port in itertools.islice(_PORTS, _COUNT):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise OSError(f"no port is free from {_FIRST} to {_FIRST + _COUNT - 1}")
