# SPDX-License-Identifier: GPL-3.0-or-later
"""What engines publish of their KV caches, as vLLM does: ZeroMQ, msgpack, numbered messages that can be asked for.

The hashes by which an engine names its blocks are of its own making; nobody else can compute them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from conformance.kit.loop import ENGINES

PORT, REPLAY_PORT, BLOCK = 5557, 5558, 16
FIELDS = {
    "BlockStored": ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}


class Cache:
    """One engine's cache, which says what happens to it."""

    _seeds = itertools.count()

    def __init__(
        self, address: str, topic: str, connect: str = "", port: int = PORT, maps: bool = False, replay: bool = False
    ) -> None:
        """Listens on ``address``, or connects to ``connect``. ``maps``: events as newer engines write them; ``replay``:
        repeats what it has said when asked."""
        self._topic, self._maps, self._seed = topic.encode(), maps, next(self._seeds)
        self._number = 0
        self._kept: list[tuple[int, bytes]] = []
        ENGINES.run(self._open(address, connect, port, replay))

    async def _open(self, address: str, connect: str, port: int, replay: bool) -> None:
        self._context = zmq.asyncio.Context()
        self._publisher = self._context.socket(zmq.PUB)
        if connect:
            self._publisher.connect(connect)
        else:
            self._publisher.bind(f"tcp://{address}:{port}")
        self._repeating = None
        if replay:
            router = self._context.socket(zmq.ROUTER)
            router.bind(f"tcp://{address}:{REPLAY_PORT}")
            self._repeating = asyncio.create_task(self._repeat(router))

    def close(self) -> None:
        """Say nothing more."""

        async def end() -> None:
            if self._repeating is not None:
                self._repeating.cancel()
            self._context.destroy(linger=0)

        ENGINES.run(end())

    def begin_again(self) -> None:
        """Number messages from 0, as an engine does that was restarted."""
        self._number = 0
        self._kept.clear()

    def hashes(self, tokens: Sequence[int], adapter: str = "") -> list[bytes]:
        """The engine's names of the whole blocks of a prompt."""
        found, before = [], f"{self._seed} {adapter}".encode()
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            before = hashlib.sha256(before + str(tokens[start : start + BLOCK]).encode()).digest()
            found.append(before)
        return found

    def store(self, tokens: Sequence[int], adapter: str | None = None, medium: str = "GPU") -> None:
        """The prompt has been computed, in two steps."""
        hashes = self.hashes(tokens, adapter or "")
        half = len(hashes) // 2
        for first, last in ((0, half), (half, len(hashes))):
            if first < last:
                parent = hashes[first - 1] if first else None
                part = list(tokens[first * BLOCK : last * BLOCK])
                values = (hashes[first:last], parent, part, BLOCK, None, medium, adapter)
                self.say(self._event("BlockStored", *values))

    def remove(self, tokens: Sequence[int], blocks: int = 1) -> None:
        """The last blocks of the prompt have been thrown away."""
        self.say(self._event("BlockRemoved", self.hashes(tokens)[-blocks:], "GPU"))

    def clear(self) -> None:
        """All of it has been thrown away."""
        self.say(self._event("AllBlocksCleared"))

    def say(self, *events: Any, rank: int | None = None) -> None:
        """Publish a message."""
        batch: Any = [0.0, list(events), rank]
        if self._maps:
            batch = {"ts": 0.0, "events": list(events), "data_parallel_rank": rank}
        payload = msgspec.msgpack.encode(batch)
        self._kept.append((self._number, payload))
        ENGINES.run(self._publish(self._topic, self._number.to_bytes(8, "big"), payload))
        self._number += 1

    async def _publish(self, *frames: bytes) -> None:
        await self._publisher.send_multipart(frames)

    def _event(self, kind: str, *values: Any) -> Any:
        if self._maps:
            return {"type": kind, **dict(zip(FIELDS[kind], values, strict=True))}
        return [kind, *values]

    async def _repeat(self, router: zmq.asyncio.Socket) -> None:
        while True:
            client, _, first = await router.recv_multipart()
            for number, payload in self._kept:
                if number >= int.from_bytes(first, "big"):
                    await router.send_multipart((client, b"", number.to_bytes(8, "big"), payload))
            await router.send_multipart((client, b"", b"\xff" * 8, b""))


@contextlib.contextmanager
def cache(address: str, topic: str, **options: Any) -> Iterator[Cache]:
    """An engine's cache, closed afterwards."""
    made = Cache(address, topic, **options)
    try:
        yield made
    finally:
        made.close()
