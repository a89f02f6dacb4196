# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a picker takes: idle, with large prompts on many streams at once, and afterwards."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from conformance.kit import memory, wire
from conformance.kit.grpc import Stream
from conformance.kit.picker import Picker
from conformance.kit.talk import completion, route
from conformance.kit.world import Pool, World

MEGABYTES = 2**20
IDLE = 120 * MEGABYTES
BUSY = 1536 * MEGABYTES
STREAMS, CONNECTIONS = 256, 8
PROMPT = "x" * MEGABYTES


def test_idle(around: World) -> None:
    """An idle picker with four pods, whose metrics it reads, takes less than 120 MB."""
    with around.pool("four", engines=4) as pool, around.picker(pool.name) as found:
        assert route(found).destination in pool.hostports
        assert memory.resident(found.process) < IDLE


@pytest.mark.differs(go="v1.3 holds every prompt several times: as it came, decoded, and encoded again")
def test_large_prompts_at_once(around: World, main_pool: Pool) -> None:
    """256 streams with a prompt of 1 MB each, all at once: less than 1.5 GB, and every prompt arrives whole."""
    with around.picker(main_pool.name) as found, contextlib.ExitStack() as stack:
        channels = [stack.enter_context(contextlib.closing(found.another_channel())) for _ in range(CONNECTIONS)]
        streams = [stack.enter_context(contextlib.closing(channels[n % CONNECTIONS].stream())) for n in range(STREAMS)]
        pool = stack.enter_context(ThreadPoolExecutor(STREAMS))
        bodies = [completion(f"{number} {PROMPT}") for number in range(STREAMS)]
        # Without their ends, so that all of them are held at the same time.
        list(pool.map(_send, streams, bodies))
        for seen, body in zip(pool.map(_finish, streams), bodies, strict=True):
            assert seen[0] in main_pool.hostports
            assert abs(seen[1] - len(body)) < 20
        assert memory.peak(found.process) < BUSY


def _send(stream: Stream, body: bytes) -> None:
    pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]
    stream.send(wire.request_headers(), *(wire.request_body(each, end=False) for each in pieces))


def _finish(stream: Stream) -> tuple[str, int]:
    """End the prompt; returns where it goes, and how much of it."""
    stream.send(wire.request_body(b""))
    destination = wire.headers_of(stream.receive(60))[wire.DESTINATION]
    size, end = 0, False
    while not end:
        piece, end = wire.piece(stream.receive(60))
        size += len(piece)
    return destination, size


def test_it_does_not_grow(around: World, main_pool: Pool) -> None:
    """Streams with large prompts, one after another, leave nothing behind."""
    with around.picker(main_pool.name) as found:
        _fill(found, 16)
        before = memory.resident(found.process)
        _fill(found, 32)
        assert memory.resident(found.process) - before < 32 * MEGABYTES


def _fill(found: Picker, times: int) -> None:
    for number in range(times):
        assert route(found, completion(f"{number % 16} {PROMPT}")).destination


def test_many_streams(around: World, main_pool: Pool) -> None:
    """Nor do many small ones, whether they end well or not."""
    with around.picker(main_pool.name) as found:
        _many(found, 200)
        before = memory.resident(found.process)
        _many(found, 300)
        assert memory.resident(found.process) - before < 16 * MEGABYTES


def _many(found: Picker, times: int) -> None:
    for number in range(times):
        stream = found.stream()
        stream.send(wire.request_headers(), wire.request_body(completion(str(number)), end=number % 2 == 0))
        stream.close()
