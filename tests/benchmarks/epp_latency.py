# SPDX-License-Identifier: GPL-3.0-or-later
"""What the EPP adds to a request's latency: ``make bench-latency``, or ``python -m benchmarks.epp_latency --help``.

Two Envoys stand before the same four model servers (which answer at once): one without external processing, one with
the EPP in full duplex. Short rounds alternate between them, so that whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from benchmarks import rig

PODS = 4
NETWORK = "127.77.0.1"


@dataclass
class Side:
    """One of the two ways, and what was measured on it. Latencies are seconds."""

    name: str
    url: str
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    epp_cpu: float = 0.0

    def percentile(self, percent: float) -> float:
        """Latency that ``percent`` of the requests did not exceed, in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


def main() -> None:
    """Measure, and print one table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.epp_latency", description=__doc__)
    options.add_argument("--streams", type=int, nargs="+", default=[1, 32], help="requests at the same time")
    options.add_argument("--requests", type=int, default=300, help="requests per round and stream count")
    options.add_argument("--rounds", type=int, default=6, help="rounds on each side")
    options.add_argument("--prompt-bytes", type=int, default=3200)
    options.add_argument("--plaintext", action="store_true", help="no TLS between Envoy and EPP")
    chosen = options.parse_args()
    with _programs(not chosen.plaintext) as (epp, without, with_epp):
        link = "plaintext" if chosen.plaintext else "TLS"
        print(f"{chosen.prompt_bytes} bytes of prompt, {PODS} pods, {link} between Envoy and EPP")
        print(f"{'streams':>7}  {'':12}{'p50 ms':>9}{'p99 ms':>9}{'requests/s':>12}{'EPP CPU us/request':>20}")
        for streams in chosen.streams:
            sides = (Side("without EPP", without), Side("with EPP", with_epp))
            for side in sides:  # connections, caches, imports
                _round(side, epp, streams, streams * 5, chosen.prompt_bytes)
                side.latencies.clear()
                side.seconds = side.epp_cpu = 0.0
            for number in range(chosen.rounds):
                print(f"round {number + 1} of {chosen.rounds} at {streams} streams", file=sys.stderr)
                for side in sides if number % 2 else reversed(sides):
                    _round(side, epp, streams, chosen.requests, chosen.prompt_bytes)
            _report(streams, *sides)


def _report(streams: int, without: Side, with_epp: Side) -> None:
    for side in (without, with_epp):
        count = len(side.latencies)
        cpu = f"{side.epp_cpu / count * 1e6:20.0f}" if side is with_epp else ""
        line = f"{side.percentile(50):9.3f}{side.percentile(99):9.3f}{count / side.seconds:12.0f}{cpu}"
        print(f"{streams:>7}  {side.name:12}{line}")
    added = [with_epp.percentile(p) - without.percentile(p) for p in (50, 99)]
    ratio = [with_epp.percentile(p) / without.percentile(p) for p in (50, 99)]
    print(f"{streams:>7}  {'added':12}{added[0]:9.3f}{added[1]:9.3f}")
    print(f"{streams:>7}  {'ratio':12}{ratio[0]:9.2f}{ratio[1]:9.2f}")


@contextlib.contextmanager
def _programs(tls: bool) -> Iterator[tuple[rig.Epp, str, str]]:
    """The EPP, the URL of the Envoy without it, and the URL of the one with it."""
    with contextlib.ExitStack() as stack:
        hostports = []
        prefix, _, last = NETWORK.rpartition(".")
        for index in range(PODS):
            host = f"{prefix}.{int(last) + index}"
            port = rig.free_port(host)
            hostports.append(f"{host}:{port}")
            stack.enter_context(_pod(host, port))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epp-latency-")))
        file = rig.write_endpoints(folder / "endpoints.yaml", hostports)
        epp = stack.enter_context(rig.epp(f"--endpoints-file={file}", f"--secure-serving={str(tls).lower()}"))
        pods = tuple(hostports)
        without = stack.enter_context(rig.envoy(rig.EnvoyOptions(pods, None)))
        with_epp = stack.enter_context(rig.envoy(rig.EnvoyOptions(pods, epp.grpc_port, tls=tls)))
        yield epp, without, with_epp


@contextlib.contextmanager
def _pod(host: str, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.upstream", host, str(port)]
    process = rig.Process("upstream", command, {"PYTHONPATH": str(rig.REPOSITORY / "tests")})
    try:
        process.wait_for(lambda: rig.connectable(port, host))
        yield
    finally:
        process.close()


def _round(side: Side, epp: rig.Epp, streams: int, requests: int, prompt_bytes: int) -> None:
    cpu, started = epp.process.cpu_seconds(), time.perf_counter()
    side.latencies += uvloop.run(_clients(side.url, streams, requests, prompt_bytes))
    side.seconds += time.perf_counter() - started
    side.epp_cpu += epp.process.cpu_seconds() - cpu


async def _clients(url: str, streams: int, requests: int, prompt_bytes: int) -> list[float]:
    numbers = iter(range(requests))
    results = await asyncio.gather(*(_client(url, numbers, prompt_bytes) for _ in range(streams)))
    return [latency for latencies in results for latency in latencies]


async def _client(url: str, numbers: Iterator[int], prompt_bytes: int) -> Sequence[float]:
    """One connection, one request at a time. The first waits for the connection, and is not counted."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    latencies = []
    await _request(reader, writer, 0, prompt_bytes)
    for number in numbers:
        started = time.perf_counter()
        await _request(reader, writer, number, prompt_bytes)
        latencies.append(time.perf_counter() - started)
    writer.close()
    return latencies


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, prompt_bytes: int) -> None:
    prompt = f"{number:08d} ".ljust(prompt_bytes, "x")
    body = b'{"model":"bench","prompt":"%b","max_tokens":1}' % prompt.encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    writer.write(head % len(body) + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise rig.RigError(f"the gateway answered {answer.partition(b'\r\n')[0].decode()}")
    if b"chunked" in answer:
        await reader.readuntil(b"0\r\n\r\n")
    else:
        length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))


if __name__ == "__main__":
    main()
