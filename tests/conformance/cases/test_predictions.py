# SPDX-License-Identifier: GPL-3.0-or-later
"""Predicted latencies: a predictor beside the picker, asked before each decision and taught after each answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.kit.picker import Picker
from conformance.kit.sidecars import PREDICTOR, Sidecar, sidecar
from conformance.kit.talk import Refused, ask, destinations, fresh, route, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

LATER = "plugins of later versions"
OLDER = (
    "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n"
    "featureGates: [prepareDataPlugins]\n"  # without which v1.3 does not look at targets
)
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
TTFT, TPOT = "x-slo-ttft-ms", "x-slo-tpot-ms"
PREDICT, TEACH = "/predict/bulk/strict", "/add_training_data_bulk"


def scorer(parameters: str = "{}", *more: str) -> str:
    """latency-scorer with a producer that knows streamed answers."""
    producer = "{type: predicted-latency-producer, parameters: {streamingMode: true}}"
    each = (*more, producer, f"{{type: latency-scorer, parameters: {parameters}}}")
    return HEAD + "plugins:\n" + "".join(f"- {one}\n" for one in each)


@pytest.fixture
def predictor(around: World) -> Iterator[Sidecar]:
    """A predictor, one server for both of its parts."""
    with sidecar(around.address(), PREDICTOR) as found:
        yield found


@contextlib.contextmanager
def predicting(around: World, pool: Pool, predictor: Sidecar, config: str) -> Iterator[Picker]:
    """A picker that knows the predictor."""
    places = {"PREDICTION_SERVER_URL": predictor.url, "TRAINING_SERVER_URL": predictor.url}
    with around.picker(pool.name, config=config, environment=places) as found:
        yield found


def goes_to(found: Picker, wanted: set[str], headers: dict[str, str] | None = None) -> bool:
    """Wait until requests go to just these endpoints."""
    eventually(lambda: destinations(found, 8 if len(wanted) == 1 else 40, headers=headers), lambda it: it == wanted)
    return True


@pytest.mark.differs(go=LATER)
class TestTargets:
    """1000 ms to the first token and 100 ms per token are predicted for a full cache."""

    @pytest.mark.parametrize(("strategy", "number"), [("least", 1), ("most", 0)])
    @pytest.mark.parametrize("header", [TTFT, "x-llm-d-slo-ttft-ms"])
    def test_the_first_token(
        self, around: World, pool: Pool, predictor: Sidecar, strategy: str, number: int, header: str
    ) -> None:
        """Of engines in time, the one closest to the target or the one with the most room; never one that is late."""
        config = scorer(f"{{headroomSelectionStrategy: {strategy}, tpotWeight: 0}}")
        with predicting(around, pool, predictor, config) as found:
            pool.show({"kv": 0.1}, {"kv": 0.4}, {"kv": 0.9})
            assert goes_to(found, {pool.hostports[number]}, {header: "600", TPOT: "1000"})

    @pytest.mark.parametrize("header", [TPOT, "x-llm-d-slo-tpot-ms"])
    def test_the_time_per_token(self, around: World, pool: Pool, predictor: Sidecar, header: str) -> None:
        """Engines that are expected to keep the target for the time per token, and no others."""
        tier = "{type: slo-headroom-tier-filter, parameters: {epsilonExploreNeg: 0}}"
        with predicting(around, pool, predictor, scorer("{}", tier)) as found:
            pool.show({"kv": 0.8}, {"kv": 0.3}, {"kv": 0.9})
            assert goes_to(found, {pool.hostports[1]}, {header: "50", TTFT: "5000"})
            assert goes_to(found, {pool.hostports[0]}, {header: "85", TTFT: "5000"})

    def test_without_targets(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Who names no target is served where that is soonest."""
        with predicting(around, pool, predictor, scorer()) as found:
            pool.show({"kv": 0.8}, {"kv": 0.9}, {"kv": 0.3})
            assert goes_to(found, {pool.hostports[2]})

    def test_all_are_late(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """The least late of those that are idle."""
        with predicting(around, pool, predictor, scorer()) as found:
            pool.show({"kv": 0.5}, {"kv": 0.7}, {"kv": 0.9})
            headers = {TTFT: "100", TPOT: "1"}
            assert goes_to(found, {pool.hostports[0]}, headers)
            with talk(found) as busy:
                busy.ask(fresh(), headers)
                assert goes_to(found, {pool.hostports[1]}, headers)

    def test_a_stricter_request_in_flight(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Where a request with a stricter target is being answered, its target counts."""
        tier = "{type: slo-headroom-tier-filter, parameters: {epsilonExploreNeg: 0}}"
        with predicting(around, pool, predictor, scorer("{}", tier)) as found:
            pool.show({"kv": 0.3}, {"kv": 0.5}, {"kv": 0.9})
            assert goes_to(found, {pool.hostports[1]}, {TPOT: "60", TTFT: "5000"})
            with talk(found) as strict:
                strict.ask(fresh(), {TPOT: "40", TTFT: "5000"}, hint=[pool.hostports[1]])
                assert goes_to(found, {pool.hostports[0]}, {TPOT: "60", TTFT: "5000"})

    def test_admission(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """latency-slo-admitter: sheddable requests that nobody can serve in time are refused, others are not."""
        config = scorer("{}", "{type: latency-slo-admitter}")
        with (
            around.objective(pool.name, "late-batch", -1),
            predicting(around, pool, predictor, config) as found,
        ):
            pool.show(*({"kv": 0.5, "running": 3},) * 3)
            batch = {"x-llm-d-inference-objective": "late-batch"}
            refused = eventually(
                lambda: ask(found, fresh(), {**batch, TTFT: "100"}), lambda it: isinstance(it, Refused)
            )
            assert isinstance(refused, Refused)
            assert refused.status == 429
            route(found, fresh(), {**batch, TTFT: "5000"})
            route(found, fresh(), {TTFT: "100"})


@pytest.mark.differs(go=LATER)
class TestPredictor:
    def test_what_it_is_asked(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """One row per engine, with what the engine says of itself."""
        with predicting(around, pool, predictor, scorer()) as found:
            pool.show({"kv": 0.25, "waiting": 7}, {"kv": 0.5, "waiting": 3}, {"kv": 0.75})

            def rows() -> list[Any]:
                predictor.asked.clear()
                route(found, fresh())
                return sorted(predictor.bodies(PREDICT)[0]["requests"], key=lambda row: row["kv_cache_percentage"])

            seen = eventually(rows, lambda it: [row["kv_cache_percentage"] for row in it] == [0.25, 0.5, 0.75])
            assert [row["num_request_waiting"] for row in seen] == [7, 3, 0]
            assert all(row["input_token_length"] > 40 for row in seen)

    def test_what_it_is_taught(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Of a streamed answer the time to its first bytes, and the time per token after them."""
        events = [b'data: {"choices": [{"text": "x"}]}\n\n'] * 9
        last = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}\n\ndata: [DONE]\n\n'
        with predicting(around, pool, predictor, scorer()) as found:
            pool.show(*({"kv": 0.5},) * 3)
            assert goes_to(found, set(pool.hostports))
            with talk(found) as one:
                one.ask(b'{"model": "m", "prompt": "hello", "stream": true}', {TTFT: "0.001", TPOT: "0.001"})
                one.answer(b"".join(events) + last, "text/event-stream", pieces=9)
                one.finish()
            taught = eventually(lambda: [each for body in predictor.bodies(TEACH) for each in body["entries"]])
            first = next(each for each in taught if each["actual_ttft_ms"] > 0)
            assert first["predicted_ttft_ms"] == 500.0
            others = eventually(
                lambda: [each for body in predictor.bodies(TEACH) for each in body["entries"] if each["actual_tpot_ms"]]
            )
            assert others[0]["predicted_tpot_ms"] == 50.0
            page = found.metrics()
            for kind in ("ttft", "tpot"):
                assert page.value(f"llm_d_epp_request_predicted_{kind}_seconds_count") >= 1
                assert page.value("llm_d_epp_request_slo_violation_total", type=kind) == 1

    def test_it_is_away(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Without predictions cache, queue and prefix decide; when the predictor is back, it does."""
        config = scorer("{compositeKVWeight: 0, compositePrefixWeight: 0}")
        with predicting(around, pool, predictor, config) as found:
            pool.show({"kv": 0.9, "waiting": 0}, {"kv": 0.1, "waiting": 50}, {"kv": 0.5, "waiting": 90})
            assert goes_to(found, {pool.hostports[1]})
            predictor.stop()
            assert goes_to(found, {pool.hostports[0]})
            predictor.start()
            assert goes_to(found, {pool.hostports[1]})

    def test_it_dawdles(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """No decision waits long for it."""
        predictor.pause = 60.0
        config = scorer("{compositeKVWeight: 0, compositePrefixWeight: 0}")
        with predicting(around, pool, predictor, config) as found:
            pool.show({"kv": 0.9, "waiting": 0}, {"kv": 0.1, "waiting": 50}, {"kv": 0.5, "waiting": 90})
            assert goes_to(found, {pool.hostports[0]})

    def test_it_talks_nonsense(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Predictions that are none count as none."""
        predictor.answers = {PREDICT: lambda body: {"predictions": [{"ttft_ms": "soon"}]}}
        config = scorer("{compositeKVWeight: 0, compositePrefixWeight: 0}")
        with predicting(around, pool, predictor, config) as found:
            pool.show({"kv": 0.9, "waiting": 0}, {"kv": 0.1, "waiting": 50}, {"kv": 0.5, "waiting": 90})
            assert goes_to(found, {pool.hostports[0]})

    def test_with_flow_control(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Where requests may wait, it is asked before."""
        config = scorer().replace("plugins:", "featureGates: [flowControl]\nplugins:")
        with predicting(around, pool, predictor, config) as found:
            pool.show({"kv": 0.6}, {"kv": 0.7}, {"kv": 0.3})
            assert goes_to(found, {pool.hostports[2]})


class TestOlderScorer:
    """predicted-latency-scorer of v1.3, which asks, scores and chooses."""

    def config(self, parameters: str) -> str:
        given = f"{{selectionMode: max, epsilonExploreNeg: 0, epsilonExploreSticky: 0, {parameters}}}"
        plugins = f"plugins:\n- {{type: predicted-latency-scorer, parameters: {given}}}\n"
        profile = "schedulingProfiles:\n- {name: default, plugins: [{pluginRef: predicted-latency-scorer}]}\n"
        return OLDER + plugins + profile

    @pytest.mark.parametrize(
        ("parameters", "number"),
        [
            ("headroomSelectionStrategy: least, headroomTPOTWeight: 0", 1),
            ("headroomSelectionStrategy: most, headroomTPOTWeight: 0", 0),
            ("headroomSelectionStrategy: composite-most, compositeQueueWeight: 0, compositePrefixWeight: 0", 0),
            ("headroomSelectionStrategy: composite-least, compositeQueueWeight: 0, compositePrefixWeight: 0", 1),
        ],
        ids=["least", "most", "composite-most", "composite-least"],
    )
    def test_strategies(self, around: World, pool: Pool, predictor: Sidecar, parameters: str, number: int) -> None:
        """Each chooses among those in time."""
        with predicting(around, pool, predictor, self.config(parameters)) as found:
            pool.show({"kv": 0.1}, {"kv": 0.4}, {"kv": 0.9})
            assert goes_to(found, {pool.hostports[number]}, {TTFT: "600", TPOT: "1000"})

    def test_late(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """The least late."""
        with predicting(around, pool, predictor, self.config("streamingMode: true")) as found:
            pool.show({"kv": 0.8}, {"kv": 0.5}, {"kv": 0.9})
            assert goes_to(found, {pool.hostports[1]}, {TTFT: "1", TPOT: "1"})

    def test_late_in_one_of_them(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Who is late per token only is late: those in time in both go first."""
        with predicting(around, pool, predictor, self.config("streamingMode: true")) as found:
            pool.show({"kv": 0.6}, {"kv": 0.4}, {"kv": 0.7})
            assert goes_to(found, {pool.hostports[1]}, {TTFT: "5000", TPOT: "50"})

    def test_not_streamed(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Without streamingMode nothing is said of tokens: only the first one has a target."""
        config = self.config("streamingMode: false, headroomSelectionStrategy: least")
        with predicting(around, pool, predictor, config) as found:
            pool.show({"kv": 0.1}, {"kv": 0.5}, {"kv": 0.9})
            assert goes_to(found, {pool.hostports[1]}, {TTFT: "700", TPOT: "1"})

    def test_idle_ones_first(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """Of late ones those that have nothing to do, however late."""
        with predicting(around, pool, predictor, self.config("streamingMode: true")) as found:
            pool.show({"kv": 0.5}, {"kv": 0.7}, {"kv": 0.9})
            late = {TTFT: "1", TPOT: "1"}
            assert goes_to(found, {pool.hostports[0]}, late)
            with talk(found) as busy:
                busy.ask(fresh(), {**late, "x-request-id": "busy"}, hint=[pool.hostports[0]])
                assert goes_to(found, {pool.hostports[1]}, late)

    def test_nobody_predicts(self, around: World, pool: Pool, predictor: Sidecar) -> None:
        """The composite of cache, queue and prefix decides."""
        predictor.stop()
        with predicting(
            around, pool, predictor, self.config("compositeKVWeight: 0, compositePrefixWeight: 0")
        ) as found:
            pool.show({"kv": 0.1, "waiting": 9}, {"kv": 0.9, "waiting": 2}, {"kv": 0.5, "waiting": 5})
            assert goes_to(found, {pool.hostports[1]})
