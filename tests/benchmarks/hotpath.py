# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request costs inside of the EPP, and which part of it takes how much. ``python -m benchmarks.hotpath --help``

No socket and no Envoy: bytes as Envoy sends them (:mod:`benchmarks.envoy_frames`) go into the transport, which has
everything behind it that serves in earnest, and what it writes is only counted. Requests come in batches, as they do
under load. Figures are CPU time per request, of the fastest quarter of the batches, the least over the rounds: whatever
else the machine does makes them larger, never smaller. What the garbage collector takes would hide there, and is told
by itself. ``--against`` measures another source tree as well, in turns.

The parts: *transport* is HTTP/2 and gRPC with a service behind it that answers with constants; *parse*, *schedule* and
*routing* are what a decision consists of, called by themselves; *protocol* is what is left. *reading* is one reading of
an endpoint's metrics, with its timer and sockets, from a server in another process.

The image, parts of which are compiled, against the sources:
``python -m lab.images.inside epp env PYTHONPATH=tests python -m benchmarks.hotpath --against .``
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from ports import free_port

import epp
from benchmarks import rig
from benchmarks.envoy_frames import COMPLETION, EVENT, LAST, Answer, EnvoyFrames, streams_answered
from epp import config, plugins
from epp.datalayer import Datastore, ScrapeOptions, Scraper
from epp.extproc import Director, DirectorOptions, StreamService, Tracing, Watchdog
from epp.extproc.machine import NeedDecision
from epp.model import Endpoint, EndpointMetrics
from epp.observe import PoolRecorder, Recorder
from epp.scheduling import Scheduler
from epp.transport import TransportOptions
from epp.transport.h2 import H2Transport
from epp.transport.h2.server import _Peer

PODS = 4
STREAMS = 16
"""Requests at the same time."""
READ_BYTES = 256 * 1024
"""The most that an event loop hands over at once."""
PREFIXES = 32

PLAIN = Answer("application/json", (COMPLETION,))
STREAMED = Answer("text/event-stream", (*(EVENT,) * 99, LAST))
HEADERS = Answer("text/event-stream", ())


@dataclass(frozen=True)
class Case:
    """A kind of request."""

    name: str
    prompt_bytes: int
    answer: Answer
    batches: int


CASES = (
    Case("3.2 KB", 3200, PLAIN, 60),
    Case("220 KB", 220_000, PLAIN, 8),
    Case("3.2 KB, 100 events", 3200, STREAMED, 8),
    Case("3.2 KB, headers only", 3200, HEADERS, 60),
)


class Bodies:
    """Every prompt is new; its first half is shared with others."""

    def __init__(self, size: int, seed: int) -> None:
        half = size // 2
        self._starts = [f"{number:04d} ".encode() + b"shared " * (half // 7) for number in range(PREFIXES)]
        self._rest = b"words of its own " * ((size - half) // 17)
        self._number = seed << 24

    def next(self) -> bytes:
        """A body."""
        self._number += 1
        start = self._starts[self._number % PREFIXES]
        return b'{"model":"bench","prompt":"%b %016x %b","max_tokens":1}' % (start, self._number, self._rest)


class Rooms:
    """All of a picker but its sockets."""

    def __init__(self) -> None:
        self.datastore = Datastore("bench")
        metrics = EndpointMetrics(kv_cache_usage=0.1, block_size=16, num_blocks=10_000, interval=0.05)
        metrics.updated_at = time.monotonic()
        self.endpoints = [
            Endpoint(f"pod-{number}", "default", f"pod-{number}", f"127.9.1.{number}", 8000, metrics=replace(metrics))
            for number in range(PODS)
        ]
        self.datastore.replace(self.endpoints)
        recorder = Recorder()
        cfg = config.default()
        self.scheduler = Scheduler.from_config(cfg, plugins.registry(), self.datastore, PoolRecorder(recorder, "bench"))
        self.options = DirectorOptions(tracing=Tracing())
        self.director = Director(self.scheduler, self.datastore, recorder, self.options)
        self.director.decided = partial(recorder.decisions.note, "bench")
        self.service = StreamService(self.director, recorder, watchdog=Watchdog())


class Sink(asyncio.Transport):
    """Takes everything that is written to it, and keeps it only if it is asked to."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self._kept: list[bytes] | None = [] if keep else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take it."""
        if self._kept is not None:
            self._kept.append(bytes(data))

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Take them all."""
        for part in parts:
            self.write(part)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def close(self) -> None:
        """Nothing to close."""

    def written(self) -> bytes:
        """What was kept."""
        return b"".join(self._kept or ())


class Constant:
    """An exchange that answers each message with a constant of the usual size."""

    interruptible = False
    push: Any = None
    done = False
    _EMPTY: tuple[bytes, ...] = ()

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self._routed = (b"h" * 213, *pieces)
        self._seen = 0

    def receive(self, data: bytes) -> tuple[bytes, ...]:
        """Nothing for headers and body, everything for the request's end, as much as came for the answer."""
        self._seen += 1
        if self._seen < 3:
            return self._EMPTY
        return self._routed if self._seen == 3 else (data[64:],)

    def close(self, code: str) -> None:
        """Nothing to give back."""


class ConstantService:
    """Opens such exchanges."""

    def __init__(self, body_bytes: int) -> None:
        whole, rest = divmod(body_bytes, 62_000)
        self._pieces = (b"b" * 62_020,) * whole + (b"b" * (rest + 20),)

    def open(self, metadata: object = ()) -> Constant:
        """A stream begins."""
        return Constant(self._pieces)


def connect(service: Any, keep: bool = False) -> tuple[_Peer, Sink]:
    """A connection to a service, by way of the transport."""
    peer, sink = _Peer(H2Transport(service, TransportOptions())), Sink(keep)
    peer.connection_made(sink)
    return peer, sink


def reads(parts: list[bytes]) -> list[bytes]:
    """What is read of bytes that are there at the same time."""
    data = b"".join(parts)
    return [data[at : at + READ_BYTES] for at in range(0, len(data), READ_BYTES)]


def batches(case: Case, seed: int) -> tuple[bytes, list[list[bytes]]]:
    """The beginning of a connection, and what is read of it per batch of requests."""
    envoy, bodies = EnvoyFrames(case.answer), Bodies(case.prompt_bytes, seed)
    found = []
    for _ in range(case.batches):
        begun = [envoy.request(bodies.next()) for _ in range(STREAMS)]
        turns = reads([data for _, data in begun])
        answers = [envoy.answer(stream, f"127.9.1.{stream // 2 % PODS}:8000") for stream, _ in begun]
        for together in zip(*answers, strict=True):
            turns += reads(list(together))
        found.append(turns)
    return envoy.greeting, found


def check(rooms: Rooms, case: Case) -> None:
    """One batch whose answers are looked at: a benchmark of errors would say nothing. Raises RigError."""
    peer, sink = connect(rooms.service, keep=True)
    greeting, found = batches(replace(case, batches=1), seed=1)
    peer.data_received(greeting)
    for turn in found[0]:
        peer.data_received(turn)
    answered = streams_answered(sink.written())
    if len(answered) != STREAMS or min(answered.values()) < case.prompt_bytes + sum(map(len, case.answer.pieces)):
        raise rig.RigError(f"{case.name}: not every request was routed: {answered}")
    if rooms.service.streams or any(endpoint.inflight for endpoint in rooms.endpoints):
        raise rig.RigError(f"{case.name}: a request was not given back")


def fastest(seconds: list[float]) -> float:
    """The mean of the fastest quarter."""
    quarter = sorted(seconds)[: max(1, len(seconds) // 4)]
    return sum(quarter) / len(quarter)


class Collections:
    """Seconds that the garbage collector takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __call__(self, phase: str, details: object) -> None:
        """It begins, or has ended."""
        now = time.thread_time()
        if phase == "start":
            self._started = now
        else:
            self.seconds += now - self._started


def exchange(service: Any, case: Case, seed: int) -> tuple[float, float]:
    """Seconds per request of everything from the connection on, and those of the garbage collector."""
    greeting, found = batches(case, seed)
    peer, _ = connect(service)
    peer.data_received(greeting)
    gc.collect()
    collector, seconds = Collections(), []
    gc.callbacks.append(collector)
    for turns in found:
        collected, started = collector.seconds, time.thread_time()
        for turn in turns:
            peer.data_received(turn)
        seconds.append(time.thread_time() - started - (collector.seconds - collected))
    gc.callbacks.remove(collector)
    peer.connection_lost(None)
    return fastest(seconds) / STREAMS, collector.seconds / (len(found) * STREAMS)


def parse(rooms: Rooms, case: Case, seed: int) -> float:
    """Seconds per body."""
    bodies = Bodies(case.prompt_bytes, seed)
    seconds = []
    for _ in range(64):
        body = bodies.next()
        started = time.thread_time()
        rooms.options.parsers.parse("/v1/completions", "application/json", body)
        seconds.append(time.thread_time() - started)
    return fastest(seconds)


def decide(rooms: Rooms, case: Case, seed: int) -> tuple[float, float]:
    """Seconds per decision (from its body to its endpoint, and back), and of it those of the scheduler and plugins."""
    bodies = Bodies(case.prompt_bytes, seed)
    headers = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json", "x-request-id": "1"}
    whole, part = [], []
    for number in range(128):
        need = NeedDecision(headers, bodies.next(), None, announced=True)
        started = time.thread_time()
        ticket = rooms.director.decide(need)
        ticket.finish(200, None)  # type: ignore[union-attr]
        whole.append(time.thread_time() - started)
        request = rooms.director._request(need, rooms.options.parsers.parse("/v1/completions", "", need.body))
        request.prompt = b"%d %b" % (number, request.prompt)  # as new as it was
        started = time.thread_time()
        decision = rooms.scheduler.schedule(request, rooms.datastore.endpoints())
        hold = rooms.datastore.hold(decision.charges)
        rooms.scheduler.pre_request(request, decision)
        hold.release()
        rooms.scheduler.response_complete(request, decision, None)
        part.append(time.thread_time() - started)
    return fastest(whole), fastest(part)


def reading(seconds: float) -> float:
    """Seconds per reading of an endpoint's metrics."""
    return uvloop.run(_reading(seconds))


async def _reading(seconds: float) -> float:
    port, hosts = free_port(), [f"127.9.2.{number + 1}" for number in range(PODS)]
    command = [sys.executable, "-m", "benchmarks.upstream", str(port), *hosts]
    process = rig.Process("upstream", command)
    try:
        process.wait_for(lambda: rig.connectable(port, hosts[-1]))
        datastore = Datastore("bench")
        scraper = Scraper(datastore, ScrapeOptions(interval=0.001))
        count = 0

        def seen(*_: object) -> None:
            nonlocal count
            count += 1

        datastore.on_observed(seen)
        running = asyncio.create_task(scraper.run())
        await asyncio.sleep(0)
        datastore.replace([Endpoint(host, "default", host, host, port) for host in hosts])
        endpoint = datastore.endpoints()[0]
        datastore.acquire(endpoint)  # so that there is traffic
        await asyncio.sleep(0.1)
        count, started = 0, time.thread_time()
        await asyncio.sleep(seconds)
        used = time.thread_time() - started
        running.cancel()
        return used / count
    finally:
        process.close()


def measure(names: list[str], seed: int) -> dict[str, dict[str, float]]:
    """One round: seconds per request by case and part."""
    found: dict[str, dict[str, float]] = {}
    for case in CASES:
        if case.name not in names:
            continue
        rooms = Rooms()
        check(rooms, case)
        exchange(rooms.service, replace(case, batches=max(1, case.batches // 4)), seed + 1)  # caches
        working, collecting = exchange(rooms.service, case, seed + 2)
        parts = {"all": working + collecting, "collector": collecting}
        parts["transport"], _ = exchange(ConstantService(case.prompt_bytes), case, seed + 3)
        parts["parse"] = parse(rooms, case, seed)
        whole, parts["schedule"] = decide(rooms, case, seed + 4)
        parts["routing"] = whole - parts["parse"] - parts["schedule"]
        parts["protocol"] = working - parts["transport"] - whole
        found[case.name] = parts
    if "reading" in names:
        found["reading"] = {"all": reading(1.0)}
    return found


def least(all_rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The least of each figure."""
    return {
        name: {part: min(each[name][part] for each in all_rounds) for part in parts}
        for name, parts in all_rounds[0].items()
    }


def other(tree: Path | None, names: list[str], seed: int) -> dict[str, dict[str, float]]:
    """One round with the sources of a tree, or with what is installed, in a process of its own."""
    here = Path(__file__).resolve().parents[1]
    paths = [*([str(tree / "files" / "epp" / "src")] if tree else []), str(here)]
    command = [sys.executable, "-m", "benchmarks.hotpath", "--json", f"--seed={seed}", "--only", *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    result: dict[str, dict[str, float]] = json.loads(found.stdout)
    return result


def show(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]] | None) -> None:
    """For people: microseconds, and what they were."""
    for name, parts in ours.items():
        print(name)
        for part, seconds in parts.items():
            line = f"  {part:11}{seconds * 1e6:9.1f} µs"
            if theirs is not None:
                old = theirs[name][part]
                line += f"   was {old * 1e6:9.1f} µs, times {seconds / old if old else 1.0:.2f}"
            print(line)


def profile(case: Case, work: Callable[[Any, Case, int], object]) -> None:
    """Where the time goes, function by function. What is called often looks dearer than it is."""
    rooms = Rooms()
    work(rooms.service, case, 1)
    profiler = cProfile.Profile()
    profiler.runcall(work, rooms.service, case, 2)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(45)


def main() -> int:
    """Measure, print."""
    names = [*(case.name for case in CASES), "reading"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hotpath", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--against", type=Path, help="another checkout of this repository, to be measured in turns")
    parser.add_argument("--profile", action="store_true", help="the functions that take the time, instead of figures")
    parser.add_argument("--json", action="store_true", help="one round, in JSON, for --against")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(measure(given.only, given.seed)))
    elif given.profile:
        for case in CASES:
            if case.name in given.only:
                profile(case, exchange)
    else:
        here: Path | None = Path(__file__).resolve().parents[2]
        if here not in Path(epp.__file__).parents:
            here = None  # as in the image, where parts of it are compiled
        ours, theirs = [], []
        for number in range(given.rounds):
            ours.append(other(here, given.only, given.seed + 10 * number))
            if given.against:
                theirs.append(other(given.against.resolve(), given.only, given.seed + 10 * number))
        show(least(ours), least(theirs) if theirs else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
