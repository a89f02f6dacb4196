# SPDX-License-Identifier: GPL-3.0-or-later
"""What people ask of a model over time, and how the first tokens of its answers are timed."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmarks import placement, replay
from benchmarks.rig import RigError
from benchmarks.workloads import Ask, Conversations, Mooncake, SharedPrefix, Workload, WorkloadError, text

TRACE = [
    {"timestamp": 0, "input_length": 700, "output_length": 9, "hash_ids": [7, 8]},
    {"timestamp": 3000, "input_length": 600, "output_length": 500, "hash_ids": [7, 9]},
    {"timestamp": 6000, "input_length": 99_000, "output_length": 1, "hash_ids": list(range(194))},
    {"timestamp": 90_000, "input_length": 1, "output_length": 1, "hash_ids": [5]},
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in TRACE))
    return file


@pytest.mark.parametrize("workload", [SharedPrefix(rate=20), Conversations(people=20)], ids=["shared", "conversations"])
def test_a_seed_says_what_is_asked_and_a_salt_with_which_words(workload: Workload) -> None:
    one, same, other, later = workload(1, "a", 30), workload(1, "a", 30), workload(1, "b", 30), workload(2, "a", 30)
    assert one == same
    assert [(each.at, len(each.prompt)) for each in one] == [(each.at, len(each.prompt)) for each in other]
    assert not {each.prompt[:100] for each in one} & {each.prompt[:100] for each in other}
    assert [each.at for each in one] != [each.at for each in later]
    assert [each.at for each in one] == sorted(each.at for each in one)
    assert one[-1].at < 30
    for each in one:
        body = json.loads(each.body("m"))
        assert (body["model"], body["prompt"], body["max_tokens"]) == ("m", each.prompt.decode(), each.output)


def test_shared_prefixes_come_at_their_rate_and_begin_alike() -> None:
    asks = SharedPrefix(rate=50, groups=4, prompts=2)(1, "a", 40)
    assert 1800 < len(asks) < 2200
    assert {len(each.prompt) for each in asks} == {4 * 7200}
    assert len({each.prompt[: 4 * 6000] for each in asks}) == 4
    assert len({each.prompt for each in asks}) == 8


def test_a_conversation_goes_on_from_what_was_said() -> None:
    asks = Conversations(people=1, pause=1.0, turns=4)(3, "a", 60)
    going_on = [later.prompt.startswith(earlier.prompt) for earlier, later in itertools.pairwise(asks)]
    assert going_on.count(True) > 2 * going_on.count(False) > 0, "three of four turns go on, then another one begins"
    assert len({each.prompt[:4000] for each in asks}) == 1, "a system prompt that all share"


def test_a_trace_keeps_its_times_lengths_and_beginnings(trace: Path) -> None:
    first, second = Mooncake(trace, speed=3, most_output=100)(1, "a", 20)
    assert (first.at, second.at) == (0, 1)
    assert (len(first.prompt), len(second.prompt)) == (4 * 700, 4 * 600)
    assert (first.output, second.output) == (9, 100)
    assert first.prompt[: 4 * 512] == second.prompt[: 4 * 512] == text("a 7", 512)
    assert first.prompt[4 * 512 :] != second.prompt[4 * 512 :]


@pytest.mark.parametrize("content", [None, "no trace\n", '{"timestamp": 1}\n', "[1]\n"])
def test_what_is_no_trace_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "trace.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(WorkloadError, match=r"trace\.jsonl"):
        Mooncake(file, speed=1)(1, "a", 20)


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = b'data: {"usage":{"prompt_tokens":800,"prompt_tokens_details":{"cached_tokens":640}}}\n\ndata: [DONE]\n\n'


@contextmanager
def server(*parts: bytes, pause: float = 0.1, together: int = 1) -> Iterator[str]:
    """Answers every request with these parts, one after the other with a pause before each, once so many have come
    ``together``; yields its URL."""
    come: list[asyncio.Future[None]] = []
    loop = asyncio.new_event_loop()
    port: list[int] = []
    ready = threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
            come.append(loop.create_future())
            if len(come) == together:
                for each in come:
                    each.set_result(None)
            elif len(come) < together:
                await come[-1]
            for part in parts:
                await asyncio.sleep(pause)
                writer.write(part)

    async def main() -> None:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.append(listening.sockets[0].getsockname()[1])
        ready.set()

    loop.set_exception_handler(lambda _, context: None)  # the client hangs up
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(main(), loop)
    assert ready.wait(5)
    try:
        yield f"http://127.0.0.1:{port[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_an_answer_is_timed_to_its_first_and_last_token() -> None:
    whole = [HEAD, chunk(b'data: {"text":"a"}\n\n'), chunk(USAGE)[:-1], b"\n0\r\n", b"\r\n"]
    with server(*whole) as url:
        late, later = replay.run(url, [b"{}", b"{}"], [0.0, 0.05])
    assert (late.tokens, late.cached) == (800, 640)
    # The server's pauses are never shorter than they should be; how late something is noticed depends on the machine.
    assert late.first >= 0.2, "headers are no token"
    assert late.last >= 0.5, "the end comes last"
    assert late.first <= late.last - 0.1, "the first token is there long before the end"
    assert (late.due, later.due) == (0.0, 0.05)


def test_a_refusal_is_no_answer() -> None:
    with server(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno", pause=0.0) as url:
        (refused,) = replay.run(url, [b"{}"], [0.0])
    assert math.isinf(refused.first)
    reading = placement.Reading("w", "n")
    placement.note(reading, [refused, replay.Answer(0.0, 0.5, 1.0, 100, 40)])
    assert (reading.requests, reading.refused, reading.mean, reading.hits) == (2, 1, [0.5], [0.4])
    with pytest.raises(RigError, match="of 1 requests none was answered"):
        placement.note(reading, [refused])


def test_the_roles_weights_are_those_that_it_has() -> None:
    found = placement.role()
    for name in ("prefix-cache-scorer", "kv-cache-utilization-scorer", "queue-scorer"):
        assert f"pluginRef: {name}" in found


def test_requests_wait_for_nobody() -> None:
    asks = [Ask(0.0, b"x", 1), Ask(0.01, b"x", 1), Ask(0.02, b"x", 1)]
    with server(HEAD, chunk(b"data: x\n\n") + b"0\r\n\r\n", pause=0.0, together=3) as url:
        answers = replay.run(url, [each.body("m") for each in asks], [each.at for each in asks])
    assert all(each.last < math.inf for each in answers), "the server answers nobody before the third has asked"
