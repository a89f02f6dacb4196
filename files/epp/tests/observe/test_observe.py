# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics under both names, the HTTP server, and logs."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from epp.datalayer import Datastore
from epp.model import Charge, Endpoint, EndpointMetrics, Usage
from epp.observe import LogOptions, ObserveOptions, ObserveServer, PoolView, Recorder, setup_logging
from epp.observe import recorder as recorder_module
from epp.observe.log import ConsoleFormatter
from epp.observe.recorder import OTHER
from epp.observe.series import Buckets


def samples(recorder: Recorder) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    page = recorder.render().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(recorder: Recorder, name: str, /, **labels: str) -> float:
    return samples(recorder)[name, frozenset(labels.items())]


def local(**options: Any) -> ObserveOptions:
    return ObserveOptions(**{"host": "127.0.0.1", "port": 0, **options})


FULL = {"model_name": "m", "target_model_name": "t", "fairness_id": "f", "priority": "2"}
OLD = {"model_name": "m", "target_model_name": "t"}


def test_a_request_under_both_names() -> None:
    recorder = Recorder()
    record = recorder.request("m", "t", 1000, 2, "f")
    assert value(recorder, "inference_objective_running_requests", model_name="m") == 1
    assert value(recorder, "llm_d_epp_request_running", **FULL) == 1
    record.piece(True)
    record.finished(500, Usage(100, 20, 64))
    assert value(recorder, "inference_objective_request_total", **OLD, priority="2") == 1
    assert value(recorder, "llm_d_epp_request_total", **FULL) == 1
    assert value(recorder, "llm_d_epp_request_running", **FULL) == 0
    for name, total in {
        "inference_objective_request_sizes": 1000,
        "inference_objective_response_sizes": 500,
        "inference_objective_input_tokens": 100,
        "inference_objective_output_tokens": 20,
        "inference_objective_prompt_cached_tokens": 64,
    }.items():
        assert value(recorder, f"{name}_sum", **OLD) == total
        assert value(recorder, f"{name}_count", **OLD) == 1
    assert value(recorder, "llm_d_epp_request_ttft_seconds_count", **FULL, streaming="true") == 1
    assert value(recorder, "llm_d_epp_request_ntpot_seconds_count", **FULL) == 1
    assert value(recorder, "inference_objective_input_tokens_bucket", **OLD, le="64.0") == 0
    assert value(recorder, "inference_objective_input_tokens_bucket", **OLD, le="128.0") == 1
    assert value(recorder, "inference_objective_input_tokens_bucket", **OLD, le="32778.0") == 1
    assert value(recorder, "inference_objective_input_tokens_bucket", **OLD, le="+Inf") == 1


def test_legacy_names_sum_over_what_they_do_not_tell_apart() -> None:
    recorder = Recorder()
    for flow in ("f", "g"):
        recorder.request("m", "t", 10, 2, flow).finished(1, None)
    assert value(recorder, "inference_objective_request_total", **OLD, priority="2") == 2
    assert value(recorder, "inference_objective_response_sizes_count", **OLD) == 2
    assert value(recorder, "llm_d_epp_request_total", **FULL) == 1


def test_failures() -> None:
    recorder = Recorder()
    record = recorder.request("m", "t", 10, 2, "f")
    record.failed("ServiceUnavailable")
    assert value(recorder, "inference_objective_request_error_total", **OLD, error_code="ServiceUnavailable") == 1
    assert value(recorder, "llm_d_epp_request_running", **FULL) == 0
    with pytest.raises(RuntimeError, match="twice"):
        record.finished(0, None)
    recorder.rejected("BadRequest")
    empty = {"model_name": "", "target_model_name": "", "error_code": "BadRequest"}
    assert value(recorder, "inference_objective_request_error_total", **empty) == 1


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Buckets((1.0, 2.0))
    for number in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(number)
    assert histogram.counts == [2, 2, 1]


def test_flows_in_flight_are_bounded_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_VALUES", 3)
    recorder, store = Recorder(), Datastore()
    store.replace([Endpoint(name, "ns", name, "10.0.0.1", port) for name, port in (("a", 8000), ("b", 8001))])
    first = store.endpoints()[0]
    recorder.watch_pool(PoolView("pool", store.endpoints, producer="mine"))
    holds = []
    for number in range(6):
        recorder.request("m", "m", 1, number % 2, f"flow-{number}")
        holds.append(store.hold([Charge(first, 10)], (f"flow-{number}", number % 2)))

    def shown(name: str, pod: str) -> dict[tuple[str, str], float]:
        found = {}
        for (sample, labels), number in samples(recorder).items():
            told = dict(labels)
            if sample == f"llm_d_epp_{name}" and told["endpoint_name"] == pod:
                assert (told["namespace"], told["producer_name"]) == ("ns", "mine")
                found[told["fairness_id"], told["priority"]] = number
        return found

    flows = {("flow-0", "0"): 1, ("flow-1", "1"): 1, ("flow-2", "0"): 1, (OTHER, "1"): 2, (OTHER, "0"): 1}
    assert shown("inflight_requests", "a") == flows
    assert shown("inflight_tokens", "a") == {flow: 10 * count for flow, count in flows.items()}
    assert shown("inflight_requests", "b") == {("", ""): 0}, "each endpoint is there"
    store.elsewhere(first, 4, 400)
    assert sum(shown("inflight_requests", "a").values()) == 6, "peers show theirs themselves"
    for hold in holds:
        hold.release()
    assert shown("inflight_requests", "a") == shown("inflight_tokens", "a") == {("", ""): 0}


def test_names_from_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_VALUES", 5)
    recorder = Recorder()
    for number in range(12):
        recorder.request(f"model-{number}", "t", 1).finished(1, None)
    names = {dict(labels)["model_name"] for name, labels in samples(recorder) if name == "llm_d_epp_request_total"}
    assert OTHER in names
    assert len(names) == 5
    total = [v for (name, _), v in samples(recorder).items() if name == "llm_d_epp_request_total"]
    assert sum(total) == 12


def test_scheduler_plugins_prefix_and_streams() -> None:
    recorder = Recorder()
    endpoint = Endpoint("e-rank-0", "ns", "e", "10.0.0.1", 8000)
    recorder.scheduled(0.0001, "m", endpoint)
    recorder.scheduled(0.0001, "m", None)
    where = {"status": "success", "target_model_name": "m", "namespace": "ns", "port": "8000"}
    assert value(recorder, "inference_extension_scheduler_attempts_total", **where, pod_name="e") == 1
    assert value(recorder, "llm_d_epp_scheduler_attempts_total", **where, endpoint_name="e") == 1
    assert value(recorder, "inference_extension_scheduler_e2e_duration_seconds_bucket", le="0.0001") == 2
    recorder.timer("Scorer", "queue-scorer", "q")(0.5)
    by = {"extension_point": "Scorer", "plugin_type": "queue-scorer", "plugin_name": "q"}
    assert value(recorder, "inference_extension_plugin_duration_seconds_sum", **by) == 0.5
    recorder.prefix_match("p", 30, 60)
    recorder.prefix_match("p", 0, 0)
    recorder.prefix_index_size("p", 7)
    assert value(recorder, "inference_extension_prefix_indexer_hit_ratio_sum") == 0.5
    assert value(recorder, "inference_extension_prefix_indexer_hit_bytes_count") == 2
    assert value(recorder, "inference_extension_prefix_indexer_size") == 7
    recorder.stream_opened()
    recorder.stream_opened()
    recorder.stream_closed(1.0, "OK")
    assert value(recorder, "llm_d_epp_extproc_streams_inflight") == 1
    assert value(recorder, "llm_d_epp_extproc_streams_total", code="OK") == 1
    recorder.processing("request", 0.001)
    assert value(recorder, "llm_d_epp_request_processing_duration_seconds_count") == 1
    recorder.scrape_failed(endpoint, "refused")
    assert value(recorder, "llm_d_epp_datalayer_poll_errors_total", source_type="metrics-data-source") == 1


def test_pool_metrics_leave_out_what_is_overdue() -> None:
    recorder, now = Recorder(), time.monotonic()
    pods = [Endpoint(f"e{i}", "", f"e{i}", f"10.0.0.{i + 1}", 8000) for i in range(3)]
    pods[0].metrics = EndpointMetrics(waiting=2, running=4, kv_cache_usage=0.5, updated_at=now)
    pods[1].metrics = EndpointMetrics(waiting=4, updated_at=now)
    pods[2].metrics = EndpointMetrics(waiting=99, updated_at=now - 3600)
    recorder.watch_pool(PoolView("pool", lambda: pods))
    assert value(recorder, "inference_pool_ready_pods", name="pool") == 3
    assert value(recorder, "inference_pool_average_queue_size", name="pool") == 3
    assert value(recorder, "inference_pool_average_kv_cache_utilization", name="pool") == 0.25
    assert value(recorder, "llm_d_epp_average_running_requests", name="pool") == 2
    assert value(recorder, "llm_d_epp_std_dev_queue_size", name="pool") == 1
    assert value(recorder, "inference_pool_per_pod_queue_size", name="pool", model_server_pod="e1") == 4
    pods.clear()
    assert value(recorder, "llm_d_epp_ready_endpoints", name="pool") == 0
    assert not any(name.endswith("per_pod_queue_size") for name, _ in samples(recorder))


async def test_server() -> None:
    problems = [""]
    pod = Endpoint("e-rank-0", "ns", "e", "10.0.0.1", 8000, labels={"app": "x"})
    server = ObserveServer(Recorder(), lambda: {"pool": (pod,)}, lambda: (problems[0], "old"), local())
    port = await server.start()
    other = ObserveServer(Recorder(), dict, lambda: ("", ""), local(port=port))
    with pytest.raises(OSError):
        await other.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/metrics") as response:
            assert response.content_type == "text/plain"
            assert "inference_extension_info" in await response.text()
        async with session.get("/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\nwarning: old\n")
        problems[0] = "no API server"
        async with session.get("/healthz") as response:
            assert (response.status, await response.text()) == (503, "no API server\nwarning: old\n")
        async with session.get("/debug/endpoints") as response:
            (shown,) = (await response.json())["endpoints"]
            assert shown["pool"] == "pool"
            assert (shown["name"], shown["address"], shown["labels"]) == ("e-rank-0", "10.0.0.1:8000", {"app": "x"})
            assert shown["metrics"]["ageSeconds"] is None
    await server.stop()


@pytest.fixture
def own_logging() -> object:
    root, epp = logging.getLogger(), logging.getLogger("epp")
    before = (root.handlers[:], root.level, epp.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    epp.setLevel(before[2])


@pytest.mark.usefixtures("own_logging")
def test_json_logs(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogOptions("json", 2))
    log = logging.getLogger("epp.test")
    log.debug("not shown")
    log.info("hello %s", "you", extra={"endpoint": "e"})
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        log.exception("bad")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["level"], first["msg"], first["logger"], first["endpoint"]) == ("info", "hello you", "epp.test", "e")
    assert "boom" in second["stacktrace"]


@pytest.mark.usefixtures("own_logging")
def test_levels_and_console(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogOptions("console", 3))
    logging.getLogger("epp.test").debug("shown")
    logging.getLogger("aiohttp").debug("not shown")
    assert capsys.readouterr().err.endswith("\tDEBUG\tepp.test\tshown\n")
    setup_logging(LogOptions("console", 5))
    logging.getLogger("aiohttp").debug("shown now")
    assert "shown now" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not a log encoder"):
        setup_logging(LogOptions("xml"))
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": "m", "k": 1})
    assert ConsoleFormatter().format(record).endswith("\tINFO\tn\tm\tk=1")
