# SPDX-License-Identifier: GPL-3.0-or-later
"""What benchmarks say about their figures: ratios, verdicts, the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks import datapath, hotpath, metrics, placement, ration, report, rig, scale, scraping, workers
from benchmarks.datapath import FULL_DUPLEX, Case, Sample
from benchmarks.load import Shape
from benchmarks.ratios import Ratio, percentile, percentile_between, ratio
from benchmarks.rig import RigError

from lab import cgroups

CASE = Case(FULL_DUPLEX, Shape(3200, 16), {"cpu": 0.4})


def sample(cpu: float, p50: float) -> Sample:
    return Sample(100, 2.0, p50, 2 * p50, 3 * p50, p50 / 2, cpu, 1e-4)


def samples(ours: list[float]) -> dict[str, list[Sample]]:
    return {
        "none": [sample(0.0, 1e-3) for _ in ours],
        "ours": [sample(cpu, 2e-3) for cpu in ours],
        "go": [sample(4e-4, 3e-3) for _ in ours],
    }


def test_a_ratio_of_steady_figures_is_exact() -> None:
    assert ratio([2.0, 2.0, 2.0], [4.0, 4.0, 4.0]) == Ratio(0.5, 0.5, 0.5)


def test_the_interval_holds_the_ratio_and_grows_with_the_spread() -> None:
    steady, shaky = ratio([1.9, 2.0, 2.1, 2.0], [4.0] * 4), ratio([1.0, 2.0, 3.0, 2.0], [4.0] * 4)
    assert steady.low <= steady.value <= steady.high
    assert shaky.spread > steady.spread


@pytest.mark.parametrize("case", hotpath.CASES, ids=lambda case: case.name)
def test_requests_without_sockets_are_routed(case: hotpath.Case) -> None:
    rooms = hotpath.Rooms()
    hotpath.check(rooms, case)
    working, collecting = hotpath.exchange(rooms.service, replace(case, batches=1), seed=2)
    assert working > 0.0
    assert collecting >= 0.0
    assert rooms.service.streams == 0


def test_what_errors_cost_is_not_measured() -> None:
    rooms = hotpath.Rooms()
    rooms.datastore.replace(())
    with pytest.raises(RigError, match="not every request was routed"):
        hotpath.check(rooms, hotpath.CASES[0])


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_a_ratio_needs_both_figures_of_every_round(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="one of each"):
        ratio(ours, theirs)


def test_percentiles() -> None:
    assert percentile([], 50) == 0.0
    assert percentile(range(100), 50) == 50
    assert percentile(range(100), 99) == 99


def test_how_sure_a_percentile_is() -> None:
    assert percentile_between([3.0] * 500, 99, 50) == (3.0, 3.0)
    one_bad_turn = [1.0] * 450 + [9.0] * 50
    assert percentile_between(one_bad_turn, 99, 50) == (1.0, 9.0), "it may not be there the next time"
    bad_in_all = ([1.0] * 48 + [9.0] * 2) * 10
    assert percentile_between(bad_in_all, 99, 50) == (9.0, 9.0)


def test_latency_added_is_against_the_envoy_that_asks_nobody() -> None:
    found = datapath.compare(samples([1e-4] * 4))
    assert found["cpu"].value == pytest.approx(0.25)
    assert found["added_p50"].value == pytest.approx(0.5)  # (2 - 1) / (3 - 1)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([1e-4] * 4, "met"), ([3e-4] * 4, "missed"), ([0.2e-4, 3e-4, 0.2e-4, 3e-4], "too noisy")],
)
def test_verdicts(ours: list[float], verdict: str) -> None:
    assert datapath.judge(CASE, datapath.compare(samples(ours))) == {"cpu": verdict}


def test_without_the_reference_nothing_is_compared() -> None:
    found = samples([1e-4])
    del found["go"]
    assert datapath.compare(found) == {}


@pytest.mark.parametrize(
    ("verdicts", "status"), [(["met"], 0), (["met", "too noisy"], 3), (["too noisy", "missed"], 1), ([], 0)]
)
def test_the_exit_status(verdicts: list[str], status: int) -> None:
    assert datapath.verdict([{"verdicts": dict(enumerate(verdicts))}]) == status


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    found = samples([1e-4] * 3)
    ratios = datapath.compare(found)
    record = datapath._record(CASE, found, ratios, datapath.judge(CASE, ratios), tls=False)
    (tmp_path / "performance").mkdir()
    records = [{**record, "memory": {"ours": 80e6, "go": 110e6}}]
    (tmp_path / "performance" / "datapath.json").write_text(json.dumps(records))
    alike = {"hits": [0.9, 0.9], "cpu": [1e-4, 1e-4]}
    pairs = [{"name": name, **alike} for name in ("one", "two", "two that tell")]
    (tmp_path / "performance" / "replicas.json").write_text(json.dumps(pairs))
    places = [
        placement.Reading("talk", name, *([[value]] * 6), requests=9) for name, value in (("Go", 0.5), ("ours", 0.25))
    ]
    (tmp_path / "performance" / "placement.json").write_text(json.dumps([asdict(each) for each in places]))
    page = tmp_path / "performance.md"
    assert page in report.write(tmp_path / "performance", page)
    assert "0.25 (0.25 to 0.25) [≤ 0.40: met]" in page.read_text()
    assert "hits, two that tell ÷ one: 1.00 (1.00 to 1.00)" in page.read_text()
    assert "Talk (9 requests each):" in page.read_text()
    assert (
        "| ours | 250 | 250 | 250 | 250 | 250 | 0.25 | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) |" in page.read_text()
    )
    assert ">ours, affinity and load<" not in (drawn := (tmp_path / "performance" / "placement.svg").read_text())
    assert ">Go<" in drawn
    assert "<svg" in (tmp_path / "performance" / "datapath.svg").read_text()


def test_modes_of_the_reference() -> None:
    assert {mode.name for mode in datapath.MODES if mode.reference} == {
        "full duplex",
        "request and response headers",
    }


def test_no_figure_costs_more_than_a_counters_increment() -> None:
    costs = metrics.measure(rounds=5, calls=300)
    assert {cost.name: cost.figures for cost in costs} == {
        "stream opened": 1,
        "request parsed": 3,
        "plugin called": 1,
        "prefix looked up": 2,
        "endpoint chosen": 2,
        "own work done": 1,
        "piece of the answer": 1,
        "answer ended": 8,
        "request failed": 2,
        "stream closed": 3,
    }
    assert metrics.verdict(costs) != 1, [f"{cost.name}: {cost.ratio}" for cost in costs]


def test_the_page_has_charts_of_size_and_of_reading(tmp_path: Path) -> None:
    size = scale.Reading("ours", 5000, [0.001, 0.002], [0.1], [0.1], [0.004], 300, 1000)
    record = {"readings": [asdict(size)], "verdicts": {"a bound": "met"}}
    (tmp_path / "scale.json").write_text(json.dumps(record))
    read = [scraping.Reading(100, name, [0.02, 0.03], 0.3, 900.0, 500.0, 0.5, 0.9, 90) for name in ("ours", "go")]
    record = {"readings": [asdict(each) for each in read], "verdicts": {"idle": "met"}}
    (tmp_path / "scraping.json").write_text(json.dumps(record))
    report.write(tmp_path, page := tmp_path / "performance.md")
    for name, label, value in (("scale", "ours, 1000 blocks", "4 ms"), ("scraping", "go", "25")):
        assert f"](performance/{name}.svg)" in page.read_text()
        drawn = (tmp_path / f"{name}.svg").read_text()
        assert f">{label}<" in drawn
        assert f">{value}" in drawn


class TestWorkers:
    @staticmethod
    def readings(throughput: float, hits: float, free: float) -> list[workers.Reading]:
        one = workers.Reading(1, 1, [100.0] * 4, [1e-3] * 4, [0.0] * 4, [1e-4] * 4, [1e-3] * 4, [0.9] * 4, [free] * 4)
        two = replace(one, workers=2, throughput=[throughput] * 4, parent=[1e-5] * 4, hits=[hits] * 4)
        return [one, two, replace(one, pickers=2, throughput=[180.0] * 4)]

    @pytest.mark.parametrize(
        ("throughput", "hits", "free", "verdicts"),
        [
            (170.0, 0.89, 2.5, ["met", "met", "met"]),
            (160.0, 0.87, 2.5, ["missed", "met", "missed"]),
            (150.0, 0.9, 1.9, [workers.FEW, "missed", "met"]),
        ],
    )
    def test_verdicts(self, throughput: float, hits: float, free: float, verdicts: list[str]) -> None:
        assert [told for _, _, told in workers.judge(self.readings(throughput, hits, free))] == verdicts

    def test_with_plenty_of_cores_there_are_no_strangers(self, capsys: pytest.CaptureFixture[str]) -> None:
        readings = self.readings(180.0, 0.89, 14.0)[:2]
        assert [(name.rpartition(" ÷ ")[2], told) for name, _, told in workers.judge(readings)] == [("one", "met")] * 2
        workers.show(readings)
        assert "strangers" not in capsys.readouterr().out

    def test_the_page_has_them(self, tmp_path: Path) -> None:
        found = [asdict(each) for each in self.readings(170.0, 0.9, 2.5)]
        (tmp_path / "workers.json").write_text(json.dumps(found))
        report.write(tmp_path, page := tmp_path / "performance.md")
        assert "| 2 workers | 170 | 1000 | 10 | 0.900 | 2.5 |" in page.read_text()
        assert "throughput, two workers ÷ one: 1.70 (1.70 to 1.70): met" in page.read_text()

    def test_what_is_missing_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        workers.show(self.readings(170.0, 0.9, 0.5))
        assert "fewer than 2 cores were free" in capsys.readouterr().out

    def test_conversations_grow_and_end(self) -> None:
        source = workers.Conversations(1, 100, 1)
        lengths = []
        for turn in range(workers.TURNS + 1):
            number, prompt = source.next()
            lengths.append(len(prompt))
            source.went(number, b"a" if turn % 2 else b"b")
        assert lengths == [100 * (turn + 1) for turn in range(workers.TURNS)] + [100]
        assert (source.possible, source.hits) == (workers.TURNS - 1, workers.TURNS - 2)


def test_a_slow_decision_is_told_with_an_index_and_without() -> None:
    fast, slow, once = [0.001] * 500, ([0.001] * 45 + [0.1] * 5) * 10, [0.001] * 450 + [0.1] * 50
    for without, full, met in (
        (fast, fast, ["met", "met"]),
        (fast, slow, ["met", "missed"]),
        (slow, fast, ["missed", "met"]),
        (fast, once, ["met", "too noisy"]),
    ):
        reading = scale.Reading("ours", scale.BOUND_ENDPOINTS, without, [0.1], [0.1], full, 1, 100_000)
        assert list(scale.show([reading]).values()) == [*met, "met", "met"]


@pytest.mark.skipif(ration.where() is None, reason="no control group here lets us share out processors")
def test_a_process_gets_its_part_of_a_core() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            with ration.rationed([process.pid], 0.2):
                began, before = time.monotonic(), rig.cpu_seconds(process.pid)
                time.sleep(1.0)
                part = (rig.cpu_seconds(process.pid) - before) / (time.monotonic() - began)
        finally:
            process.kill()
    assert part < 0.3
    assert not [each for mount in cgroups.hierarchies() for each in mount.glob(f"inferops-bench-{os.getpid()}-*")]
