# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request costs: Envoy with our EPP, with the Go EPP v1.3 and with none, in turns, under the same load.

``make bench`` and ``make bench-quick`` run it on the cluster in use; ``python -m benchmarks.datapath --help``. Every
round measures all sides one after the other, in changing order, and a ratio is made of figures of the same rounds, so
that whatever else the machine does falls on all alike. CPU is user + system time of the picker's process, without
what it takes when idle; latency added is against the Envoy that asks nobody, in the same round.

Exit status: 0 all bounds met, 1 one missed, 3 the machine was too noisy to tell.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import load, rig, sides
from benchmarks.load import Shape
from benchmarks.ratios import Ratio, percentile, ratio
from benchmarks.sides import FULL_DUPLEX, HEADERS_ONLY, MODES, Mode, Side

PODS = 4
IDLE_SECONDS = 4.0
NOISY = 0.5
"""Width of a confidence interval, as a share of the ratio, above which a ratio near its bound says nothing."""


@dataclass(frozen=True)
class Case:
    """One measurement. ``bounds``: figure (``cpu``, ``added_p50``, ``added_p99``) to the most that ours ÷ Go may be."""

    mode: Mode
    shape: Shape
    bounds: dict[str, float] = field(default_factory=dict)
    against: Mode | None = None
    """The mode in which the reference does the same work; None is the same mode."""

    @property
    def name(self) -> str:
        """What people read."""
        answer = "streamed answer" if self.shape.streamed else "plain answer"
        size, streams = self.shape.prompt_bytes / 1000, self.shape.streams
        return f"{self.mode.name}, {size:g} KB, {answer}, {streams} stream{'s' if streams > 1 else ''}"


LATENCY_SMALL = {"added_p50": 0.7, "added_p99": 0.7}
LATENCY_LARGE = {"added_p50": 0.4, "added_p99": 0.4}
QUICK = (
    Case(FULL_DUPLEX, Shape(3200, 16), {"cpu": 0.40}),
    Case(FULL_DUPLEX, Shape(3200, 32), LATENCY_SMALL),
    Case(FULL_DUPLEX, Shape(220_000, 16), {"cpu": 0.20}),
    Case(FULL_DUPLEX, Shape(220_000, 32), LATENCY_LARGE),
    Case(FULL_DUPLEX, Shape(3200, 32, streamed=True), {"cpu": 0.60}),
    Case(HEADERS_ONLY, Shape(3200, 32, streamed=True), {"cpu": 0.15}, against=FULL_DUPLEX),
)


def everything() -> tuple[Case, ...]:
    """All cases: those with bounds, then the other sizes, stream counts and modes."""
    cases = list(QUICK)
    known = {(case.mode, case.shape) for case in cases}
    for size in (1000, 3200, 30_000, 220_000, 1_000_000):
        for streams in (1, 32, 256):
            if (FULL_DUPLEX, Shape(size, streams)) not in known:
                cases.append(Case(FULL_DUPLEX, Shape(size, streams)))
    cases += [Case(mode, Shape(3200, 32)) for mode in MODES[1:]]
    return tuple(cases)


@dataclass
class Sample:
    """One side in one round. Seconds, and CPU seconds per request."""

    requests: int
    seconds: float
    p50: float
    p90: float
    p99: float
    first_p50: float
    cpu: float
    envoy_cpu: float


Samples = dict[str, list[Sample]]
"""By the name of the side; the rounds are in the same order for all."""


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int
    seconds: float


def measure(side: Side, mode: Mode, shape: Shape, seconds: float, seed: int) -> Sample:
    """Load on one side for a while."""
    gateway = side.gateway(mode)
    cpu, envoy = side.cpu_seconds(), gateway.process.cpu_seconds()
    result = load.run(gateway.url, shape, seconds, seed)
    count = len(result.latencies)
    used = side.cpu_seconds() - cpu - side.idle_cpu * result.seconds
    p50, p90, p99 = (percentile(result.latencies, each) for each in (50, 90, 99))
    first = percentile(result.first, 50)
    envoy = (gateway.process.cpu_seconds() - envoy) / count
    return Sample(count, result.seconds, p50, p90, p99, first, used / count, envoy)


def rounds(case: Case, all_sides: Sequence[Side], plan: Plan, seed: int) -> Samples:
    """All rounds of a case."""
    found: Samples = {side.name: [] for side in all_sides}
    taking = [(side, _mode(case, side)) for side in all_sides]
    turns = [(side, mode) for side, mode in taking if mode is not None]
    for side, mode in turns:  # connections, caches
        measure(side, mode, case.shape, plan.seconds / 4, seed)
    for number in range(plan.rounds):
        for side, mode in turns if number % 2 else reversed(turns):
            seed += 1
            found[side.name].append(measure(side, mode, case.shape, plan.seconds, seed))
    return {name: samples for name, samples in found.items() if samples}


def _mode(case: Case, side: Side) -> Mode | None:
    mode = case.against if case.against and side.name == "go" else case.mode
    return mode if side.supports(mode) else None


def figures(samples: Samples, name: str) -> dict[str, list[float]]:
    """Of one side, round by round: CPU per request, latency added (both in seconds), seconds per request."""
    none = samples["none"]
    own = samples[name]
    return {
        "cpu": [each.cpu for each in own],
        "added_p50": [each.p50 - without.p50 for each, without in zip(own, none, strict=True)],
        "added_p90": [each.p90 - without.p90 for each, without in zip(own, none, strict=True)],
        "added_p99": [each.p99 - without.p99 for each, without in zip(own, none, strict=True)],
        "time": [each.seconds / each.requests for each in own],
    }


def compare(samples: Samples) -> dict[str, Ratio]:
    """Ours over the reference, figure by figure; empty when the reference took no part."""
    if "go" not in samples:
        return {}
    ours, theirs = figures(samples, "ours"), figures(samples, "go")
    return {key: ratio(ours[key], theirs[key]) for key in ours}


def judge(case: Case, ratios: dict[str, Ratio]) -> dict[str, str]:
    """``met``, ``missed`` or ``too noisy`` for every bound."""
    found = {}
    for key, bound in case.bounds.items():
        one = ratios[key]
        if one.spread > NOISY and one.low <= bound <= one.high:
            found[key] = "too noisy"
        else:
            found[key] = "met" if one.value <= bound else "missed"
    return found


def show(case: Case, samples: Samples, ratios: dict[str, Ratio], verdicts: dict[str, str]) -> None:
    """One case, for people."""
    print(f"\n{case.name}")
    print(f"  {'':8}{'CPU µs':>9}{'Envoy µs':>10}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'first ms':>10}{'req/s':>9}")
    for name, own in samples.items():
        middle = {key: statistics.median(getattr(each, key) for each in own) for key in asdict(own[0])}
        cpu = f"{middle['cpu'] * 1e6:9.0f}" if name != "none" else f"{'':9}"
        latencies = "".join(f"{middle[key] * 1e3:9.2f}" for key in ("p50", "p90", "p99"))
        rate = statistics.median(each.requests / each.seconds for each in own)
        print(
            f"  {name:8}{cpu}{middle['envoy_cpu'] * 1e6:10.0f}{latencies}{middle['first_p50'] * 1e3:10.2f}{rate:9.0f}"
        )
    if ratios:
        print("  ours ÷ Go: " + ", ".join(f"{key} {value}" for key, value in ratios.items()))
    for key, verdict in verdicts.items():
        print(f"  {key} ≤ {case.bounds[key]:.2f}: {verdict}", flush=True)


@contextlib.contextmanager
def programs(tls: bool, modes: Sequence[Mode], flag: str) -> Iterator[tuple[Side, ...]]:
    """Model servers, both pickers, and every Envoy. ``flag`` is one more flag of ours."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        around = enter(sides.surroundings())
        hosts = [around.address() for _ in range(PODS)]
        enter(sides.pool(around, "bench", hosts))
        ours = enter(sides.side(around, f"ours={flag}" if flag else "ours", "bench", PODS, tls=tls))
        ours.name = "ours"
        go = enter(sides.side(around, "go", "bench", PODS, tls=tls))
        found = (Side("none", "Envoy alone", None), ours, go)
        for each in found:
            enter(sides.gateways(each, hosts, modes, tls))
        for each in found[1:]:
            before = each.cpu_seconds()
            time.sleep(IDLE_SECONDS)
            each.idle_cpu = (each.cpu_seconds() - before) / IDLE_SECONDS
        yield found


def run(cases: Sequence[Case], plan: Plan, tls: bool, flag: str) -> list[dict[str, Any]]:
    """Measure all cases; the records that the report is made of."""
    modes = tuple(dict.fromkeys(mode for case in cases for mode in (case.mode, case.against) if mode))
    records = []
    with programs(tls, modes, flag) as found:
        print(f"{PODS} pods, {'TLS' if tls else 'plaintext'} between Envoy and picker; {plan.rounds} rounds")
        for number, case in enumerate(cases):
            print(f"[{number + 1}/{len(cases)}] {case.name}", file=sys.stderr, flush=True)
            samples = rounds(case, found, plan, seed=(number + 1) * 100)
            ratios = compare(samples)
            verdicts = judge(case, ratios)
            show(case, samples, ratios, verdicts)
            records.append(_record(case, samples, ratios, verdicts, tls))
        memory = {side.name: rig.peak_memory_bytes(side.pid) for side in found[1:]}
    print("\nmost memory: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in memory.items()))
    return [{**record, "memory": memory} for record in records]


def _record(
    case: Case, samples: Samples, ratios: dict[str, Ratio], verdicts: dict[str, str], tls: bool
) -> dict[str, Any]:
    return {
        "case": case.name,
        "mode": case.mode.name,
        "tls": tls,
        **asdict(case.shape),
        "bounds": case.bounds,
        "verdicts": verdicts,
        "ratios": {key: asdict(value) for key, value in ratios.items()},
        "samples": {name: [asdict(each) for each in own] for name, own in samples.items()},
    }


def verdict(records: Sequence[dict[str, Any]]) -> int:
    """The exit status: 1 when a bound was missed, 3 when one could not be told, 0 otherwise."""
    told = [each for record in records for each in record["verdicts"].values()]
    missed, noisy = told.count("missed"), told.count("too noisy")
    print(f"bounds: {told.count('met')} met, {missed} missed, {noisy} too noisy to tell")
    return 1 if missed else 3 if noisy else 0


def main() -> int:
    """Measure, print tables, keep the raw figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datapath", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the cases that have bounds")
    parser.add_argument("--tls", action="store_true", help="TLS between Envoy and the pickers")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each case (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of load on a side in a round (default %(default)s)")
    parser.add_argument("--flag", default="", help="one more flag for ours, for example --transport=grpcio")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--output", type=Path, help="write the raw figures to this JSON file")
    given = parser.parse_args()
    cases = [case for case in (QUICK if given.quick else everything()) if given.only in case.name]
    if not cases:
        parser.error(f"no case's name contains {given.only!r}")
    records = run(cases, Plan(given.rounds, given.seconds), given.tls, given.flag)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return verdict(records)


if __name__ == "__main__":
    sys.exit(main())
