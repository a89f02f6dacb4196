# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to bring objects to their state: ``make bench-apply``, or ``python -m benchmarks.apply --help``.

The same 20, 200 and 2 000 objects, unchanged and with one of ten drifted, by apply_set, by kubernetes.core.k8s (with a
list, and a task per object) and by ``kubectl apply --server-side``. The tools take turns, so that whatever else the
machine does falls on all alike. Seconds are those of the tasks; the column "command s" is the whole command, in which
ansible-playbook takes about one second to start, once for all tasks of a play. A task per object is measured once with
200, and not with 2 000, which takes half an hour. The last line is about 200 unchanged objects; if the time did not
suffice for 200 tasks, these count ten times what 20 take.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.apply_page import page
from benchmarks.apply_tools import (
    APPLY_SET,
    K8S_LIST,
    K8S_TASKS,
    ROOT,
    Json,
    Outcome,
    Tool,
    connect,
    drift,
    kubectl_tool,
    objects,
    path,
)
from benchmarks.chart import Bar, chart

SMALL, MIDDLE, LARGE = 20, 200, 2000
ROUNDS = {MIDDLE: 4, SMALL: 3, LARGE: 2}  # in the order of measuring
STATES = ("unchanged", "drifted")


@dataclass
class Case:
    """One tool with so many objects in this state; ``outcomes`` of the rounds so far."""

    tool: Tool
    count: int
    state: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return sorted(outcome.seconds for outcome in self.outcomes)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def whole(self) -> float:
        """Median seconds of the whole command."""
        return statistics.median(outcome.whole for outcome in self.outcomes)

    @property
    def title(self) -> str:
        return f"{self.count} {self.state}, {self.tool.name}"


class Bench:
    """Runs the cases in turns, as long as there is time."""

    def __init__(self, kubeconfig: str, kubectl: str, budget: float, folder: Path) -> None:
        self.kubeconfig = kubeconfig
        self.tools = [APPLY_SET, kubectl_tool(kubectl), K8S_LIST, K8S_TASKS]
        self.client = connect(kubeconfig)
        self.cases: list[Case] = []
        self.left_out: list[str] = []
        self._end = time.monotonic() + budget
        self._budget = budget
        self._folder = folder
        self._prefix = f"bench-{secrets.token_hex(3)}"
        self._namespaces: list[str] = []

    def run(self) -> None:
        """Measure all sizes once, the one of the ratio first; then again, as long as there is time."""
        sets: dict[tuple[str, int], list[Json]] = {}
        for number in range(max(ROUNDS.values())):
            for count in (count for count in ROUNDS if number < ROUNDS[count]):
                tools = [tool for tool in self.tools if count <= tool.largest]
                if not number:
                    sets.update({(tool.name, count): self._make(tool, count) for tool in tools})
                    self.cases.extend(Case(tool, count, s) for s in STATES for tool in tools if s in tool.states)
                cases = [case for case in self.cases if case.count == count]
                # Each round begins with another tool.
                for case in cases[number % len(cases) :] + cases[: number % len(cases)]:
                    if count not in case.tool.slow:
                        self._measure(case, sets[case.tool.name, count])
        # What takes minutes comes last, and once.
        for case in self.cases:
            if case.count in case.tool.slow:
                self._measure(case, sets[case.tool.name, case.count])

    def clean(self) -> None:
        """Delete the namespaces."""
        for namespace in self._namespaces:
            self.client.delete(f"/api/v1/namespaces/{namespace}", "Background")
        self.client.close()

    def _make(self, tool: Tool, count: int) -> list[Json]:
        """The objects in a namespace of their own, as this tool would have made them."""
        name = f"{self._prefix}-{len(self._namespaces)}"
        self._namespaces.append(name)
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.client.apply(f"/api/v1/namespaces/{name}", body, "bench")
        items = objects(count, name)
        self.client.map(lambda item: self.client.apply(path(item), item, tool.manager), items)
        return items

    def _measure(self, case: Case, items: list[Json]) -> None:
        if self._expected(case) > self._end - time.monotonic():
            self.left_out.append(case.title)
            return
        expected = case.state == "drifted"
        if expected:
            drift(self.client, items)
        outcome = case.tool.run(self.kubeconfig, self._folder, items)
        if outcome.changed != expected:
            raise RuntimeError(f"{case.title}: reported changed={outcome.changed}; this measurement means nothing")
        case.outcomes.append(outcome)
        spent = self._budget - (self._end - time.monotonic())
        print(f"[{spent:4.0f} s] {case.title}: {outcome.seconds:.2f} s", flush=True)

    def _expected(self, case: Case) -> float:
        """Seconds that this case will take, judged by itself or by the same tool with fewer objects."""
        alike = [other for other in self.cases if other.tool is case.tool and other.outcomes]
        if case.outcomes or not alike:
            return case.median * 1.2 if case.outcomes else 0.0
        nearest = max(alike, key=lambda other: other.count if other.count <= case.count else 0)
        return nearest.median * max(1.0, case.count / nearest.count)


def main() -> None:
    """Measure, and print a table, and the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.apply", description=__doc__)
    parser.add_argument("--kubeconfig", default=os.environ.get("KUBECONFIG") or str(ROOT / ".lab" / "kubeconfig"))
    parser.add_argument("--kubectl", default=_kubectl(), help="the kubectl to compare with")
    parser.add_argument("--budget", type=float, default=900, help="seconds; what would take longer is left out")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where to write performance-apply.{md,svg}")
    chosen = parser.parse_args()
    for what, given in (("kubeconfig", chosen.kubeconfig), ("kubectl", chosen.kubectl)):
        if not given or not Path(given).exists():
            sys.exit(f"no {what} at {given}: start the lab (make lab-up), or give --{what}")
    with _bench(chosen.kubeconfig, chosen.kubectl, chosen.budget) as bench:
        bench.run()
        report(bench, chosen.folder)


@contextmanager
def _bench(kubeconfig: str, kubectl: str, budget: float) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(kubeconfig, kubectl, budget, Path(folder))
        try:
            yield bench
        finally:
            bench.clean()


def _kubectl() -> str | None:
    """The lab's, of the cluster's own version, else the one in PATH."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inferops-lab" / "bin"
    found = sorted(cache.glob("kubernetes-*/kubectl"), key=lambda program: program.stat().st_mtime)
    return str(found[-1]) if found else shutil.which("kubectl")


def report(bench: Bench, folder: Path) -> None:
    """The table of medians and the chart, printed and as a page of ``folder``; then the last line."""
    measured = sorted(
        (case for case in bench.cases if case.outcomes), key=lambda one: (one.count, STATES.index(one.state))
    )
    lines = [HEADING, *(_row(case, measured) for case in measured)]
    for title in dict.fromkeys(bench.left_out):
        lines.append(f"not all rounds fit into the time: {title} ({bench.left_out.count(title)} left out)")
    last = last_line(measured, bench.tools[1])
    print("", *lines, sep="\n")
    folder.mkdir(parents=True, exist_ok=True)
    note = "median of the task's seconds; lines from the fastest to the slowest round; logarithmic scale"
    (folder / "performance-apply.svg").write_text(
        chart("Bringing objects to their state", note, _bars(bench, measured))
    )
    (folder / "performance-apply.md").write_text(page(lines, last, bench.client.get("/version")["gitVersion"]))
    print(f"page and chart: {folder}/performance-apply.md, .svg")
    print(last)


HEADING = f"{'objects':>7} {'state':<10} {'tool':<24} {'median s':>9} {'min':>7} {'max':>7}  n  / apply_set  command s"


def _row(case: Case, measured: list[Case]) -> str:
    ours = find(measured, APPLY_SET, case.count, case.state)
    ratio = f"{case.median / ours.median:.1f}" if ours else "-"
    low, high = case.seconds[0], case.seconds[-1]
    return (
        f"{case.count:>7} {case.state:<10} {case.tool.name:<24} {case.median:>9.2f} {low:>7.2f} {high:>7.2f} "
        f"{len(case.seconds):>2} {ratio:>12} {case.whole:>10.2f}"
    )


def _bars(bench: Bench, measured: list[Case]) -> list[tuple[str, list[Bar]]]:
    groups: dict[str, list[Bar]] = {}
    for case in measured:
        group = groups.setdefault(f"{case.count} objects, {case.state}", [])
        series = bench.tools.index(case.tool)
        group.append(Bar(case.tool.name, series, case.median, case.seconds[0], case.seconds[-1]))
    return list(groups.items())


def find(cases: list[Case], tool: Tool, count: int, state: str = STATES[0]) -> Case | None:
    """The case of this tool, if it was measured."""
    return next((one for one in cases if (one.tool, one.count, one.state) == (tool, count, state)), None)


def last_line(cases: list[Case], kubectl: Tool) -> str:
    """The two ratios for 200 unchanged objects."""
    ours, theirs = find(cases, APPLY_SET, MIDDLE), find(cases, kubectl, MIDDLE)
    all_tasks, few_tasks = find(cases, K8S_TASKS, MIDDLE), find(cases, K8S_TASKS, SMALL)
    if not (ours and theirs and few_tasks):
        sys.exit("the time was too short for the ratios: give a larger --budget")
    per_object = all_tasks.median if all_tasks else few_tasks.median / SMALL * MIDDLE
    first, second = per_object / ours.median, ours.median / theirs.median
    return f"ratio kubernetes.core/apply_set={first:.1f} apply_set/kubectl={second:.2f}"


if __name__ == "__main__":
    main()
