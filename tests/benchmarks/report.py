# SPDX-License-Identifier: GPL-3.0-or-later
"""The raw figures of all benchmarks as tables and charts: ``docs/performance.md`` and what lies beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chart import Bar, chart
from benchmarks.ratios import Ratio, percentile, ratio
from benchmarks.workers import Reading, judge

Record = dict[str, Any]
FIGURES = ("cpu", "added_p50", "added_p99", "time")
HEADINGS = ("CPU per request", "latency added, p50", "latency added, p99", "time per request")
COMMANDS = {
    "datapath": "python -m benchmarks.datapath --rounds 4 --seconds 1.5",
    "datapath-tls": "python -m benchmarks.datapath --quick --tls",
    "placement": "python -m benchmarks.placement",
    "scraping": "python -m benchmarks.scraping",
    "scale": "python -m benchmarks.scale",
    "replicas": "python -m benchmarks.replicas",
    "workers": "python -m benchmarks.workers --cores 0.5",
    "flowcontrol": "python -m benchmarks.flowcontrol",
}
INTRODUCTION = """\
# What the endpoint picker costs

`make bench` printed every figure here but those of real vLLM, and wrote this page; `make bench-quick` repeats what has
bounds of the data path. The EPP of this repository and the Go EPP of GAIE v1.3.0 (built from its module) ran side by
side, in turns, with the same scorers (queue, KV cache, prefix cache), endpoints and load, behind the same Envoy. The
machine is small and shared: times are of little worth, and ratios are what counts: ours ÷ Go, with the 95 % confidence
interval over the rounds. A section that names another machine was measured there. The raw figures lie in
`performance/`.
"""

_PLACEMENT = """\
Eight simulated model servers with vLLM's scheduler and prefix cache, the times of a 32B model (20 000 tokens of prompts
a second) and 307 000 tokens of KV cache each. Requests come when they are due; times are in milliseconds, medians over
the rounds; "cached" is the part of the prompts' tokens that was found in the cache. "Role" is what the role `epp`
configures, "affinity and load" a `prefix-cache-affinity-filter` before a `token-load-scorer`. Recorded conversations
are the first minutes of Mooncake's trace, whose file `PLACEMENT_TRACE` names; answers are cut at 100 tokens.
"""

_VLLM = """\
`python -m benchmarks.placement --servers IP:PORT ... --rate 12 --groups 40 --rounds 2 --seconds 36`, and with
`--rate 14 --groups 120 --rounds 2 --seconds 32`

Four servers of vLLM 0.26.0 that share one H200, each with a model of 2.9 billion parameters (random weights; 36 layers,
hidden size 2048) and 8 GiB of KV cache, 233 000 tokens. The prompts of 40 groups have 480 000 tokens, those of 120 have
1 440 000. The Go EPP takes no part: it needs a cluster. Ours is the program of the image, and reads the engines' own
metrics pages.
"""


def write(folder: Path, document: Path) -> list[Path]:
    """Make the page from the ``*.json`` in ``folder``, and charts beside those; returns what was written."""
    names = (*COMMANDS, "placement-vllm")
    found = {name: json.loads(file.read_text()) for name in names if (file := folder / f"{name}.json").exists()}
    parts, written = [INTRODUCTION], [document]
    for name, draw in CHARTS.items():
        if name in found:
            picture = folder / f"{name}.svg"
            picture.write_text(draw(found[name]), encoding="utf-8")
            written.append(picture)
    parts += [datapath(name, found[name]) for name in ("datapath", "datapath-tls") if name in found]
    sections: dict[str, Callable[[Any], str]] = {
        "placement": placement,
        "placement-vllm": placement_vllm,
        "scraping": scraping,
        "scale": scale,
        "replicas": replicas,
        "workers": workers,
        "flowcontrol": flowcontrol,
    }
    parts += [make(found[name]) for name, make in sections.items() if name in found]
    document.write_text("\n".join(parts), encoding="utf-8")
    return written


def _picture(name: str) -> str:
    """The chart of a section."""
    return f"![Chart](performance/{name}.svg)\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def datapath(name: str, records: Sequence[Record]) -> str:
    """The data path's section."""
    tls = "TLS" if records[0]["tls"] else "plaintext"
    lines = [f"## Data path, {tls}\n", f"`{COMMANDS[name]}`\n", f"![CPU per request](performance/{name}.svg)\n"]
    compared = [each for each in records if each["ratios"]]
    lines += ["Ours ÷ Go; bounds in brackets:\n", table(("", *HEADINGS), [_compared(each) for each in compared])]
    head = ("", "side", "CPU µs", "Envoy CPU µs", "p50 ms", "p90 ms", "p99 ms", "requests/s")
    lines += ["Medians over the rounds:\n", table(head, [row for each in records for row in _medians(each)])]
    memory = ", ".join(f"{side} {size / 1e6:.0f} MB" for side, size in records[0]["memory"].items())
    lines.append(f"Most memory in the whole run: {memory}.\n")
    return "\n".join(lines)


def _compared(record: Record) -> list[str]:
    cells = [record["case"]]
    for key in FIGURES:
        text = str(Ratio(**record["ratios"][key]))
        if key in record["bounds"]:
            text += f" [≤ {record['bounds'][key]:.2f}: {record['verdicts'][key]}]"
        cells.append(text)
    return cells


def _medians(record: Record) -> list[list[str]]:
    rows = []
    for side, samples in record["samples"].items():
        middle = {key: statistics.median(each[key] for each in samples) for key in samples[0]}
        rate = statistics.median(each["requests"] / each["seconds"] for each in samples)
        cpu = f"{middle['cpu'] * 1e6:.0f}" if side != "none" else ""
        latencies = [f"{middle[key] * 1e3:.2f}" for key in ("p50", "p90", "p99")]
        rows.append([record["case"], side, cpu, f"{middle['envoy_cpu'] * 1e6:.0f}", *latencies, f"{rate:.0f}"])
    return rows


def cpu_chart(records: Sequence[Record]) -> str:
    """CPU per request, a group of bars per case."""
    groups = []
    for record in records:
        bars = []
        for series, (label, side) in enumerate((("ours", "ours"), ("Go", "go"))):
            values = [max(each["cpu"] * 1e6, 1.0) for each in record["samples"].get(side, ())]
            if values:
                bars.append(Bar(label, series, statistics.median(values), min(values), max(values)))
        groups.append((record["case"], bars))
    tls = "TLS" if records[0]["tls"] else "plaintext"
    return chart("CPU of the endpoint picker per request", f"medians and extremes of the rounds; {tls}", groups, "µs")


def first_token_chart(records: Sequence[Record]) -> str:
    """The mean time to the first token, a group of bars per workload."""
    groups = []
    for workload in dict.fromkeys(each["workload"] for each in records):
        own = [each for each in records if each["workload"] == workload]
        bars = []
        for each in own:
            values = [value * 1e3 for value in each["mean"]]
            bars.append(Bar(each["name"], _SERIES[each["name"]], statistics.median(values), min(values), max(values)))
        groups.append((workload, bars))
    return chart("Time to the first token", "mean; median and extremes of the rounds", groups, "ms")


def scale_chart(record: Record) -> str:
    """The time of a decision, a group of bars per number of endpoints."""
    groups: dict[str, list[Bar]] = {}
    for each in record["readings"]:
        series = int(each["name"] == "go")
        bars = groups.setdefault(f"{each['endpoints']} endpoints", [])
        for label, key in (
            (each["name"], "decisions"),
            (f"{each['name']}, {each['blocks']} blocks", "prefix_decisions"),
        ):
            if values := [value * 1e3 for value in each[key]]:
                low, middle, high = (percentile(values, percent) for percent in (1, 50, 99))
                bars.append(Bar(label, series, middle, low, high))
    return chart(
        "Time of a decision", "median; the line is the first to the 99th percentile", list(groups.items()), "ms"
    )


def scraping_chart(record: Record) -> str:
    """Idle CPU of reading metrics, a group of bars per number of endpoints."""
    groups: dict[str, list[Bar]] = {}
    for each in record["readings"]:
        values = [max(value * 1e3, 0.1) for value in each["idle_cpu"]]
        bar = Bar(each["name"], int(each["name"] == "go"), statistics.median(values), min(values), max(values))
        groups.setdefault(f"{each['endpoints']} endpoints", []).append(bar)
    return chart("Idle CPU of reading metrics", "thousandths of a core; median and extremes", list(groups.items()), "")


_SERIES = {"in turn": 2, "Go": 1, "ours": 0, "ours, role's weights": 0, "ours, affinity and load": 3}
"""Colours of the arrangements of ``benchmarks.placement``."""
CHARTS: dict[str, Callable[[Any], str]] = {
    "datapath": cpu_chart,
    "datapath-tls": cpu_chart,
    "placement": first_token_chart,
    "placement-vllm": first_token_chart,
    "scraping": scraping_chart,
    "scale": scale_chart,
}


def placement(record: Sequence[Record]) -> str:
    """The section about what good places are worth."""
    lines = ["## Placement\n", f"`{COMMANDS['placement']}`\n", _PLACEMENT, _places("placement", record, "Go")]
    return "\n".join(lines)


def placement_vllm(record: Sequence[Record]) -> str:
    """The section about the same with real engines; these figures cannot be had where the rest of the page is made."""
    return "\n".join(["## Placement, real vLLM\n", _VLLM, _places("placement-vllm", record, "in turn")])


def _places(name: str, record: Sequence[Record], base: str) -> str:
    """The chart, and a table for each workload, with ratios to one arrangement."""
    head = ("", "first token, mean", "p50", "p90", "p99", "whole answer", "cached", f"÷ {base}: mean", f"÷ {base}: p90")
    parts = [f"![Time to the first token](performance/{name}.svg)\n"]
    for workload in dict.fromkeys(each["workload"] for each in record):
        rows, own = [], [each for each in record if each["workload"] == workload]
        other = next(each for each in own if each["name"] == base)
        for each in own:
            times = [f"{statistics.median(each[key]) * 1e3:.0f}" for key in ("mean", "p50", "p90", "p99", "whole")]
            ratios = [str(ratio(each[key], other[key])) if each is not other else "" for key in ("mean", "p90")]
            rows.append([each["name"], *times, f"{statistics.median(each['hits']):.2f}", *ratios])
        parts.append(f"{workload[0].upper()}{workload[1:]} ({other['requests']} requests each):\n\n{table(head, rows)}")
    return "\n".join(parts)


def scraping(record: Record) -> str:
    """The section about reading metrics."""
    head = ("endpoints", "side", "idle cores", "busy cores", "scrapes/s", "oldest metric p50 s", "p99 s", "MB")
    rows = []
    for each in record["readings"]:
        idle = f"{statistics.median(each['idle_cpu']):.3f}"
        ages = [f"{each['age_p50']:.2f}", f"{each['age_p99']:.2f}"]
        busy, scrapes = f"{each['busy_cpu']:.3f}", f"{each['scrapes_per_second']:.0f}"
        rows.append([str(each["endpoints"]), each["name"], idle, busy, scrapes, *ages, f"{each['memory'] / 1e6:.0f}"])
    text = "Pages of 34 KB. The oldest metric is that of the endpoint read longest ago, whenever a decision was made.\n"
    return "\n".join(
        [
            "## Reading metrics\n",
            f"`{COMMANDS['scraping']}`\n",
            _picture("scraping"),
            text,
            table(head, rows),
            _verdicts(record),
        ]
    )


def scale(record: Record) -> str:
    """The section about size."""
    head = (
        "",
        "endpoints",
        "decision p50 / p99 ms",
        "cached blocks",
        "with these",
        "birth seen, max s",
        "death, max s",
        "MB",
    )

    def pair(values: Sequence[float]) -> str:
        return f"{percentile(values, 50) * 1e3:.2f} / {percentile(values, 99) * 1e3:.2f}" if values else ""

    def most(values: Sequence[float]) -> str:
        return f"{max(values):.2f}" if values else ""

    rows = []
    for each in record["readings"]:
        decisions = [pair(each["decisions"]), pair(each["prefix_decisions"])]
        changes = [most(each["births"]), most(each["deaths"])]
        decisions.insert(1, f"{each['blocks']}")
        rows.append([each["name"], str(each["endpoints"]), *decisions, *changes, f"{each['memory'] / 1e6:.0f}"])
    return "\n".join(
        ["## Scale\n", f"`{COMMANDS['scale']}`\n", _picture("scale"), table(head, rows), _verdicts(record)]
    )


def replicas(record: Sequence[Record]) -> str:
    """The section about replicas that tell each other what they do."""
    one, apart, together = record
    rows = []
    for each in record:
        cpu = f"{statistics.median(each['cpu']) * 1e6:.0f}"
        rows.append([each["name"], f"{statistics.median(each['hits']):.3f}", cpu])
    text = (
        "Conversations whose requests go to the replicas in turn; a hit is a request sent where an earlier one went.\n"
    )
    lines = ["## Replicas\n", f"`{COMMANDS['replicas']}`\n", text, table(("", "hits", "CPU µs per request"), rows)]
    lines.append(f"- hits, two apart ÷ one: {ratio(apart['hits'], one['hits'])}")
    lines.append(f"- hits, two that tell ÷ one: {ratio(together['hits'], one['hits'])}")
    lines.append(f"- CPU, two that tell ÷ two apart: {ratio(together['cpu'], apart['cpu'])}\n")
    return "\n".join(lines)


def workers(record: Sequence[Record]) -> str:
    """The section about several processes that serve one port."""
    readings = [Reading(**each) for each in record]
    rows = []
    for each in readings:
        counts = [f"{statistics.median(each.throughput):.0f}"]
        costs = [f"{statistics.median(values) * 1e6:.0f}" for values in (each.cpu, each.parent)]
        rest = [f"{statistics.median(each.hits):.3f}", f"{statistics.median(each.free):.1f}"]
        rows.append([each.name, *counts, *costs, *rest])
    first = readings[0]
    text = (
        "Whole ext_proc exchanges without a gateway, as many streams for every process that decides;\n"
        f"{len(first.throughput)} rounds on a machine of {first.machine} cores.\n"
    )
    if len(readings) > 2:
        text += (
            "Strangers are two pickers that know nothing of each other: on two free cores they do twice what one\n"
            "does, and here what these cores allow, so two workers over half of them is what two workers over one\n"
            "would be on free cores.\n"
        )
    if first.cores < 1.0:
        text += f"Each process that decides may have {first.cores:g} of a core: so much of two is free here.\n"
    head = ("", "requests/s", "CPU µs/request", "of it the parent", "hits", "free cores")
    lines = ["## Workers\n", f"`{COMMANDS['workers']}`\n", text, table(head, rows)]
    lines += [f"- {name}: {found}: {told}" for name, found, told in judge(readings)]
    return "\n".join(lines) + "\n"


def flowcontrol(record: Record) -> str:
    """The section about requests that wait for their turn."""
    head = ("fairness", "saturation detector", "endpoints", "flows", "µs per dispatch")
    rows = []
    for each in record["cases"]:
        median = statistics.median(each["microseconds"])
        rows.append([each["fairness"], each["detector"], str(each["endpoints"]), str(each["flows"]), f"{median:.1f}"])
    memory = record["memory"]
    waiting = (
        f"{memory['requests']} requests that wait take {memory['total'] / 1e6:.0f} MB, of it "
        f"{memory['bodies'] / 1e6:.0f} MB of bodies.\n"
    )
    return "\n".join(
        ["## Flow control\n", f"`{COMMANDS['flowcontrol']}`\n", waiting, table(head, rows), _verdicts(record)]
    )


def _verdicts(record: Record) -> str:
    return "".join(f"- {key}: {verdict}\n" for key, verdict in record["verdicts"].items())
