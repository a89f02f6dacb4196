# SPDX-License-Identifier: GPL-3.0-or-later
"""What it brings, and costs, that replicas tell each other what they do: two EPPs of one pool, with and without it.

``python -m benchmarks.replicas --help``. Requests go to the replicas in turn, as a gateway with two connections sends
them. Each conversation asks several times, every time with a longer prompt. A request counts as a hit when it is sent
to an endpoint that has had the conversation's prompt before. One replica alone shows what there is to reach.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ports import free_port

from benchmarks import rig
from benchmarks.client import Client
from benchmarks.ratios import ratio

HOSTS = tuple(f"127.82.0.{number}" for number in range(1, 9))
TURNS = 6
TURN_BYTES = 1000


@dataclass
class Reading:
    """One arrangement. Shares and CPU seconds per request, round by round."""

    name: str
    hits: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def conversations(count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Prompts of conversations that take place at the same time, each with the number of its conversation."""
    chance = random.Random(seed)
    texts = [f"{seed} {number} {uuid.uuid4()} ".ljust(TURN_BYTES, "a") for number in range(count)]
    turns = [number for number in range(count) for _ in range(TURNS)]
    chance.shuffle(turns)
    for number in turns:
        yield number, texts[number]
        texts[number] += f" {uuid.uuid4()} ".ljust(TURN_BYTES, "b")


def measure(clients: Sequence[Client], count: int, seed: int) -> float:
    """The share of hits among the requests that could be one."""
    seen: dict[int, set[str]] = {}
    hits = possible = 0
    for turn, (number, prompt) in enumerate(conversations(count, seed)):
        where = clients[turn % len(clients)].decide(prompt).destination
        if number in seen:
            possible += 1
            hits += where in seen[number]
        seen.setdefault(number, set()).add(where)
    return hits / possible


@contextlib.contextmanager
def replicas(endpoints: Path, count: int, sync: bool) -> Iterator[tuple[list[rig.Epp], list[Client]]]:
    """So many EPPs, and a client of each."""
    ports = [free_port() for _ in range(count)]
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    with contextlib.ExitStack() as stack:
        found = []
        for port in ports:
            flags = [f"--endpoints-file={endpoints}", "--secure-serving=false"]
            flags += [f"--statesync-peers={peers}", f"--statesync-port={port}"] if sync else []
            found.append(stack.enter_context(rig.epp(*flags, image=True)))
        yield found, [stack.enter_context(Client(each.grpc_port)) for each in found]


def run(endpoints: Path, rounds: int, count: int) -> list[Reading]:
    """All arrangements in turns."""
    arrangements = (("one", 1, False), ("two", 2, False), ("two that tell", 2, True))
    readings = [Reading(name) for name, _, _ in arrangements]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(replicas(endpoints, number, sync)) for _, number, sync in arrangements]
        for seed in range(rounds):
            print(f"round {seed + 1} of {rounds}", file=sys.stderr, flush=True)
            for reading, (epps, clients) in zip(readings, running, strict=True):
                before = sum(each.process.cpu_seconds() for each in epps)
                reading.hits.append(measure(clients, count, seed))
                used = sum(each.process.cpu_seconds() for each in epps) - before
                reading.cpu.append(used / (count * TURNS))
    return readings


def show(readings: Sequence[Reading]) -> None:
    """For people."""
    one, apart, together = readings
    for each in readings:
        shares = " ".join(f"{share:.3f}" for share in each.hits)
        print(f"{each.name:14} hits {shares}  CPU µs/request {' '.join(f'{cpu * 1e6:.0f}' for cpu in each.cpu)}")
    print(f"hits, two apart ÷ one: {ratio(apart.hits, one.hits)}")
    print(f"hits, two that tell ÷ one: {ratio(together.hits, one.hits)}")
    print(f"CPU, two that tell ÷ two apart: {ratio(together.cpu, apart.cpu)}")


def main() -> int:
    """Measure, print, keep the raw figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--conversations", type=int, default=150)
    parser.add_argument("--output", type=Path, help="write the raw figures to this JSON file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replicas-") as folder, rig.upstreams(HOSTS, Path(folder)) as file:
        readings = run(file, given.rounds, given.conversations)
    show(readings)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps([asdict(each) for each in readings], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
