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

_PORTS = range(17_600, 29_900)
# Not the shared generator, which test frameworks seed: two test runs side by side would walk the same way.
_NEXT = itertools.count(SystemRandom().randrange(len(_PORTS)))


def free_port(host: str = "") -> int:
    """A port that is free on ``host`` (all addresses unless given), another one each time; OSError if none is."""
    for number in itertools.islice(_NEXT, len(_PORTS)):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, _PORTS[number % len(_PORTS)]))
            port: int = probe.getsockname()[1]
            return port
    raise OSError(f"no port is free from {_PORTS[0]} to {_PORTS[-1]}")
