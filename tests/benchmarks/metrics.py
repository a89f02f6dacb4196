# SPDX-License-Identifier: GPL-3.0-or-later
"""What metrics cost on the way of a request, beside a counter's increment. ``python -m benchmarks.metrics``

Each event of a request is reported to the recorder, which changes one or more figures by it. How many those are is
counted by looking at all figures before and after the event, and its CPU time is divided by that. The measure is the
increment of a counter of prometheus-client with labels, the way its users write it: ``requests.labels(...).inc()``;
each round times both in turn. Exit status: 0 when no figure costs more than that, 1 when one does, 3 when the machine
was too noisy to tell.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from benchmarks.ratios import Ratio, ratio
from epp.model import Endpoint, Usage
from epp.observe import Recorder
from epp.observe.series import Value

CALLS = 2_000
Event = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """One event: the figures that it changes, nanoseconds for each of them, and their ratio to an increment."""

    name: str
    figures: int
    nanoseconds: float
    ratio: Ratio


def events(recorder: Recorder) -> Iterator[tuple[str, Event, Event]]:
    """The events of a request by name, each with what has to be done before it, which is not timed."""
    endpoint = Endpoint("e", "ns", "pod", "10.0.0.1", 8000)
    usage = Usage(1000, 200, 100)
    begun: list[object] = []

    def nothing() -> None:
        """No preparation."""

    def request() -> object:
        return recorder.request("llama", "llama-v2", 3200)

    def begin() -> None:
        begun.clear()
        made = recorder.request("llama", "llama-v2", 3200)
        made.piece(True)
        made.piece(True)
        begun.append(made)

    yield "stream opened", recorder.stream_opened, nothing
    yield "request parsed", request, nothing
    timed = recorder.timer("Scorer", "queue-scorer", "queue-scorer")
    yield "plugin called", lambda: timed(2e-6), nothing
    yield "prefix looked up", lambda: recorder.prefix_match("prefix-cache-scorer", 2000, 4000), nothing
    yield "endpoint chosen", lambda: recorder.scheduled(5e-5, "llama-v2", endpoint), nothing
    yield "own work done", lambda: recorder.processing("request", 1e-4), nothing
    yield "piece of the answer", lambda: begun[0].piece(True), begin  # type: ignore[attr-defined]
    yield "answer ended", lambda: begun[0].finished(4000, usage), begin  # type: ignore[attr-defined]
    yield "request failed", lambda: begun[0].failed("ModelServerError"), begin  # type: ignore[attr-defined]
    yield "stream closed", lambda: recorder.stream_closed(0.2, "OK"), nothing


def changed(recorder: Recorder, event: Event, before: Event) -> int:
    """How many figures an event changes."""
    before()  # once without counting, so that all figures are there
    event()
    before()
    old = _numbers(recorder)
    event()
    return sum(new != old.get(key) for key, new in _numbers(recorder).items())


def _numbers(recorder: Recorder) -> dict[tuple[int, tuple[str, ...]], float]:
    """Every figure's number: of a histogram, how much it has counted."""
    found: dict[tuple[int, tuple[str, ...]], float] = {}
    for figure in recorder.figures.all():
        for labels, value in figure.items():
            found[id(figure), labels] = value.value if isinstance(value, Value) else sum(value.counts)
    return found


def seconds(event: Event, before: Event, calls: int) -> float:
    """CPU seconds of so many calls of an event, without what comes before each."""
    once, empty = _loop(event, before, calls), _loop(None, before, calls)
    return max(once - empty, 0.0)


def _loop(event: Event | None, before: Event, calls: int) -> float:
    started = time.thread_time()
    if event is None:
        for _ in range(calls):
            before()
    else:
        for _ in range(calls):
            before()
            event()
    return time.thread_time() - started


def measure(rounds: int, calls: int = CALLS) -> list[Cost]:
    """Time every event and the increment in turns."""
    recorder = Recorder()
    counter = Counter("requests", "Requests.", ["model", "target", "flow", "priority"], registry=CollectorRegistry())

    def increment() -> None:
        counter.labels("llama", "llama-v2", "default-flow", "0").inc()

    costs = []
    for name, event, before in events(recorder):
        figures = changed(recorder, event, before)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(seconds(event, before, calls) / figures)
            theirs.append(seconds(increment, lambda: None, calls))
        costs.append(Cost(name, figures, statistics.median(ours) / calls * 1e9, ratio(ours, theirs)))
    return costs


def verdict(costs: Sequence[Cost]) -> int:
    """The exit status."""
    if any(cost.ratio.low > 1.0 for cost in costs):
        return 1
    return 3 if any(cost.ratio.high > 1.0 for cost in costs) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds of each event (%(default)s)")
    asked = parser.parse_args(arguments)
    costs = measure(asked.rounds)
    print("| event | figures changed | ns for each | ÷ a counter's increment (95 %) |\n|---|---|---|---|")
    for cost in costs:
        print(f"| {cost.name} | {cost.figures} | {cost.nanoseconds:.0f} | {cost.ratio} |")
    status = verdict(costs)
    print({0: "no figure costs more than an increment", 1: "a figure costs more", 3: "too noisy to tell"}[status])
    return status


if __name__ == "__main__":
    sys.exit(main())
