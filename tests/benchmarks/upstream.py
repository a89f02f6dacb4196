# SPDX-License-Identifier: GPL-3.0-or-later
"""Model servers that cost next to nothing, so that a benchmark measures what stands before them.

``python -m benchmarks.upstream PORT HOST [HOST ...]`` plays one server on each host. A completion is answered when its
body has ended: with one short answer, or (``"stream":true``) with ``--chunks`` events, ``--interval`` seconds apart, so
that each is a message of its own for whoever looks at them. ``GET /metrics`` is an idle vLLM's page.

``GET /ages`` (any host) tells how old the pages that have been read were when completions came, and forgets it:
``{"scrapes": count, "ages": [[newest, oldest], ...]}``, seconds, over all hosts, one pair per completion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from dataclasses import dataclass, field

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": *true')

_COMPLETION = (
    b'{"id":"cmpl-1","object":"text_completion","model":"bench","choices":[{"index":0,"text":"ok","finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":800,"completion_tokens":1,"total_tokens":801}}'
)
_EVENT = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"bench","choices":[],'
    b'"usage":{"prompt_tokens":800,"completion_tokens":100,"total_tokens":900}}\n\ndata: [DONE]\n\n'
)
_METRICS = (
    b'vllm:num_requests_waiting{engine="0",model_name="bench"} 0.0\n'
    b'vllm:num_requests_running{engine="0",model_name="bench"} 0.0\n'
    b'vllm:kv_cache_usage_perc{engine="0",model_name="bench"} 0.1\n'
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="10000"} 1.0\n'
)


def _response(kind: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


COMPLETION = _response(b"application/json", _COMPLETION)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT, LAST = _chunk(_EVENT), _chunk(_LAST) + b"0\r\n\r\n"


def page(size: int) -> bytes:
    """A metrics page of at least ``size`` bytes: the figures that pickers read lie among histograms, as in vLLM."""
    lines: list[bytes] = []
    length, number = len(_METRICS), 0
    while length < size:
        line = b'vllm:time_to_first_token_seconds_bucket{engine="%d",le="%d.5",model_name="bench"} %d.0\n'
        lines.append(line % (number // 20, number % 20, number * 17))
        length += len(lines[-1])
        number += 1
    middle = len(lines) // 2
    return b"".join([*lines[:middle], _METRICS, *lines[middle:]])


@dataclass
class Scrapes:
    """When each host's page was read last, and how old that was whenever a completion came."""

    last: dict[str, float] = field(default_factory=dict)
    count: int = 0
    ages: list[tuple[float, float]] = field(default_factory=list)

    def read(self, host: str) -> None:
        """A page is read."""
        self.last[host] = time.monotonic()
        self.count += 1

    def used(self) -> None:
        """A completion has come: whoever sent it here has just used what it knew of all hosts."""
        if self.last:
            now = time.monotonic()
            self.ages.append((now - max(self.last.values()), now - min(self.last.values())))

    def report(self) -> bytes:
        """What was seen since the last report."""
        found = json.dumps({"scrapes": self.count, "ages": self.ages}).encode()
        self.count, self.ages = 0, []
        return found


@dataclass(frozen=True)
class Behaviour:
    """What all hosts do alike."""

    metrics: bytes
    chunks: int
    interval: float
    scrapes: Scrapes


class Server(asyncio.Protocol):
    """One connection. Requests come one after the other, as from any HTTP/1.1 proxy."""

    def __init__(self, host: str, behaviour: Behaviour) -> None:
        self._host = host
        self._behaviour = behaviour
        self._data = bytearray()
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A proxy has connected."""
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer if the request is whole."""
        self._data += data
        head = self._data.find(b"\r\n\r\n") + 4
        if head < 4 or not self._whole(head):
            return
        self._answer(head)
        self._data.clear()

    def _answer(self, head: int) -> None:
        behaviour = self._behaviour
        if self._data.startswith(b"GET /metrics"):
            behaviour.scrapes.read(self._host)
            self._transport.write(behaviour.metrics)
        elif self._data.startswith(b"GET /ages"):
            self._transport.write(_response(b"application/json", behaviour.scrapes.report()))
        else:
            behaviour.scrapes.used()
            if _STREAM.search(self._data, max(head, len(self._data) - 200)):
                self._transport.write(STREAM_HEAD)
                self._left = behaviour.chunks
                self._event()
            else:
                self._transport.write(COMPLETION)

    def _event(self) -> None:
        if self._transport.is_closing():
            return
        self._left -= 1
        self._transport.write(EVENT if self._left else LAST)
        if self._left:
            asyncio.get_running_loop().call_later(self._behaviour.interval, self._event)

    def _whole(self, head: int) -> bool:
        if _CHUNKED.search(self._data, 0, head):
            return self._data.endswith(b"0\r\n\r\n")
        length = _LENGTH.search(self._data, 0, head)
        return len(self._data) - head >= (int(length[1]) if length else 0)


async def _serve(port: int, hosts: list[str], behaviour: Behaviour) -> None:
    loop = asyncio.get_running_loop()
    for host in hosts:
        await loop.create_server(lambda host=host: Server(host, behaviour), host, port)  # type: ignore[misc]
    await loop.create_future()


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("host", nargs="+")
    parser.add_argument("--page-bytes", type=int, default=0, help="size of the metrics page")
    parser.add_argument("--chunks", type=int, default=100, help="events of a streamed answer")
    parser.add_argument("--interval", type=float, default=0.005, help="seconds between them")
    given = parser.parse_args()
    metrics = _response(b"text/plain; version=0.0.4", page(given.page_bytes))
    uvloop.run(_serve(given.port, given.host, Behaviour(metrics, given.chunks, given.interval, Scrapes())))


if __name__ == "__main__":
    main()
