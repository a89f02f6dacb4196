# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections go to whoever is there to take them; none is lost while nobody is."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

import pytest

from epp.workers.gate import Gate


class Taker:
    """A worker that keeps what it gets, unless it is full."""

    def __init__(self, full: bool = False) -> None:
        self.full = full
        self.taken: list[socket.socket] = []

    def take(self, connection: socket.socket) -> bool:
        if not self.full:
            self.taken.append(connection.dup())
        return not self.full


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_connections_wait_for_a_worker() -> None:
    takers: list[Taker] = []
    listener = socket.create_server(("127.0.0.1", 0))
    gate = Gate(listener, lambda: list(takers))
    gate.open()
    with socket.create_connection(listener.getsockname()) as client:
        await asyncio.sleep(0.12)
        takers += [Taker(full=True), Taker()]
        await until(lambda: bool(takers[1].taken))
        client.sendall(b"hello")
        (served,) = takers[1].taken
        with served:
            assert served.recv(5) == b"hello"
    gate.close()


async def test_a_connection_that_nobody_takes_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    gate = Gate(listener, lambda: [Taker(full=True)])
    gate.open()
    with socket.create_connection(listener.getsockname()) as client, caplog.at_level(logging.ERROR):
        client.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    assert "no worker takes it" in caplog.text
    gate.close()


class Exhausted(socket.socket):
    """A listener of a process that has no file descriptor left, for a while."""

    failures = 2

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_file_descriptors_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    listener = Exhausted()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    taker = Taker()
    gate = Gate(listener, lambda: [taker])
    gate.open()
    with socket.create_connection(listener.getsockname()), caplog.at_level(logging.ERROR):
        await until(lambda: bool(taker.taken))
    assert caplog.text.count("it cannot be accepted") == 2
    taker.taken[0].close()
    gate.close()
