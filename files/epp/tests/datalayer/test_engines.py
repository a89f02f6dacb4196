# SPDX-License-Identifier: GPL-3.0-or-later
"""Every engine's own page, engines mixed in one pool, and endpoints without metrics."""

from __future__ import annotations

import time

import pytest
from conformance.kit import pages
from conformance.kit.pages import PAGES, Figures

from epp.config import ConfigError, load, scrape_options
from epp.datalayer import load as loads
from epp.datalayer.exposition import SCAN_SECONDS, MetricSpec, PageReader
from epp.datalayer.mapping import ENGINES, Mapper, NoMetrics, Place
from epp.datalayer.scrape import FRESH, LONGEST, READS_BUSY, READS_IDLE, READS_MOST, Pace, ScrapeOptions
from epp.model import Endpoint, EndpointMetrics

FIGURES = Figures(waiting=3, running=5, kv=0.25, block_size=32, blocks=777, ran=1_000_000)
WITHOUT_KV = {"triton", "llamacpp"}
WITHOUT_RUNNING = {"triton"}
WITHOUT_BLOCKS = {"triton", "llamacpp"}


def endpoint(engine: str = "") -> Endpoint:
    return Endpoint("e", "", "e", "127.0.0.1", 8000, labels={"llm-d.ai/engine-type": engine} if engine else {})


def read(engine: str, page: str) -> EndpointMetrics:
    return Mapper().read(page.encode(), endpoint(engine).labels, EndpointMetrics())


@pytest.mark.parametrize("engine", sorted(PAGES))
def test_pages(engine: str) -> None:
    metrics = read(engine, PAGES[engine](FIGURES))
    assert metrics.waiting == 3
    assert metrics.running == (0 if engine in WITHOUT_RUNNING else 5)
    assert metrics.kv_cache_usage == (0.0 if engine in WITHOUT_KV else 0.25)
    assert (metrics.block_size, metrics.num_blocks) == ((0, 0) if engine in WITHOUT_BLOCKS else (32, 777))
    assert metrics.reports_running is (engine not in WITHOUT_RUNNING)


def test_a_llamacpp_server_that_still_has_its_kv_metric() -> None:
    metrics = read("llamacpp", pages.llamacpp_with_kv(FIGURES))
    assert (metrics.waiting, metrics.running, metrics.kv_cache_usage) == (3, 5, 0.25)


def test_an_sglang_server_that_has_its_cache_size_in_labels() -> None:
    metrics = read("sglang", pages.sglang_with_info(FIGURES))
    assert (metrics.waiting, metrics.block_size, metrics.num_blocks) == (3, 32, 777)


def test_sglang_counts_by_priority_beside_the_whole() -> None:
    page = (
        'sglang:num_queue_reqs{priority="",dp_rank="0"} 3\nsglang:num_queue_reqs{priority="1",dp_rank="0"} 2\n'
        'sglang:num_queue_reqs{priority="5",dp_rank="0"} 1\nsglang:num_queue_reqs{priority="",dp_rank="1"} 4\n'
    )
    assert read("sglang", page).waiting == 7


@pytest.mark.parametrize("engine", sorted(PAGES))
def test_another_engines_page_has_nothing(engine: str) -> None:
    with pytest.raises(NoMetrics, match="none of"):
        read(engine, pages.ollama(FIGURES))


@pytest.mark.parametrize("engine", sorted(PAGES))
def test_page_after_page(engine: str) -> None:
    """The reader follows figures that grow and shrink, and finds what it found on its own."""
    reader, old = PageReader(), EndpointMetrics()
    for step in range(50):
        figures = Figures(waiting=10**step % 9973, running=7 * step, kv=step / 50)
        page = ("# x\n" * (step % 7 * 40) + PAGES[engine](figures)).encode()
        reader.turn(page, step * 0.05)
        labels = endpoint(engine).labels
        assert Mapper().read(page, labels, old, reader) == Mapper().read(page, labels, old)


class TestPageReader:
    SPEC = MetricSpec("m")

    def values(self, reader: PageReader, page: bytes, now: float) -> list[float]:
        reader.turn(page, now)
        return [sample.value for sample in reader.samples(self.SPEC)]

    def test_a_metric_that_comes_later_is_seen_within_a_second(self) -> None:
        reader = PageReader()
        assert self.values(reader, b"x 1\n", 10.0) == []
        assert self.values(reader, b"x 1\nm 2\n", 10.0 + SCAN_SECONDS) == [2.0]

    def test_series_that_are_not_together_are_always_found(self) -> None:
        reader = PageReader()
        for now in (0.0, 0.1, 0.2):
            assert self.values(reader, b'm{a="1"} 1\nx 1\nm{a="2"} 2\n', now) == [1.0, 2.0]

    def test_a_group_that_moved_far(self) -> None:
        reader = PageReader()
        assert self.values(reader, b'x 1\nm{a="1"} 1\nm{a="2"} 2\n', 0.0) == [1.0, 2.0]
        assert self.values(reader, b"x 1\n" * 1000 + b'm{a="1"} 3\nm{a="2"} 4\n', 0.1) == [3.0, 4.0]

    def test_a_group_whose_first_series_moved_out_of_sight(self) -> None:
        reader, long = PageReader(), b'm{a="' + b"x" * 700 + b'"} 1\n'
        assert self.values(reader, b"x 1\n" * 200 + long, 0.0) == [1.0]
        assert self.values(reader, b"x 1\n" + long + long + long, 0.1) == [1.0, 1.0, 1.0]

    def test_a_longer_name_in_its_place(self) -> None:
        reader = PageReader()
        assert self.values(reader, b"x 1\nm 1\n", 0.0) == [1.0]
        assert self.values(reader, b"x 1\nmm 1\ny 1\nm 5\n", 0.1) == [5.0]
        assert self.values(reader, b"x 1\nmm 1\n", 0.2) == []


class TestCustomMetrics:
    CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: core-metrics-extractor
  parameters:
    engineConfigs:
    - name: own
      queuedRequestsSpec: "queue{state=waiting}"
      runningRequestsSpec: busy
      customMetrics:
      - {attributeKey: gold, metricSpec: "depth{tier=gold,zone=\\"a\\"}"}
      - {attributeKey: extra, metricSpec: extra, optional: true}
"""

    def test_by_label(self) -> None:
        mapper = scrape_options(load(self.CONFIG, "test")).mapper
        page = (
            b'queue{state="waiting"} 4\nqueue{state="done"} 9\nbusy 2\n'
            b'depth{tier="iron",zone="a"} 1\ndepth{tier="gold",zone="a"} 8\n'
        )
        metrics = mapper.read(page, endpoint("own").labels, EndpointMetrics())
        assert (metrics.waiting, metrics.running, dict(metrics.custom)) == (4, 2, {"gold": 8.0})
        again = mapper.read(b"busy 2\nextra 1\n", endpoint("own").labels, metrics)
        assert dict(again.custom) == {"extra": 1.0}

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("attributeKey: extra", "attributeKey: gold", "twice"),
            ("metricSpec: extra,", 'metricSpec: "a b",', "is not a metric"),
            ("attributeKey: extra", 'attributeKey: ""', "attributeKey is empty"),
        ],
    )
    def test_nonsense(self, old: str, new: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(self.CONFIG.replace(old, new), "test")


class TestPlaces:
    def test_by_engine(self) -> None:
        options = ScrapeOptions()
        assert options.places(endpoint()) == [Place()]
        assert options.places(endpoint("trtllm-serve")) == [Place("/prometheus/metrics"), Place()]
        assert options.places(endpoint("triton")) == [Place(), Place(port=8002)]

    def test_what_the_configuration_says_counts(self) -> None:
        assert ScrapeOptions(path="/m").places(endpoint("trtllm-serve")) == [Place("/m")]
        assert ScrapeOptions(port=0).places(endpoint("triton")) == [Place()]
        assert ScrapeOptions(path="/m", port=9).places(endpoint("triton")) == [Place("/m", 9)]


class TestLoad:
    def test_without_metrics_the_requests_in_flight_stand_in(self) -> None:
        one = endpoint("none")
        one.inflight, one.unmetered = 4, True
        assert (loads.waiting(one), loads.running(one)) == (4, 4)
        assert not loads.stale(one, time.monotonic(), 0.1)
        assert not ENGINES["none"].is_read()

    @pytest.mark.parametrize(
        ("metrics", "waiting", "running"),
        [
            (EndpointMetrics(waiting=3, reports_running=False, updated_at=1.0), 3, 7),
            (EndpointMetrics(running=8, reports_waiting=False, updated_at=1.0), 2, 8),
            (EndpointMetrics(running=12, reports_waiting=False, updated_at=1.0), 0, 12),
        ],
    )
    def test_the_other_one_is_what_is_left(self, metrics: EndpointMetrics, waiting: int, running: int) -> None:
        one = endpoint()
        one.inflight, one.metrics = 10, metrics
        assert (loads.waiting(one), loads.running(one)) == (waiting, running)


class TestPace:
    def pace(self, count: int = 1, **options: float) -> Pace:
        pace = Pace(ScrapeOptions(**options))  # type: ignore[arg-type]
        pace.endpoints = count
        return pace

    def test_busy_endpoints_share_the_readings(self) -> None:
        pace = self.pace()
        intervals = [pace.hot(endpoint()) for _ in range(1000)]
        assert intervals[0] == 0.05
        assert intervals[99] == pytest.approx(100 / READS_BUSY)
        assert intervals[-1] == FRESH

    def test_one_that_cools_down_leaves_room(self) -> None:
        pace, one, two = self.pace(interval=0.001), endpoint(), endpoint()
        assert (pace.hot(one), pace.hot(two)) == (1 / READS_BUSY, 2 / READS_BUSY)
        pace.cool(one)
        assert pace.hot(two) == 1 / READS_BUSY

    def test_idle_endpoints(self) -> None:
        assert [self.pace(n).quiet(100.0) for n in (1, 100, 300, 9000)] == [1.0, 1.0, 300 / READS_IDLE, LONGEST]

    def test_in_a_pool_with_traffic_none_is_older_than_a_second(self) -> None:
        pace = self.pace(int(FRESH * READS_MOST))
        pace.active_at = 100.0
        assert pace.quiet(101.0) == FRESH < 1.0
        assert pace.quiet(103.0) == LONGEST

    def test_an_interval_of_ones_own(self) -> None:
        pace = self.pace(interval=2.0)
        pace.active_at = 100.0
        assert (pace.hot(endpoint()), pace.quiet(100.0), pace.quiet(200.0)) == (2.0, 2.0, 2.0)
