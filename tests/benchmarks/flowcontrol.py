# SPDX-License-Identifier: GPL-3.0-or-later
"""What flow control costs: memory per request that waits, and time per dispatch. ``python -m benchmarks.flowcontrol``

Memory: this many ext_proc streams with all that belongs to them (exchange, parsed request, place in the queue) wait in
one process, without the transport's own buffers; the difference of the process's resident memory is told, and how much
of it are the bodies themselves.

Dispatch: the queue is full, one answer after another ends, and each time one request goes: the core's choice, the look
at the saturation of all endpoints, its metrics. What scheduling itself costs is left out, as it is the same without
flow control: the first endpoint is taken. CPU time, medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import HttpBody, HttpHeaders, ProcessingRequest

from epp import config, plugins
from epp.datalayer import Datastore
from epp.extproc import Director, StreamService, Watchdog
from epp.flowcontrol import FlowController
from epp.model import Charge, Endpoint, EndpointMetrics, InferenceRequest
from epp.observe import PoolRecorder, Recorder
from epp.queueing import flow_controller
from epp.scheduling import Scheduler

CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- {{type: random-picker}}
- {{type: {fairness}, name: fair}}
- {{type: {detector}}}
flowControl:
  defaultRequestTTL: 0s
  defaultPriorityBand: {{maxRequests: 0, maxBytes: "0", fairnessPolicyRef: fair}}
"""
STRICT, TURNS, PROGRAMS = "global-strict-fairness-policy", "round-robin-fairness-policy", "program-aware-fairness"
UTILIZATION, CONCURRENCY = "utilization-detector", "concurrency-detector"
MEGABYTE = 1e6
BOUND_REQUESTS, BOUND_MEMORY, BOUND_MICROSECONDS = 20_000, 200e6, 100
"""So many waiting requests cost so many bytes at most, and one dispatch so many microseconds."""


class Rooms:
    """The parts of a picker that flow control works with, and endpoints that are full."""

    def __init__(self, fairness: str, detector: str, endpoints: int) -> None:
        cfg = config.load(CONFIG.format(fairness=fairness, detector=detector), "benchmark")
        self.store = Datastore("pool")
        self.endpoints = [
            Endpoint(f"e{i}", "", f"p{i}", f"10.0.{i // 250}.{i % 250 + 1}", 8000) for i in range(endpoints)
        ]
        self.store.replace(self.endpoints)
        recorder = Recorder()
        scheduler = Scheduler.from_config(cfg, plugins.registry(), self.store, PoolRecorder(recorder, "pool"), 1)
        watchdog = Watchdog()
        queue = flow_controller(cfg, scheduler, self.store, recorder, watchdog)
        assert queue is not None
        self.queue: FlowController[Any] = queue
        director = Director(scheduler, self.store, recorder, None, None, queue)
        self.service = StreamService(director, recorder, None, watchdog)

    def load(self, part: float) -> None:
        """Every endpoint is this full, by the word of any detector."""
        for endpoint in self.endpoints:
            endpoint.inflight = round(100 * part)
            waiting, running = round(5 * part), 10_000  # so that what is in flight counts as seen
            now = time.monotonic()
            endpoint.metrics = EndpointMetrics(waiting, running, updated_at=now, interval=3600.0)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def messages(number: int, body: int) -> tuple[bytes, bytes]:
    """Headers and body of a request as Envoy sends them; every hundredth request is of the same flow."""
    headers = {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        ":authority": "models.example.com",
        "content-type": "application/json",
        "user-agent": "openai-python/1.99",
        "x-request-id": f"{number:032x}",
        "x-llm-d-inference-fairness-id": f"tenant-{number % 100}",
    }
    fields = [HeaderValue(key=key, raw_value=value.encode()) for key, value in headers.items()]
    prompt = f"{number} " + "x" * body
    text = json.dumps({"model": "llama", "messages": [{"role": "user", "content": prompt}]}).encode()
    return (
        ProcessingRequest(request_headers=HttpHeaders(headers=HeaderMap(headers=fields))).SerializeToString(),
        ProcessingRequest(request_body=HttpBody(body=text, end_of_stream=True)).SerializeToString(),
    )


@dataclass(frozen=True)
class Memory:
    """What so many waiting requests take."""

    requests: int
    total: int
    bodies: int


async def memory(requests: int, body: int) -> Memory:
    """Let requests wait, and see what it takes."""
    rooms = Rooms(STRICT, CONCURRENCY, endpoints=10)
    rooms.load(1.0)
    gc.collect()
    before, size = resident(), 0
    streams: list[tuple[Any, Any]] = []
    for number in range(requests):
        exchange = rooms.service.open()
        headers, text = messages(number, body)
        size += len(text)
        exchange.receive(headers)
        streams.append((exchange, exchange.receive(text)))
    tasks = [asyncio.ensure_future(pending) for _, pending in streams]
    await asyncio.sleep(0)
    gc.collect()
    found = Memory(requests, resident() - before, size)
    assert rooms.queue.core.requests == requests
    rooms.queue.close()
    await asyncio.gather(*tasks)
    return found


@dataclass(eq=False)
class Waiting:
    """A request that goes to the first endpoint."""

    rooms: Rooms
    request: InferenceRequest

    def grant(self) -> None:
        """Take a place."""
        charges = [Charge(self.rooms.endpoints[0])]
        self.rooms.store.hold(charges)
        self.rooms.queue.dispatched(self)

    def refused(self, code: str) -> None:
        """There is nothing to be told."""

    def evict(self, rejection: Exception) -> None:
        """Nobody is."""


async def dispatch(fairness: str, detector: str, endpoints: int, flows: int, requests: int) -> float:
    """Microseconds per dispatch while so many requests wait in so many flows."""
    rooms = Rooms(fairness, detector, endpoints)
    rooms.load(1.0)
    numbers = itertools.count()

    def put() -> Any:
        number = next(numbers)
        asked = InferenceRequest(
            str(number), {}, model="m", target_model="m", size=1000, fairness_id=f"f{number % flows}"
        )
        return rooms.queue.submit(Waiting(rooms, asked))

    waiting = [put() for _ in range(requests)]
    rooms.load(0.5)
    spent, count = 0.0, min(2000, requests // 2)
    for _ in range(count):
        started = time.thread_time()
        rooms.queue._one()
        spent += time.thread_time() - started
        rooms.endpoints[0].inflight = 50
    assert rooms.queue.core.requests == requests - count
    rooms.queue.close()
    await asyncio.gather(*waiting, return_exceptions=True)
    return spent / count * 1e6


CASES = [
    (STRICT, UTILIZATION, 10, 1),
    (STRICT, UTILIZATION, 10, 20_000),
    (STRICT, CONCURRENCY, 10, 100),
    (TURNS, UTILIZATION, 10, 100),
    (TURNS, UTILIZATION, 10, 20_000),
    (PROGRAMS, UTILIZATION, 10, 10),
    (STRICT, UTILIZATION, 100, 100),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep the raw figures; 1 when a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=BOUND_REQUESTS, help="requests that wait (%(default)s)")
    parser.add_argument("--body", type=int, default=2000, help="bytes of a prompt (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per dispatch figure (%(default)s)")
    parser.add_argument("--output", type=Path, help="write the raw figures to this JSON file")
    asked = parser.parse_args(arguments)
    found = asyncio.run(memory(asked.requests, asked.body))
    total, bodies = found.total / MEGABYTE, found.bodies / MEGABYTE
    print(f"{found.requests} requests that wait: {total:.0f} MB, of it {bodies:.0f} MB of bodies")
    print(f"\n{'fairness':34}{'detector':24}{'endpoints':>10}{'flows':>8}{'us per dispatch':>18}")
    cases: list[dict[str, Any]] = []
    for fairness, detector, endpoints, flows in CASES:
        rounds = [
            asyncio.run(dispatch(fairness, detector, endpoints, flows, asked.requests)) for _ in range(asked.rounds)
        ]
        cases.append({"fairness": fairness, "detector": detector, "endpoints": endpoints, "flows": flows})
        cases[-1]["microseconds"] = rounds
        median = statistics.median(rounds)
        print(f"{fairness:34}{detector:24}{endpoints:>10}{flows:>8}{median:>18.1f}", flush=True)
    slowest = max(statistics.median(each["microseconds"]) for each in cases)
    met = {
        f"{BOUND_REQUESTS} requests that wait cost {BOUND_MEMORY / MEGABYTE:.0f} MB at most": (
            asked.requests >= BOUND_REQUESTS and found.total <= BOUND_MEMORY
        ),
        f"a dispatch costs {BOUND_MICROSECONDS} us at most": slowest <= BOUND_MICROSECONDS,
    }
    verdicts = {key: "met" if value else "missed" for key, value in met.items()}
    print(*(f"{key}: {verdict}" for key, verdict in verdicts.items()), sep="\n")
    if asked.output:
        record = {"memory": asdict(found), "cases": cases, "verdicts": verdicts}
        asked.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int("missed" in verdicts.values())


if __name__ == "__main__":
    sys.exit(main())
