# SPDX-License-Identifier: GPL-3.0-or-later
"""What a second worker brings: one picker with one process that decides, one with two, and, beside them, two pickers of
one process each that know nothing of each other; in turns.

``python -m benchmarks.workers --help``. Conversations ask several times, every time with a longer prompt, on whichever
connection is free; a request counts as a hit when it goes to an endpoint that has had the conversation's prompt before.
Every process that decides has as many streams.

The load comes from as many processes as decide, so that it is never what limits.
Two workers over one says something of the bound only where the picker had a core for each worker beside the generators
and whatever else the machine did; the output says how many it had. With ``--cores 0.5`` each process that decides gets
half of a core, and a machine of two cores has enough. Two workers over two strangers says it on any machine: strangers
share nothing but the machine, so on two free cores they do twice what one does, and two workers do that share of it
which they do here, where both lack the same. On a machine of eight cores or more there are no strangers.

Exit status: 0 the bounds are met, 1 one is missed, 2 nothing could be measured, 3 it was too noisy to tell.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import direct, rig
from benchmarks.ration import rationed
from benchmarks.ratios import Ratio, percentile, ratio

HOSTS = tuple(f"127.86.0.{number}" for number in range(1, 9))
TURNS = 6
CONNECTIONS, STREAMS = 4, 16
"""For each worker; streams for each connection."""
CONVERSATIONS = 1000
"""At the same time, all generators' together: nobody reads an answer and asks again within milliseconds. All fit into
the endpoints' caches."""
THROUGHPUT = 1.7
"""Two workers over one, with two free cores."""
HITS = 0.02
"""How much fewer of the requests may be hits."""
FEW = "too few free cores"
PLENTY = 8
"""Cores with which two workers over one needs no strangers to be believed."""
WARM_UP_SECONDS = 3.0
REST_SECONDS = 0.5
"""Before each round, so that nothing of the last one is left."""


class Conversations(direct.Source):
    """So many at the same time; one that has ended makes room for a new one."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        """``size`` is the bytes that each turn adds."""
        self._chance = random.Random(seed)
        self._size = size
        self._texts = [b""] * count
        self._seen: list[set[bytes]] = [set() for _ in range(count)]
        self._turns = [0] * count
        self._idle = list(range(count))
        self.hits = self.possible = 0

    def next(self) -> tuple[int, bytes]:
        """The next turn of a conversation that waits for no answer."""
        at = self._chance.randrange(len(self._idle))
        self._idle[at], self._idle[-1] = self._idle[-1], self._idle[at]
        number = self._idle.pop()
        if self._turns[number] == TURNS:
            self._texts[number], self._seen[number], self._turns[number] = b"", set(), 0
        self._turns[number] += 1
        self._texts[number] += f" {uuid.uuid4()} ".encode().ljust(self._size, b"w")
        return number, self._texts[number]

    def went(self, number: int, destination: bytes) -> None:
        """One is answered."""
        seen = self._seen[number]
        if seen:
            self.possible += 1
            self.hits += destination in seen
        seen.add(destination)
        self._idle.append(number)


@dataclass
class Reading:
    """One arrangement, round by round."""

    workers: int
    pickers: int = 1
    """Those that know nothing of each other, each with so many workers."""
    throughput: list[float] = field(default_factory=list)
    """Requests a second, as measured."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds per request, all processes."""
    parent: list[float] = field(default_factory=list)
    """Of it those of the process that decides nothing; 0 where there is none."""
    client: list[float] = field(default_factory=list)
    """CPU seconds per request of the generators."""
    p99: list[float] = field(default_factory=list)
    """Seconds until the decision."""
    hits: list[float] = field(default_factory=list)
    """The share of hits among the requests that could be one."""
    free: list[float] = field(default_factory=list)
    """Cores that neither the generators nor anybody else used."""
    cores: float = 1.0
    """What each process that decides may have of them."""
    machine: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Cores that there are."""

    @property
    def deciding(self) -> int:
        """Processes that decide."""
        return self.workers * self.pickers

    @property
    def name(self) -> str:
        """What people read."""
        return f"{self.pickers} strangers" if self.pickers > 1 else f"{self.workers} worker{'s' * (self.workers > 1)}"


def processes(epp: rig.Epp) -> list[int]:
    """The picker's processes, the one first that was started first."""
    pid = epp.process.popen.pid
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def busy_seconds() -> float:
    """CPU seconds that all processes of this machine have used."""
    fields = [int(each) for each in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What one generator sent, and what came of it."""

    seconds: float
    latencies: list[float]
    """Seconds until each decision."""
    source: Conversations
    """As they are now."""
    hits: int
    possible: int
    """Requests that could be a hit."""
    cpu: float
    """CPU seconds that it used."""


def generate(ports: Sequence[int], seconds: float, source: Conversations) -> Load:
    """One generator's part: its conversations go on, with the streams of one process that decides."""
    own, hits, possible = time.process_time(), source.hits, source.possible
    result = direct.run(ports, source, CONNECTIONS // len(ports), STREAMS, seconds)
    own = time.process_time() - own
    return Load(result.seconds, result.latencies, source, source.hits - hits, source.possible - possible, own)


@dataclass
class Arrangement:
    """Pickers that are measured, and the conversations that they take part in. These go on from round to round, so that
    caches are as full in the first as in the last."""

    reading: Reading
    epps: list[rig.Epp]
    sources: list[Conversations]

    def load(self, seconds: float) -> list[Load]:
        """As many generators as processes that decide; each has connections to all pickers."""
        part = partial(generate, [epp.grpc_port for epp in self.epps], seconds)
        with ProcessPoolExecutor(len(self.sources), multiprocessing.get_context("fork")) as pool:
            loads = list(pool.map(part, self.sources))
        self.sources = [each.source for each in loads]
        return loads


def measure(arrangement: Arrangement, seconds: float) -> None:
    """One round."""
    reading = arrangement.reading
    pids = [pid for epp in arrangement.epps for pid in processes(epp)]
    before, busy, began = [rig.cpu_seconds(pid) for pid in pids], busy_seconds(), time.perf_counter()
    loads = arrangement.load(seconds)
    took = time.perf_counter() - began
    used = [rig.cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True)]
    busy = busy_seconds() - busy - sum(used)
    latencies = [each for part in loads for each in part.latencies]
    count = len(latencies)
    reading.throughput.append(sum(len(each.latencies) / each.seconds for each in loads))
    reading.cpu.append(sum(used) / count)
    reading.parent.append(used[0] / count if reading.workers > 1 else 0.0)
    reading.client.append(sum(each.cpu for each in loads) / count)
    reading.p99.append(percentile(latencies, 99))
    reading.hits.append(sum(each.hits for each in loads) / sum(each.possible for each in loads))
    reading.free.append(max(0.0, reading.machine - busy / took))


def run(endpoints: Path, rounds: int, seconds: float, size: int, cores: float = 1.0) -> list[Reading]:
    """All arrangements in turns, the first of them another one in every round."""
    readings = [Reading(1, cores=cores), Reading(2, cores=cores)]
    if readings[0].machine < PLENTY:
        readings.append(Reading(1, pickers=2, cores=cores))
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        arrangements = []
        for reading in readings:
            epps = [enter(rig.serving(endpoints, f"--workers={reading.workers}")) for _ in range(reading.pickers)]
            part = CONVERSATIONS // reading.deciding
            sources = [Conversations(part, size, number) for number in range(reading.deciding)]
            arrangements.append(Arrangement(reading, epps, sources))
        if cores < 1.0:
            epps = [epp for each in arrangements for epp in each.epps]
            enter(rationed([pid for epp in epps for pid in processes(epp)[1:] or processes(epp)], cores))
        for each in arrangements:
            each.load(WARM_UP_SECONDS)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for each in arrangements if number % 2 else reversed(arrangements):
                time.sleep(REST_SECONDS)
                measure(each, seconds)
    return readings


def verdict(found: Ratio, bound: float) -> str:
    """Whether at least ``bound`` is reached, as far as can be told."""
    if found.low >= bound:
        return "met"
    return "missed" if found.high < bound else "too noisy"


def judge(readings: Sequence[Reading]) -> list[tuple[str, Ratio, str]]:
    """What is bounded: name, ratio, verdict."""
    one, two, *strangers = readings
    measured, hits = ratio(two.throughput, one.throughput), ratio(two.hits, one.hits)
    enough = all(sorted(each.free)[len(each.free) // 2] >= each.deciding * each.cores for each in (one, two))
    found = [("throughput, two workers ÷ one", measured, verdict(measured, THROUGHPUT) if enough else FEW)]
    for pair in strangers:
        beside = ratio([2 * each for each in two.throughput], pair.throughput)
        found.append(("throughput, two workers ÷ half of two strangers", beside, verdict(beside, THROUGHPUT)))
    return [*found, ("hits, two workers ÷ one", hits, verdict(hits, 1 - HITS))]


def show(readings: Sequence[Reading]) -> None:
    """For people."""
    for each in readings:
        print(each.name)
        for name, values, scale, form in (
            ("requests/s", each.throughput, 1, ".0f"),
            ("CPU µs/request", each.cpu, 1e6, ".0f"),
            ("of it the parent", each.parent, 1e6, ".0f"),
            ("client's CPU µs/request", each.client, 1e6, ".0f"),
            ("p99 ms", each.p99, 1e3, ".1f"),
            ("hits", each.hits, 1, ".3f"),
            ("free cores", each.free, 1, ".1f"),
        ):
            print(f"  {name:36}{' '.join(format(value * scale, form) for value in values)}")
    one, two, *strangers = readings
    for other in (one, *strangers):
        cpu, p99 = ratio(two.cpu, other.cpu), ratio(two.p99, other.p99)
        print(f"{two.name} ÷ {other.name}: CPU per request {cpu}, p99 {p99}")
    for name, found, told in judge(readings):
        print(f"{name}: {found}: {told}")
    if any(told == FEW for _, _, told in judge(readings)):
        print(
            f"fewer than {two.workers * two.cores:g} cores were free: two workers ÷ one does not say whether the bound "
            "is met; see --cores"
        )


def main() -> int:
    """Measure, print, keep the raw figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__.partition("\n")[0])
    # Many short ones: what disturbs a machine lasts for seconds, and then spoils few of them.
    parser.add_argument("--rounds", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=1.0, help="per round and arrangement")
    parser.add_argument("--bytes", type=int, default=1000, help="that each turn of a conversation adds to its prompt")
    parser.add_argument("--cores", type=float, default=1.0, help="what each process that decides gets of a core")
    parser.add_argument("--output", type=Path, help="write the raw figures to this JSON file")
    given = parser.parse_args()
    if not 0.0 < given.cores <= 1.0:
        parser.error("--cores is a part of a core: above 0, and 1 at most")
    try:
        with tempfile.TemporaryDirectory(prefix="workers-") as folder, rig.upstreams(HOSTS, Path(folder)) as file:
            readings = run(file, given.rounds, given.seconds, given.bytes, given.cores)
    except rig.RigError as error:
        parser.exit(2, f"error: {error}\n")
    show(readings)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps([asdict(each) for each in readings], indent=1) + "\n", encoding="utf-8")
    verdicts = {told for _, _, told in judge(readings)} - {FEW}
    return 1 if "missed" in verdicts else 0 if verdicts == {"met"} else 3


if __name__ == "__main__":
    sys.exit(main())
