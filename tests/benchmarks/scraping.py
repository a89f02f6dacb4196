# SPDX-License-Identifier: GPL-3.0-or-later
"""What reading metrics costs: 10, 100 and 1 000 endpoints with pages of 34 KB, idle and busy, ours and the Go EPP.

``python -m benchmarks.scraping --help``. Each picker has pods of its own. While idle they are measured at the same
time, while busy one after the other. How old a metric is when a decision uses it is seen by the model servers: whenever
a completion comes, they know when each of their pages was read last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import load, rig, sides
from benchmarks.ratios import percentile, ratio
from benchmarks.sides import HEADERS_ONLY, Side

PAGE_BYTES = 34_000
BOUND_IDLE, BOUND_COUNT = 0.05, 100
"""Ours ÷ Go, CPU while idle, with so many endpoints."""
BOUND_AGE = 1.0
"""Seconds that a metric may be old when a decision uses it under load."""
SHAPE = load.Shape(prompt_bytes=1000, streams=4)


@dataclass
class Reading:
    """One side with so many endpoints. Cores, seconds, bytes."""

    endpoints: int
    name: str
    idle_cpu: list[float]
    """Round by round."""
    busy_cpu: float
    requests_per_second: float
    scrapes_per_second: float
    """While busy, over all endpoints."""
    age_p50: float
    """Of the page that was read longest ago, at a decision."""
    age_p99: float
    memory: int


def idle(found: Sequence[Side], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Cores that each picker takes while nothing is asked of it."""
    taken: dict[str, list[float]] = {side.name: [] for side in found}
    for _ in range(rounds):
        before = [side.cpu_seconds() for side in found]
        began = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        for side, cpu in zip(found, before, strict=True):
            taken[side.name].append((side.cpu_seconds() - cpu) / passed)
    return taken


def busy(side: Side, host: str, seconds: float) -> dict[str, Any]:
    """Load through one picker, and how old its figures were meanwhile."""
    url = side.gateway(HEADERS_ONLY).url
    load.run(url, SHAPE, seconds / 4, seed=1)
    _ages(host)
    cpu = side.cpu_seconds()
    result = load.run(url, SHAPE, seconds, seed=2)
    used = (side.cpu_seconds() - cpu) / result.seconds
    report = _ages(host)
    oldest = [each[1] for each in report["ages"]]
    return {
        "busy_cpu": used,
        "requests_per_second": len(result.latencies) / result.seconds,
        "scrapes_per_second": report["scrapes"] / result.seconds,
        "age_p50": percentile(oldest, 50),
        "age_p99": percentile(oldest, 99),
        "memory": rig.peak_memory_bytes(side.pid),
    }


def _ages(host: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rig.fetch(f"http://{host}:{sides.PORT}/ages"))
    return found


def measure(count: int, rounds: int, seconds: float) -> list[Reading]:
    """Both pickers with so many endpoints. Each has model servers of its own, so that ages are of its own readings."""
    readings = []
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(sides.surroundings())
        running: list[tuple[Side, list[str]]] = []
        for name in ("ours", "go"):
            hosts = [around.address() for _ in range(count)]
            print(f"{count} pods for {name}", file=sys.stderr, flush=True)
            stack.enter_context(sides.pool(around, f"scrape-{name}", hosts, f"--page-bytes={PAGE_BYTES}"))
            side = stack.enter_context(sides.side(around, name, f"scrape-{name}", count))
            stack.enter_context(sides.gateways(side, hosts, (HEADERS_ONLY,)))
            running.append((side, hosts))
        time.sleep(10)  # what a start costs is not what idleness costs
        print("idle", file=sys.stderr, flush=True)
        resting = idle([side for side, _ in running], rounds, seconds)
        for side, hosts in running:
            print(f"busy: {side.name}", file=sys.stderr, flush=True)
            readings.append(Reading(count, side.name, resting[side.name], **busy(side, hosts[0], seconds)))
    return readings


def show(readings: Sequence[Reading]) -> dict[str, str]:
    """A table and the verdicts; returns those by bound."""
    print(f"\n{'endpoints':>9} {'side':5}{'idle cores':>12}{'busy cores':>12}{'req/s':>8}{'scrapes/s':>11}", end="")
    print(f"{'age p50 s':>11}{'age p99 s':>11}{'MB':>7}")
    for each in readings:
        resting = percentile(each.idle_cpu, 50)
        print(f"{each.endpoints:>9} {each.name:5}{resting:12.3f}{each.busy_cpu:12.3f}", end="")
        print(f"{each.requests_per_second:8.0f}{each.scrapes_per_second:11.0f}", end="")
        print(f"{each.age_p50:11.2f}{each.age_p99:11.2f}{each.memory / 1e6:7.0f}")
    verdicts = {}
    for ours, go in zip(readings[::2], readings[1::2], strict=True):
        found = ratio(ours.idle_cpu, go.idle_cpu)
        print(f"{ours.endpoints} endpoints, idle CPU, ours ÷ Go: {found}")
        if ours.endpoints == BOUND_COUNT:
            verdicts["idle"] = "met" if found.value <= BOUND_IDLE else "missed"
            verdicts["age"] = "met" if ours.age_p99 <= BOUND_AGE else "missed"
    for key, verdict in verdicts.items():
        print(f"{key}: {verdict}")
    return verdicts


def main() -> int:
    """Measure, print, keep the raw figures; 1 when a bound was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scraping", description=__doc__.partition("\n")[0])
    parser.add_argument("--endpoints", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=4, help="of idleness (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the raw figures to this JSON file")
    given = parser.parse_args()
    readings = [reading for count in given.endpoints for reading in measure(count, given.rounds, given.seconds)]
    verdicts = show(readings)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"readings": [asdict(each) for each in readings], "verdicts": verdicts}
        given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int("missed" in verdicts.values())


if __name__ == "__main__":
    sys.exit(main())
