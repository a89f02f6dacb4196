# SPDX-License-Identifier: GPL-3.0-or-later
"""The one page of metrics: sums of all, whoever comes and goes."""

from __future__ import annotations

import os

import pytest

from epp.model import Endpoint, FlowShare
from epp.observe import PoolView, Recorder
from epp.workers.pages import Page, States, states


def pool(recorder: Recorder, inflight: int) -> None:
    """What a process knows of the one endpoint."""
    endpoint = Endpoint("e", "ns", "p", "10.0.0.1", 8000)
    if inflight:
        recorder.request("in flight", "m", 0, 1, "flow").failed("Over")
        endpoint.flows["flow", 1] = FlowShare(inflight, 100)
    recorder.watch_pool(PoolView("pool", lambda: [endpoint]))


class House:
    """A parent, and workers by their process ids: this process stands for each."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        pool(self.recorder, 0)
        self.answers: dict[int, States] = {}
        self.page = Page(self.recorder, lambda: self.answers)

    def worker(self, pid: int, inflight: int = 5) -> Recorder:
        worker = Recorder()
        pool(worker, inflight)
        self.page.came(pid)
        return worker

    def read(self, **workers: Recorder) -> dict[str, float]:
        """The page, by name and labels, when these workers answer."""
        self.answers = {int(name[1:]): states(each) for name, each in workers.items()}
        lines = [line for line in self.page.render().decode().splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


REQUESTS = 'inference_objective_request_total{model_name="m",priority="0",target_model_name="m"}'
RUNNING = 'inference_objective_running_requests{model_name="m"}'
COUNT = "inference_extension_scheduler_e2e_duration_seconds_count"
BUCKET = 'inference_extension_scheduler_e2e_duration_seconds_bucket{le="0.001"}'


def test_sums_and_single_voices() -> None:
    house = House()
    first, second = house.worker(1), house.worker(2)
    for each in (first, first, second):
        each.request("m", "m", 100)
        each.scheduled(0.0008, "m", None)
    second.scheduled(0.5, "m", None)
    for each in (first, second):
        each.prefix_index_size("approx", 30)
        each.peers(2)
    house.recorder.leading(False)
    page = house.read(_1=first, _2=second)
    assert (page[REQUESTS], page[RUNNING], page[COUNT], page[BUCKET]) == (3, 3, 4, 3)
    assert page["inference_extension_scheduler_e2e_duration_seconds_sum"] == pytest.approx(3 * 0.0008 + 0.5)
    assert page['inference_pool_ready_pods{name="pool"}'] == 1
    labels = 'endpoint_name="e",fairness_id="flow",namespace="ns",priority="1",producer_name="inflight-load-producer"'
    assert page[f"llm_d_epp_inflight_requests{{{labels}}}"] == 10, "each shows what it has sent"
    assert page[f"llm_d_epp_inflight_tokens{{{labels}}}"] == 200
    assert page["inference_extension_prefix_indexer_size"] == 30
    assert (page["llm_d_epp_statesync_peers"], page["llm_d_epp_leader"]) == (2, 0)


def test_a_worker_that_is_gone_leaves_its_counts() -> None:
    house = House()
    first, second = house.worker(1), house.worker(2)
    for each in (first, second):
        each.request("m", "m", 100)
    assert house.read(_1=first, _2=second)[REQUESTS] == 2
    house.page.gone(1)
    page = house.read(_2=second)
    assert (page[REQUESTS], page[RUNNING]) == (2, 1)
    third = house.worker(3)
    third.request("m", "m", 100)
    page = house.read(_2=second, _3=third, _1=first)
    assert page[REQUESTS] == 3, "what comes too late from one that is gone does not count twice"


def test_a_worker_that_does_not_answer_keeps_its_counts() -> None:
    house = House()
    first, second = house.worker(1), house.worker(2)
    for each in (first, second):
        each.request("m", "m", 100)
    assert house.read(_1=first, _2=second)[REQUESTS] == house.read(_2=second)[REQUESTS] == 2


def test_what_processes_take_is_that_of_all() -> None:
    house = House()
    alone = house.read()
    house.worker(os.getpid())
    both = house.read()
    assert 1.8 < both["process_resident_memory_bytes"] / alone["process_resident_memory_bytes"] < 2.2
    assert both["process_start_time_seconds"] == alone["process_start_time_seconds"]
    assert both["process_max_fds"] == alone["process_max_fds"]
    house.page.gone(os.getpid())
    after = house.read()
    assert after["process_cpu_seconds_total"] >= both["process_cpu_seconds_total"] - 0.02
    assert after["process_resident_memory_bytes"] < 0.7 * both["process_resident_memory_bytes"]
