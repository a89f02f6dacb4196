# SPDX-License-Identifier: GPL-3.0-or-later
"""Accepts connections, and hands each to the worker that has the fewest.

A gateway keeps few connections, and each for long, so the kernel's way to spread them (``SO_REUSEPORT``: by a hash of
the addresses) may well put all on one worker. Nothing is read here: TLS begins in the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Connections that are accepted before something else has its turn."""
PAUSE_SECONDS = 0.05
"""Until it is tried again when no worker takes a connection, or no file descriptor is left."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Taker(Protocol):
    """A worker that can be given connections."""

    def take(self, connection: socket.socket) -> bool:
        """Hand it over; False when the worker takes none at the moment."""


class Gate:
    """One listening socket."""

    def __init__(self, listener: socket.socket, takers: Callable[[], list[Taker]]) -> None:
        """``takers`` are those that serve, the one that shall have the next connection first."""
        self._listener, self._takers = listener, takers
        self._pausing: asyncio.TimerHandle | None = None
        listener.setblocking(False)

    def open(self) -> None:
        """Accept. Without a worker, connections wait in the kernel's queue."""
        self._pausing = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more."""
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._pausing is not None:
            self._pausing.cancel()
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            takers = self._takers()
            if not takers:
                self._pause()
                return
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.error("a connection waits, for it cannot be accepted: %s", error)
                    self._pause()
                    return
                continue  # it has gone already
            with contextlib.closing(connection):
                if not any(taker.take(connection) for taker in takers):
                    log.error("a connection is closed, for no worker takes it")

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._pausing = loop.call_later(PAUSE_SECONDS, self.open)
