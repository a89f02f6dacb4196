# SPDX-License-Identifier: GPL-3.0-or-later
"""Admitters: whom they refuse, how often, and what the client is told."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest

from epp import config, plugins
from epp.datalayer import Datastore
from epp.model import Endpoint, EndpointMetrics, InferenceRequest, Rejection
from epp.observe import Recorder
from epp.plugins.slo import TTFT, target
from epp.scheduling import Admitter, LatencyPrediction, Plugin, Scheduler
from epp.scheduling.api import Context, NoParameters


class World:
    """A Context with a seed."""

    def __init__(self, seed: int = 5) -> None:
        self.rng = random.Random(seed)


def make(plugin_type: str, seed: int = 5, **parameters: Any) -> Any:
    cls: Any = plugins.registry()[plugin_type]
    return cls(plugin_type, cls.PARAMETERS(**parameters), World(seed))


def endpoint(read: bool = True, **values: Any) -> Endpoint:
    metrics = EndpointMetrics(updated_at=time.monotonic() if read else 0.0, **values)
    return Endpoint("e", "", "p", "10.0.0.1", 8000, metrics=metrics)


def request(priority: int = -1, **headers: str) -> InferenceRequest:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return InferenceRequest("id", names, model="m", priority=priority)


class TestProbabilistic:
    @pytest.mark.parametrize("saturation", [0.0, 0.08, 0.15, 0.2, 0.3, 0.32, 0.5, 1.0])
    def test_the_curve(self, saturation: float) -> None:
        """Refusals come with min(saturation^5 * 300, 1), within four standard deviations."""
        admitter, pool, count = make("probabilistic-admitter"), [endpoint(kv_cache_usage=0.8 * saturation)], 4000
        refused = sum(bool(admitter.admit(request(), pool)) for _ in range(count))
        expected = min(saturation**5 * 300, 1.0)
        assert abs(refused / count - expected) <= 4 * math.sqrt(expected * (1 - expected) / count) + 1e-9

    def test_parameters(self) -> None:
        admitter = make("probabilistic-admitter", power=1.0, k=2.0, queue_depth_threshold=10)
        assert admitter.admit(request(), [endpoint(waiting=5)]), "0.5 * 2 is certain"

    def test_a_seed_makes_it_repeatable(self) -> None:
        pool = [endpoint(kv_cache_usage=0.8 * 0.29)]
        runs = []
        for _ in range(2):
            admitter = make("probabilistic-admitter", seed=7)
            runs.append([bool(admitter.admit(request(), pool)) for _ in range(50)])
        assert runs[0] == runs[1]
        assert len(set(runs[0])) == 2

    def test_only_sheddable_requests(self) -> None:
        admitter, full = make("probabilistic-admitter"), [endpoint(kv_cache_usage=1.0)]
        assert admitter.admit(request(), full) == "the pool is 125% full, sheddable request dropped"
        assert admitter.admit(request(0), full) == ""
        assert admitter.admit(request(3), full) == ""

    def test_what_was_never_read_is_full(self) -> None:
        assert make("probabilistic-admitter").admit(request(), [endpoint(read=False)])


class TestLatencySlo:
    def refused(self, asked: InferenceRequest, pool: list[Endpoint], ttft: list[float], tpot: list[float]) -> bool:
        prediction = LatencyPrediction(dict(zip(pool, ttft, strict=False)), dict(zip(pool, tpot, strict=False)))
        asked.attributes["latency-prediction/mine"] = prediction
        return bool(make("latency-slo-admitter").admit(asked, pool))

    def pool(self, *kv: float, running: int = 3) -> list[Endpoint]:
        return [endpoint(kv_cache_usage=each, running=running) for each in kv]

    def test_no_endpoint_can_do_it(self) -> None:
        assert self.refused(request(x_llm_d_slo_ttft_ms="100"), self.pool(0.5, 0.5), [101, 250], [])

    def test_the_old_header(self) -> None:
        assert self.refused(request(x_slo_tpot_ms="10"), self.pool(0.5), [1], [11])

    def test_one_can(self) -> None:
        asked = request(x_llm_d_slo_ttft_ms="100", x_llm_d_slo_tpot_ms="10")
        assert not self.refused(asked, self.pool(0.5, 0.5), [90, 500], [10, 1])

    def test_each_one_misses_another_target(self) -> None:
        asked = request(x_llm_d_slo_ttft_ms="100", x_llm_d_slo_tpot_ms="10")
        assert self.refused(asked, self.pool(0.5, 0.5), [90, 500], [11, 1])

    def test_it_is_not_sheddable(self) -> None:
        assert not self.refused(request(0, x_llm_d_slo_ttft_ms="1"), self.pool(0.5), [9], [])

    def test_it_names_no_target(self) -> None:
        assert not self.refused(request(), self.pool(0.5), [9], [])

    def test_an_idle_or_cold_endpoint(self) -> None:
        assert not self.refused(request(x_llm_d_slo_ttft_ms="1"), self.pool(0.5, running=0), [9], [])
        assert not self.refused(request(x_llm_d_slo_ttft_ms="1"), self.pool(0.5, 0.01), [9, 9], [])

    def test_nobody_predicts(self) -> None:
        admitter = make("latency-slo-admitter")
        assert admitter.admit(request(x_llm_d_slo_ttft_ms="1"), self.pool(0.5)) == ""
        assert not self.refused(request(x_llm_d_slo_ttft_ms="1"), self.pool(0.5), [], [])

    def test_the_producer_by_name(self) -> None:
        pool, asked = self.pool(0.5), request(x_llm_d_slo_ttft_ms="1")
        asked.attributes["latency-prediction/other"] = LatencyPrediction({pool[0]: 9.0})
        named = make("latency-slo-admitter", latency_prediction_info_producer_name="mine")
        assert named.admit(asked, pool) == ""
        asked.attributes["latency-prediction/mine"] = LatencyPrediction({pool[0]: 9.0})
        assert named.admit(asked, pool) != ""

    @pytest.mark.parametrize("text", ["", "soon", "-1", "0", "nan"])
    def test_what_is_no_target(self, text: str) -> None:
        assert target({TTFT[0]: text}, TTFT) == math.inf


class Refuses(Admitter):
    """Refuses whoever is named so, and fails for another."""

    TYPE = "refuses"
    PARAMETERS = NoParameters

    def __init__(self, name: str, parameters: Any, context: Context) -> None:
        super().__init__(name, parameters, context)

    def admit(self, request: InferenceRequest, endpoints: list[Endpoint]) -> str:
        if request.model == "broken":
            raise RuntimeError("a bug")
        return "not today" if request.model == "refused" else ""


class TestInTheCycle:
    @pytest.fixture
    def scheduler(self) -> Scheduler:
        datastore = Datastore("pool")
        datastore.replace([endpoint()])
        registry: dict[str, type[Plugin]] = {**plugins.registry(), "refuses": Refuses}
        cfg = config.default()
        spec = config.PluginSpec("refuses", "refuses", NoParameters())
        cfg = config.EndpointPickerConfig(
            plugins=(*cfg.plugins, spec),
            profiles=cfg.profiles,
            profile_handler=cfg.profile_handler,
            saturation_detector=cfg.saturation_detector,
        )
        return Scheduler.from_config(cfg, registry, datastore, Recorder(), 1)

    def schedule(self, scheduler: Scheduler, model: str) -> None:
        candidates = scheduler._datastore.endpoints()
        scheduler.schedule(InferenceRequest("id", {}, model=model), candidates)

    def test_a_refusal_is_429_with_a_reason(self, scheduler: Scheduler) -> None:
        with pytest.raises(Rejection) as error:
            self.schedule(scheduler, "refused")
        assert (error.value.status, error.value.code) == (429, "ResourceExhausted")
        assert error.value.reason == "rejected-saturated"
        assert error.value.message == "request cannot be admitted: not today"

    def test_others_pass_and_so_does_one_whose_admitter_fails(self, scheduler: Scheduler) -> None:
        self.schedule(scheduler, "fine")
        self.schedule(scheduler, "broken")
