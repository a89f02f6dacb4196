# SPDX-License-Identifier: GPL-3.0-or-later
"""How pickers bear size: 100, 1 000, 5 000 endpoints, 100 000 cached prefix blocks, pods that come and go, 50 pools.

``python -m benchmarks.scale --help``. A decision is timed from outside, over ext_proc without an Envoy: headers and
a small body go in, the routing comes out. The pickers take turns, and one stands still (SIGSTOP) while the other is
timed: reading thousands of pages, the reference leaves nothing of two cores. A pod's birth is seen when a request that
only this pod may serve is routed, its death when such a request is refused. Pods are objects in the API server that
nobody runs; servers at their addresses show metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from conformance.kit.wait import PATIENCE
from conformance.kit.world import World

from benchmarks import rig, sides
from benchmarks.client import Client
from benchmarks.ratios import percentile, percentile_between
from benchmarks.sides import Side

BOUND_ENDPOINTS, BOUND_DECISION, BOUND_MEMORY, BOUND_DEATH = 5000, 0.005, 1e9, 1.0
"""With so many endpoints: seconds of a decision (p99), bytes, seconds until a death is seen."""
PROMPT = "tell me about the lighthouse and its keeper " * 20
BLOCK_BYTES, PROMPT_BLOCKS = 256, 16
FILL_SECONDS = 60.0
"""For the reference with 5 000 endpoints 100 000 blocks are the work of half an hour."""
WARM_UP_SECONDS, WARM_UP_ALONE_SECONDS, TURN, REFERENCE_TURN = 2.0, 0.1, 50, 10
"""Decisions in a row before the other picker's turn. Before them come some that do not count: a process that has stood
still has to make up for it, which is a matter of this benchmark alone."""
MORE = 4
"""How many times more decisions are timed where they have a bound: a neighbour who disturbs one turn of ten makes a p99
that says nothing."""
PATIENCE.seconds = 120.0  # thousands of pods take a while to be known


@dataclass
class Reading:
    """One picker with so many endpoints. Seconds, bytes."""

    name: str
    endpoints: int
    decisions: list[float] = field(default_factory=list)
    births: list[float] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    prefix_decisions: list[float] = field(default_factory=list)
    """Decisions once the prefix cache's index is full."""
    memory: int = 0
    blocks: int = 0
    """Prefix blocks that it was given to remember before those."""


@contextlib.contextmanager
def standing_still(pids: Sequence[int]) -> Iterator[None]:
    """These processes do nothing meanwhile."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def decide(clients: dict[str, Client], pids: dict[str, int], count: int) -> dict[str, list[float]]:
    """Seconds of so many decisions of ours, and of fewer of the reference, in turns."""
    found: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(0, count, TURN):
        for name, client in clients.items():
            with standing_still([pid for other, pid in pids.items() if other != name]):
                warm = time.monotonic() + (WARM_UP_SECONDS if len(clients) > 1 else WARM_UP_ALONE_SECONDS)
                while time.monotonic() < warm:
                    _decide(client)
                found[name] += [_decide(client) for _ in range(REFERENCE_TURN if name == "go" else TURN)]
    return found


def _decide(client: Client) -> float:
    """Seconds of a decision about a new prompt behind a beginning that all share."""
    return client.decide(f"{PROMPT} {uuid.uuid4()}").seconds


def until(condition: Callable[[], bool], limit: float = 60.0) -> float:
    """Seconds until it is true."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit:
            raise rig.RigError(f"nothing happened for {limit:g} s")
        time.sleep(0.002)
    return time.monotonic() - started


def lives(around: World, pool: str, clients: dict[str, Client], times: int) -> tuple[dict[str, list[float]], ...]:
    """Pods that are born and die: seconds until each picker has seen it, from when the API server has answered."""
    births: dict[str, list[float]] = {name: [] for name in clients}
    deaths: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(times):
        host, pod = around.address(), f"{pool}-extra-{number}"
        around.space.create_pod(pod, host, {"pool": pool})
        for name, seconds in _seen(clients, host, 0).items():
            births[name].append(seconds)
        around.space.delete_pod(pod)
        for name, seconds in _seen(clients, host, 503).items():
            deaths[name].append(seconds)
    return births, deaths


def _seen(clients: dict[str, Client], host: str, status: int) -> dict[str, float]:
    """Seconds until each picker says this of a request that only the pod there may serve; 0 is a routing."""

    def one(client: Client) -> float:
        return until(lambda: client.decide("x", [host]).status == status)

    with ThreadPoolExecutor(len(clients)) as threads:
        return dict(zip(clients, threads.map(one, clients.values()), strict=True))


def fill(client: Client, blocks: int) -> int:
    """Give a picker so many different prefix blocks to remember, or as many as it takes in FILL_SECONDS."""
    end = time.monotonic() + FILL_SECONDS

    def one(_: int) -> int:
        if time.monotonic() > end:
            return 0
        client.decide("".join(str(uuid.uuid4()) for _ in range(PROMPT_BLOCKS * BLOCK_BYTES // 36)))
        return PROMPT_BLOCKS

    with ThreadPoolExecutor(8) as threads:
        return sum(threads.map(one, range(blocks // PROMPT_BLOCKS)))


def measure(count: int, decisions: int, changes: int, blocks: int) -> list[Reading]:
    """Both pickers with so many endpoints, which they share."""
    if count == BOUND_ENDPOINTS:
        decisions *= MORE
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        around = enter(sides.surroundings())
        hosts = [around.address() for _ in range(count)]
        print(f"{count} pods", file=sys.stderr, flush=True)
        enter(sides.pool(around, "scale", hosts))
        running = {name: enter(sides.side(around, name, "scale", count)) for name in ("ours", "go")}
        clients = {name: enter(Client(_port(side))) for name, side in running.items()}
        readings = {name: Reading(name, count) for name in running}
        print("decisions", file=sys.stderr, flush=True)
        pids = {name: side.pid for name, side in running.items()}
        for name, seconds in decide(clients, pids, decisions).items():
            readings[name].decisions = seconds
            print(f"{name}: p50 {percentile(seconds, 50) * 1e3:.2f} ms", file=sys.stderr, flush=True)
        print("births and deaths", file=sys.stderr, flush=True)
        births, deaths = lives(around, "scale", clients, changes)
        for name, side in running.items():
            readings[name].births, readings[name].deaths = births[name], deaths[name]
            print(f"{blocks} prefix blocks: {name}", file=sys.stderr, flush=True)
            with standing_still([pid for other, pid in pids.items() if other != name]):
                readings[name].blocks = fill(clients[name], blocks)
            readings[name].memory = rig.peak_memory_bytes(side.pid)
        # Who stood still for a minute has lost its connections. The first turn is for coming back.
        decide(clients, pids, TURN)
        for name, seconds in decide(clients, pids, decisions).items():
            readings[name].prefix_decisions = seconds
        return list(readings.values())


def _port(side: Side) -> int:
    assert side.picker is not None
    return side.picker.ports.grpc


@contextlib.contextmanager
def many(around: World, count: int, pods: int) -> Iterator[list[str]]:
    """So many pools with so many pods each."""
    with contextlib.ExitStack() as stack:
        names = [f"many-{number}" for number in range(count)]
        for name in names:
            stack.enter_context(sides.pool(around, name, [around.address() for _ in range(pods)]))
        yield names


def measure_pools(count: int, decisions: int) -> Reading:
    """One process of ours that serves many pools; the reference serves one."""
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(sides.surroundings())
        print(f"{count} pools", file=sys.stderr, flush=True)
        names = stack.enter_context(many(around, count, 4))
        more = [f"--pool-name={name}" for name in names[1:]]
        side = stack.enter_context(sides.side(around, "ours", names[0], 4, *more))
        reading = Reading(f"ours, {count} pools", 4 * count)
        for name in names:
            with Client(_port(side), name) as client:
                reading.decisions += decide({name: client}, {}, decisions // count)[name]
        reading.memory = rig.peak_memory_bytes(side.pid)
        return reading


def show(readings: Sequence[Reading]) -> dict[str, str]:
    """A table, and the verdicts by bound."""
    print(
        f"\n{'':16}{'endpoints':>10}{'decision p50':>14}{'p99 ms':>9}{'blocks':>9}{'with them p50':>16}{'p99 ms':>9}",
        end="",
    )
    print(f"{'birth max s':>13}{'death max s':>13}{'MB':>7}")
    for each in readings:
        print(f"{each.name:16}{each.endpoints:>10}", end="")
        for values, widths in ((each.decisions, (14, 9)), (each.prefix_decisions, (16, 9))):
            if values is each.prefix_decisions:
                print(f"{each.blocks:>9}", end="")
            for percent, width in zip((50, 99), widths, strict=True):
                print(f"{percentile(values, percent) * 1e3:{width}.2f}", end="")
        print(f"{max(each.births, default=0):13.2f}{max(each.deaths, default=0):13.2f}{each.memory / 1e6:7.0f}")
    verdicts = {}
    for each in readings:
        if each.name == "ours" and each.endpoints == BOUND_ENDPOINTS:
            for what, values in (("", each.decisions), (f" with {each.blocks} blocks", each.prefix_decisions)):
                low, high = percentile_between(values, 99, TURN)
                print(f"a decision{what}: p99 between {low * 1e3:.2f} and {high * 1e3:.2f} ms")
                limit = f"a decision{what} (p99) in {BOUND_DECISION * 1e3:g} ms"
                verdicts[limit] = _verdict(low, high, BOUND_DECISION)
            verdicts[f"{BOUND_MEMORY / 1e6:g} MB"] = _verdict(each.memory, each.memory, BOUND_MEMORY)
            verdicts[f"a death seen in {BOUND_DEATH:g} s"] = _verdict(max(each.deaths), max(each.deaths), BOUND_DEATH)
    for key, told in verdicts.items():
        print(f"{BOUND_ENDPOINTS} endpoints, {key}: {told}")
    return verdicts


def _verdict(low: float, high: float, bound: float) -> str:
    """Whether a figure is within its bound, as far as can be told."""
    return "met" if high <= bound else "missed" if low > bound else "too noisy"


def main() -> int:
    """Measure, print, keep the raw figures; 1 when a bound was missed, 3 when it was too noisy to tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--endpoints", type=int, nargs="*", default=[100, 1000, 5000])
    parser.add_argument(
        "--decisions",
        type=int,
        default=500,
        help=f"of ours that are timed; with {BOUND_ENDPOINTS} endpoints {MORE} times as many (default %(default)s)",
    )
    parser.add_argument("--changes", type=int, default=5, help="pods that come and go (default %(default)s)")
    parser.add_argument("--prefix-blocks", type=int, default=100_000, help="default %(default)s")
    parser.add_argument("--pools", type=int, default=50, help="pools in one process; 0 leaves it out")
    parser.add_argument("--output", type=Path, help="write the raw figures to this JSON file")
    given = parser.parse_args()
    readings = []
    for count in given.endpoints:
        readings += measure(count, given.decisions, given.changes, given.prefix_blocks)
    if given.pools:
        readings.append(measure_pools(given.pools, given.decisions))
    verdicts = show(readings)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"readings": [asdict(each) for each in readings], "verdicts": verdicts}
        given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    told = set(verdicts.values())
    return 1 if "missed" in told else 3 if "too noisy" in told else 0


if __name__ == "__main__":
    sys.exit(main())
