# SPDX-License-Identifier: GPL-3.0-or-later
"""Flow control: how requests that wait end, what their clients are told, what is counted; saturation and admission."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.kit import wire
from conformance.kit.queue import Queue, config, queueing
from conformance.kit.talk import refuse, route
from conformance.kit.wait import eventually
from conformance.kit.world import World

NO_SECTION = "v1.3 has the gate, but neither the section flowControl in its configuration nor the concurrency-detector"
LATER = "v1.3 has no admitters"

pytestmark = pytest.mark.differs(go=NO_SECTION)

OLD, NEW = "inference_extension_flow_control_", "llm_d_epp_flow_control_"


@pytest.fixture(scope="module")
def limited(around: World) -> Iterator[Queue]:
    """Two may wait in a band, one with priority 5, any number with 10; 100 kB in negative bands; six in all."""
    section = {
        "maxRequests": 6,
        "defaultPriorityBand": {"maxRequests": 2},
        "defaultNegativePriorityBand": {"maxBytes": "100k"},
        "priorityBands": [{"priority": 5, "maxRequests": 1}, {"priority": 10, "maxRequests": 0}],
    }
    with queueing(around, "flow-limited", config(section)) as found:
        yield found


class TestCapacity:
    @pytest.fixture
    def queue(self, limited: Queue) -> Iterator[Queue]:
        yield limited
        limited.clear()

    def test_a_band_is_full(self, queue: Queue) -> None:
        """429, with a reason, and counted."""
        before = queue.outcomes("RejectedCapacity", priority="0")
        queue.take()
        queue.put()
        queue.put("another flow")
        refused = queue.ask().refused()
        assert (refused.status, refused.reason) == (429, "rejected-saturated")
        assert refused.body.startswith("inference error: ResourceExhausted - ")
        assert queue.outcomes("RejectedCapacity", priority="0") == before + 1

    def test_another_band_is_not(self, queue: Queue) -> None:
        """Bands do not fill up each other."""
        queue.take()
        for _ in range(2):
            queue.put()
        assert queue.put(objective="high").waits
        assert queue.ask(objective="high").refused().reason == "rejected-saturated"
        assert queue.put(objective="urgent").waits

    def test_all_bands_together(self, queue: Queue) -> None:
        """The limit of all bands is one more."""
        queue.take()
        for _ in range(6):
            queue.put(objective="urgent")
        assert queue.ask(objective="urgent").refused().status == 429
        assert queue.ask(objective="low").refused().status == 429

    def test_bytes(self, queue: Queue) -> None:
        """Bodies count by their bytes where a band says so."""
        queue.take()
        body = b'{"model": "m", "prompt": "' + b"x" * 60_000 + b'"}'
        queue.put(objective="batch", body=body)
        assert queue.ask(objective="batch", body=body).refused().reason == "rejected-saturated"
        assert queue.put(objective="batch").waits

    def test_room_again(self, queue: Queue) -> None:
        """Who leaves makes room."""
        queue.take()
        leaving = queue.put()
        queue.put()
        assert queue.ask().refused().status == 429
        leaving.leave()
        eventually(lambda: queue.put().waits)

    def test_how_full_it_is(self, queue: Queue) -> None:
        """Metrics tell how much of each limit is in use."""
        queue.take()
        queue.put()
        queue.put(objective="urgent")
        page = queue.picker.metrics()
        assert page.value(NEW + "capacity_utilization_requests", priority="0", inference_pool="flow-limited") == 0.5
        assert page.value(NEW + "global_capacity_utilization_requests", inference_pool="flow-limited") == 2 / 6
        assert 0 < page.value(NEW + "capacity_utilization_bytes", priority="0") < 1e-3
        assert not [
            each for each in page.text.splitlines() if each.startswith(NEW + "global_capacity_utilization_bytes{")
        ]


class TestTime:
    def test_it_is_over(self, around: World) -> None:
        """429, with a reason; how long it has waited is counted."""
        with queueing(around, "flow-short", config({"defaultRequestTTL": "500ms"})) as queue:
            queue.take()
            refused = queue.ask().refused()
            assert (refused.status, refused.reason) == (429, "rejected-ttl-expired")
            assert queue.outcomes("EvictedTTL", priority="0", inference_pool="flow-short") == 1
            waited = queue.picker.metrics().value(NEW + "request_queue_duration_seconds_sum", outcome="EvictedTTL")
            assert waited >= 0.5

    def test_without_endpoints(self, around: World) -> None:
        """503 when there have been no endpoints all along."""
        section = {"noEndpointRequestTTL": "300ms", "maxRequests": 1}
        with queueing(around, "flow-nobody", config(section), engines=0) as queue:
            first, second = queue.put(), queue.ask()
            refused = second.refused()
            assert (refused.status, refused.reason) == (503, "rejected-no-endpoints")
            refused = first.refused()
            assert (refused.status, refused.reason) == (503, "rejected-no-endpoints")
            assert queue.outcomes("EvictedNoEndpoints") == queue.outcomes("RejectedNoEndpoints") == 1

    def test_the_first_endpoint_comes(self, around: World) -> None:
        """Scaled to zero: who waits gets the first endpoint, and has its whole time from then on."""
        section = {"defaultRequestTTL": "1s", "noEndpointRequestTTL": "10m"}
        with queueing(around, "flow-zero", config(section), engines=0) as queue, around.engines(1) as engines:
            waiting = queue.put()
            assert not waiting.talk.stream.peek(1.5)
            queue.pool.space.create_pod("flow-zero-0", engines[0].address, queue.pool.labels)
            assert waiting.routed().destination == engines[0].hostport

    def test_zero_is_without_end(self, around: World) -> None:
        """A time to live of 0 never ends."""
        with queueing(around, "flow-endless", config({"defaultRequestTTL": "0s"})) as queue:
            queue.take()
            assert not queue.put().talk.stream.peek(1.5)


class TestShutdown:
    def test_who_waits_at_the_end(self, around: World) -> None:
        """At the end of the drain 503, with a reason."""
        with queueing(around, "flow-end", config(), "--drain-timeout=1s") as queue:
            queue.take()
            waiting = queue.put()
            queue.picker.process.signal(signal.SIGTERM)
            refused = waiting.refused()
            assert (refused.status, refused.reason) == (503, "rejected-shutting-down")
            assert queue.picker.process.wait() == 0

    def test_until_then_they_have_their_turns(self, around: World) -> None:
        """While it drains, answers that end still let others go."""
        with queueing(around, "flow-drain", config()) as queue:
            first = queue.take()
            second = queue.put()
            queue.picker.process.signal(signal.SIGTERM)
            first.finish()
            second.routed()
            second.finish()
            assert queue.picker.process.wait() == 0


@pytest.fixture(scope="module")
def evicting(around: World) -> Iterator[Queue]:
    """Sheddable requests in flight make room."""
    with queueing(around, "flow-evicting", config({"enableEviction": True})) as found:
        yield found


class TestEviction:
    @pytest.fixture
    def queue(self, evicting: Queue) -> Iterator[Queue]:
        yield evicting
        evicting.clear()

    def test_before_the_answer(self, queue: Queue) -> None:
        """The client of a sheddable request is told so, out of turn; the more urgent one has its place."""
        name = NEW + "revocations_issued_total"
        before = queue.picker.metrics().value(name, priority="-10")
        victim = queue.take(objective="batch")
        queue.take()
        refused = victim.refused()
        assert (refused.status, refused.reason) == (429, "evicted")
        assert refused.body == "inference error: ResourceExhausted - request evicted by flow control"
        assert victim.talk.finish() == "OK"
        assert queue.picker.metrics().value(name, priority="-10") == before + 1

    def test_amid_the_answer(self, queue: Queue) -> None:
        """An answer that has begun is cut off."""
        victim = queue.take(objective="batch")
        victim.talk.stream.send(wire.response_headers(content_type=wire.EVENTS))
        victim.talk.stream.send(wire.response_body(b"data: {}\n\n", end=False))
        for _ in range(2):
            victim.talk.stream.receive()
        queue.take(objective="urgent")
        assert victim.refused().status == 429

    def test_not_for_an_equal(self, queue: Queue) -> None:
        """Nobody makes room for a request of the same priority, or a lower one."""
        running = queue.take(objective="low")
        assert queue.put(objective="low").waits
        assert queue.put(objective="batch").waits
        assert not running.talk.stream.peek(0.1)

    def test_a_lower_one_for_a_less_low_one(self, queue: Queue) -> None:
        """Among sheddable requests the priority counts, too."""
        victim = queue.take(objective="batch")
        queue.take(objective="low")
        assert victim.refused().reason == "evicted"

    def test_nobody_who_is_not_sheddable(self, queue: Queue) -> None:
        """A request of priority 0 keeps its place, whoever waits."""
        running = queue.take()
        assert queue.put(objective="urgent").waits
        assert not running.talk.stream.peek(0.1)

    def test_off_by_default(self, around: World) -> None:
        """Without enableEviction nobody makes room."""
        with queueing(around, "flow-keeping", config()) as queue:
            running = queue.take(objective="batch")
            assert queue.put(objective="urgent").waits
            assert not running.talk.stream.peek(0.1)


def detector(**parameters: Any) -> dict[str, Any]:
    return {"type": "utilization-detector", "parameters": parameters}


@pytest.fixture(scope="module")
def utilization(around: World) -> Iterator[Queue]:
    """The default detector, and two engines."""
    with queueing(around, "flow-utilization", config(detector=detector()), engines=2) as found:
        yield found


class TestSaturation:
    @pytest.fixture
    def queue(self, utilization: Queue) -> Iterator[Queue]:
        yield utilization
        utilization.pool.reset()
        utilization.clear()

    def saturation(self, queue: Queue) -> float:
        return queue.picker.metrics().value(NEW + "pool_saturation", stage="effective")

    @pytest.mark.parametrize(
        ("figures", "saturation"),
        [({"waiting": 5}, 1.0), ({"kv": 0.8}, 1.0), ({"waiting": 9, "kv": 0.1}, 1.8), ({"kv": 1.0}, 1.25)],
        ids=["queue", "cache", "long queue", "full cache"],
    )
    def test_a_full_pool(self, queue: Queue, figures: dict[str, float], saturation: float) -> None:
        """Full queues or full caches make requests wait until they are less full."""
        queue.pool.show(figures, figures)
        eventually(lambda: self.saturation(queue), lambda value: value == pytest.approx(saturation))
        waiting = queue.put()
        assert waiting.waits
        queue.pool.show({"waiting": 0, "kv": 0.0}, figures)
        waiting.routed()

    def test_it_is_the_mean(self, queue: Queue) -> None:
        """One engine above and one below: their mean counts."""
        queue.pool.show({"waiting": 9}, {"kv": 0.08})
        eventually(lambda: self.saturation(queue), lambda value: value == pytest.approx(0.95))
        queue.take()

    def test_metrics_that_cannot_be_read(self, queue: Queue) -> None:
        """They stop nobody: engines of which nothing is known are left out."""
        for engine in queue.pool.engines:
            engine.broken = True
        eventually(lambda: queue.picker.metrics().value(NEW + "stale_endpoints"), lambda count: count == 2)
        assert self.saturation(queue) == 0.0
        queue.take()

    def test_unless_it_is_wanted(self, around: World) -> None:
        """stalenessPolicy saturated counts them as full."""
        text = config(detector=detector(stalenessPolicy="saturated"))
        with queueing(around, "flow-stale", text) as queue:
            queue.pool.engines[0].broken = True
            eventually(lambda: self.saturation(queue), lambda value: value == 1.0)
            waiting = queue.put()
            assert waiting.waits
            queue.pool.engines[0].broken = False
            waiting.routed()

    @pytest.mark.parametrize(("mode", "saturation"), [("requests", 0.1), ("tokens", 0.5), ("hybrid", 0.5)])
    def test_what_is_in_flight(self, around: World, mode: str, saturation: float) -> None:
        """The concurrency-detector counts requests or tokens in flight, or the larger of both."""
        parameters = {"concurrencyMode": mode, "maxConcurrency": 10, "maxTokenConcurrency": 2000}
        text = config(detector={"type": "concurrency-detector", "parameters": parameters})
        with queueing(around, f"flow-{mode}", text) as queue:
            queue.take(body=b'{"model": "m", "prompt": "' + b"word " * 800 + b'"}')
            assert self.saturation(queue) == pytest.approx(saturation, rel=0.05)


class TestMetrics:
    def test_both_names(self, limited: Queue) -> None:
        """What v1.5 has is there under both names, with the same figures."""
        limited.take("told")
        limited.put("told")
        page = limited.picker.metrics()
        labels = {"fairness_id": "told", "priority": "0", "inference_pool": "flow-limited", "model_name": "m"}
        for prefix in (OLD, NEW):
            assert page.value(prefix + "queue_size", **labels) == 1
            assert page.value(prefix + "queue_bytes", **labels) > 100
            assert page.value(prefix + "pool_saturation", inference_pool="flow-limited") >= 1
            assert page.value(prefix + "request_enqueue_duration_seconds_count", fairness_id="told") == 2
            assert page.value(prefix + "dispatch_cycle_duration_seconds_count") > 0
            name = prefix + "request_queue_duration_seconds"
            assert page.value(name + "_count", outcome="Dispatched", target_model_name="m", **labels) == 1
            assert page.bounds(name)[0] == 0.0001
            assert page.bounds(name)[-1] == 60
        limited.clear()
        page = limited.picker.metrics()
        assert page.value(NEW + "queue_size") == page.value(NEW + "queue_bytes") == 0

    def test_errors(self, limited: Queue) -> None:
        """Refusals are counted among the requests' errors."""
        name = "llm_d_epp_request_error_total"
        before = limited.picker.metrics().value(name, error_code="ResourceExhausted")
        limited.take()
        for _ in range(2):
            limited.put()
        limited.ask().refused()
        assert limited.picker.metrics().value(name, error_code="ResourceExhausted") == before + 1
        limited.clear()


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a policy that is not there": ({"defaultPriorityBand": {"fairnessPolicyRef": "nobody"}}, "nobody"),
    "a policy of another kind": ({"defaultPriorityBand": {"orderingPolicyRef": "random-picker"}}, "random-picker"),
    "a field that is not there": ({"maxRequest": 5}, "maxRequest"),
    "a priority twice": ({"priorityBands": [{"priority": 1}, {"priority": 1}]}, "priorit"),
    "a size without sense": ({"maxBytes": "lots"}, "maxBytes"),
    "a time without sense": ({"defaultRequestTTL": "soon"}, "defaultRequestTTL"),
}


@pytest.mark.parametrize(("section", "named"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_refused(around: World, section: dict[str, Any], named: str) -> None:
    """A section that makes no sense is refused at the start, and what is wrong is named."""
    assert named in around.refusal(*around.flags("flow-refused", config(section)))


@pytest.mark.differs(go=LATER)
class TestAdmitters:
    """Without flow control: requests are refused before they are scheduled."""

    def test_sheddable_requests_of_a_full_pool(self, around: World) -> None:
        """429 with a reason, as the pool is well beyond where all are refused; others pass."""
        text = config(
            {"saturationDetector": {"pluginRef": "utilization-detector"}},
            [{"type": "probabilistic-admitter"}],
            detector(queueDepthThreshold=999999999, kvCacheUtilThreshold=1.0),
            gate=False,
        )
        with (
            around.pool("flow-admitter", engines=1) as pool,
            around.objective("flow-admitter", "admitter-batch", -1),
            around.picker("flow-admitter", config=text) as found,
        ):
            pool.show({"waiting": 4})
            headers = {"x-llm-d-inference-objective": "admitter-batch"}
            refused = eventually(lambda: refuse(found, headers=headers))
            assert (refused.status, refused.reason) == (429, "rejected-saturated")
            assert "request cannot be admitted" in refused.body
            route(found)
