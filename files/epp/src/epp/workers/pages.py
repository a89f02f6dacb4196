# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of all processes as one page: what is counted adds up, whoever counted it.

Workers hand over their figures and not their pages, so that nothing is parsed, and each name is made once. A worker
that has ended leaves behind what it had counted when somebody looked last: a counter must not go back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from epp.observe import Recorder
from epp.observe.figures import Figures
from epp.observe.series import State

CPU_SECONDS = "process_cpu_seconds"
States = list[State]
"""The states of all figures of a process, in the order of :meth:`Figures.all`."""


def states(recorder: Recorder) -> States:
    """What one process has counted. May run in another thread than the rest: it only reads."""
    recorder.measure()
    return [figure.state() for figure in recorder.figures.all()]


class Page:
    """All processes' metrics."""

    def __init__(self, recorder: Recorder, gather: Callable[[], Mapping[int, States]]) -> None:
        """``recorder`` is the parent's; ``gather`` asks the workers, and returns what they said by their process ids.
        It is called in another thread than the event loop's."""
        self._recorder, self._gather = recorder, gather
        self._known: dict[int, States] = {}
        self._left = Figures()
        """What workers that are gone have counted."""
        self._processes = _Processes()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._registry.register(self._processes)
        PlatformCollector(registry=self._registry)

    def render(self) -> bytes:
        """All of them in Prometheus' text format. Not in the event loop's thread."""
        return generate_latest(self._registry)

    def gone(self, pid: int) -> None:
        """A worker has ended."""
        self._processes.gone(pid)
        for figure, state in zip(self._left.all(), self._known.pop(pid, ()), strict=False):
            if not figure.gauge:
                figure.add(state)

    def came(self, pid: int) -> None:
        """A worker is there."""
        self._processes.pids[pid] = 0.0

    def collect(self) -> Iterator[Metric]:
        """Every figure under every name; prometheus-client calls this."""
        for pid, found in self._gather().items():
            if pid in self._processes.pids:
                self._known[pid] = found
        figures = Figures()
        merge(figures, states(self._recorder), [*self._known.values(), [each.state() for each in self._left.all()]])
        for figure in figures.all():
            yield from figure.collect()


def merge(into: Figures, parent: States, workers: Iterable[States]) -> None:
    """Put together what all have counted.

    What is known of the endpoints, the source and the leader is the parent's to tell. Of what the workers tell each
    other, or hear all the same, each has the sum already, or nearly so: the largest is taken.
    """
    own = (into.queue, into.source_up, into.leader, into.info, into.poll_errors, into.extract_errors)
    mine = {id(each) for each in (*own, into.workers, into.worker_restarts, *into.pool.values())}
    shared = (into.prefix_size, into.peers, into.revision_share)
    heard = (into.kv_admissions, into.kv_evictions, into.kv_skipped)  # every worker listens to the engines itself
    largest = {id(each) for each in (*shared, *heard)}
    for figure, state in zip(into.all(), parent, strict=True):
        figure.add(state)
    for found in workers:
        for figure, state in zip(into.all(), found, strict=True):
            if id(figure) not in mine:
                figure.add(state, id(figure) in largest)


class _Processes:
    """Memory, CPU time and open files of parent and workers together, by prometheus-client's names."""

    def __init__(self) -> None:
        self.pids: dict[int, float] = {}
        """The workers, and the CPU seconds that each had when somebody looked last."""
        self._left = 0.0
        """CPU seconds of workers that are gone."""

    def gone(self, pid: int) -> None:
        """A worker has ended."""
        self._left += self.pids.pop(pid, 0.0)

    def collect(self) -> Iterator[Metric]:
        """The sums; the start and the limit of open files are the parent's."""
        sums = {each.name: (each, _value(each)) for each in _of(os.getpid())}
        for pid in list(self.pids):
            for each in _of(pid):
                first, total = sums.get(each.name, (each, 0.0))
                if each.name == CPU_SECONDS:
                    if pid in self.pids:
                        self.pids[pid] = _value(each)
                elif each.name not in ("process_start_time_seconds", "process_max_fds"):
                    sums[each.name] = first, total + _value(each)
        for name, (family, total) in sums.items():
            if name == CPU_SECONDS:
                spent = total + sum(list(self.pids.values())) + self._left
                yield CounterMetricFamily(name, family.documentation, value=spent)
            else:
                yield GaugeMetricFamily(name, family.documentation, value=total)


def _of(pid: int) -> Iterable[Metric]:
    found: Iterable[Metric] = ProcessCollector(pid=lambda: pid, registry=None).collect()
    return found


def _value(family: Metric) -> float:
    return float(family.samples[0].value)
