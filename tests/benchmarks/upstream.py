# SPDX-License-Identifier: GPL-3.0-or-later
"""A model server that costs next to nothing, so that a benchmark measures what stands before it.

``python -m benchmarks.upstream HOST PORT``: answers every request, when its body has ended, with one short completion,
and ``GET /metrics`` with an idle vLLM's figures.
"""

from __future__ import annotations

import asyncio
import re
import sys

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)

_COMPLETION = (
    b'{"id":"cmpl-1","object":"text_completion","model":"bench","choices":[{"index":0,"text":"ok","finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":800,"completion_tokens":1,"total_tokens":801}}'
)
_METRICS = (
    b"vllm:num_requests_waiting 0\nvllm:num_requests_running 0\nvllm:kv_cache_usage_perc 0.1\n"
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="10000"} 1\n'
)


def _response(kind: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


COMPLETION = _response(b"application/json", _COMPLETION)
METRICS = _response(b"text/plain", _METRICS)


class Server(asyncio.Protocol):
    """One connection. Requests come one after the other, as from any HTTP/1.1 proxy."""

    def __init__(self) -> None:
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A proxy has connected."""
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer if the request is whole."""
        self._data += data
        head = self._data.find(b"\r\n\r\n") + 4
        if head < 4 or not self._whole(head):
            return
        self._transport.write(METRICS if self._data.startswith(b"GET /metrics") else COMPLETION)
        self._data.clear()

    def _whole(self, head: int) -> bool:
        if _CHUNKED.search(self._data, 0, head):
            return self._data.endswith(b"0\r\n\r\n")
        length = _LENGTH.search(self._data, 0, head)
        return len(self._data) - head >= (int(length[1]) if length else 0)


async def _serve(host: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Server, host, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
