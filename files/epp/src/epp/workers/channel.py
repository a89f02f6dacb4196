# SPDX-License-Identifier: GPL-3.0-or-later
"""The socket between parent and worker: whole messages, in order, without an end to their size."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import msgspec

from epp.workers.messages import LENGTH_BYTES, ToParent, ToWorker, frame


class Channel[Incoming]:
    """One end.

    What is said waits in memory for a peer that does not read. There is no bound to it: a worker that does not read is
    ended by its parent soon, and one without a parent ends.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[Incoming]
    ) -> None:
        self._reader, self._writer, self._decoder = reader, writer, decoder

    @classmethod
    async def open(cls, end: socket.socket, decoder: msgspec.msgpack.Decoder[Incoming]) -> Channel[Incoming]:
        """Talk on a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=end)
        return cls(reader, writer, decoder)

    def send(self, message: ToWorker | ToParent) -> None:
        """Say something."""
        self.write(frame(message))

    def write(self, data: bytes) -> None:
        """Say what is encoded already; nothing once the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def messages(self) -> AsyncIterator[Incoming]:
        """All that the other end says, until it is gone."""
        try:
            while True:
                size = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                yield self._decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def close(self) -> None:
        """Say and hear no more."""
        self._writer.close()
