# SPDX-License-Identifier: GPL-3.0-or-later
"""What each plugin makes of the engines' figures, seen by where requests go."""

from __future__ import annotations

import collections
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from conformance.kit.picker import Picker
from conformance.kit.talk import Refused, Talk, ask, completion, destinations, fresh, route, served, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

LATER = "a plugin of later versions"


def scorers(*weighted: tuple[str, int], picker: dict[str, Any] | None = None, version: str = "") -> str:
    """A configuration with these scorers, each with its weight, and perhaps a picker."""
    plugins: list[dict[str, Any]] = [{"type": name} for name, _ in weighted]
    refs: list[dict[str, Any]] = [{"pluginRef": name, "weight": weight} for name, weight in weighted]
    if picker is not None:
        plugins.append(picker)
        refs.append({"pluginRef": picker["type"]})
    return yaml.safe_dump(
        {
            "apiVersion": version or "inference.networking.x-k8s.io/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": plugins,
            "schedulingProfiles": [{"name": "default", "plugins": refs}],
        }
    )


@pytest.fixture(scope="module")
def pickers(around: World, main_pool: Pool) -> Iterator[Callable[[str], Picker]]:
    """Pickers by configuration, one at a time."""
    running = contextlib.ExitStack()
    current: dict[str, Picker] = {}

    def get(config: str) -> Picker:
        if config not in current:
            running.close()
            current.clear()
            current[config] = running.enter_context(around.picker(main_pool.name, config=config))
        return current[config]

    yield get
    running.close()


Pickers = Callable[[str], Picker]


def goes_to(found: Picker, wanted: set[str], make: Callable[[], bytes] = fresh, **more: Any) -> bool:
    """Wait until requests go to just these endpoints."""
    times = 8 if len(wanted) == 1 else 45
    return bool(eventually(lambda: destinations(found, times, make, **more) == wanted))


QUEUE, KV = ("queue-scorer", 1), ("kv-cache-utilization-scorer", 1)


def one(name: str, weight: int = 1) -> str:
    """A configuration with one scorer."""
    return scorers((name, weight))


# The figures are far apart: a picker may count its own requests until it sees them in the figures.
GAUGES = [
    ("queue-scorer", "waiting", (400.0, 100.0, 300.0), 1),
    ("kv-cache-utilization-scorer", "kv", (0.9, 0.5, 0.2), 2),
    ("running-requests-size-scorer", "running", (200.0, 900.0, 500.0), 0),
]
SCORERS = pytest.mark.parametrize(("name", "gauge", "figures", "best"), GAUGES, ids=[each[0] for each in GAUGES])


class TestGauges:
    @SCORERS
    def test_the_lowest(
        self, pickers: Pickers, pool: Pool, name: str, gauge: str, figures: tuple[float, ...], best: int
    ) -> None:
        """The engine with the lowest figure gets the requests."""
        pool.show(*({gauge: each} for each in figures))
        assert goes_to(pickers(one(name)), {pool.hostports[best]})

    @SCORERS
    def test_equal(
        self, pickers: Pickers, pool: Pool, name: str, gauge: str, figures: tuple[float, ...], best: int
    ) -> None:
        """Engines with the same figure share them."""
        pool.show(*({gauge: figures[0]} for _ in figures))
        assert goes_to(pickers(one(name)), set(pool.hostports))

    @SCORERS
    def test_two_are_best(
        self, pickers: Pickers, pool: Pool, name: str, gauge: str, figures: tuple[float, ...], best: int
    ) -> None:
        """Two with the lowest figure share them."""
        low, high = min(figures), max(figures)
        pool.show({gauge: low}, {gauge: high}, {gauge: low})
        assert goes_to(pickers(one(name)), {pool.hostports[0], pool.hostports[2]})

    @SCORERS
    def test_change(
        self, pickers: Pickers, pool: Pool, name: str, gauge: str, figures: tuple[float, ...], best: int
    ) -> None:
        """When the figures change, the requests go elsewhere."""
        found = pickers(one(name))
        for place in range(3):
            shown = [{gauge: max(figures)} for _ in range(3)]
            shown[place] = {gauge: min(figures)}
            pool.show(*shown)
            assert goes_to(found, {pool.hostports[place]})

    def test_the_queue_is_relative(self, pickers: Pickers, pool: Pool) -> None:
        """A queue counts in relation to the others: half as far from the longest is half the score."""
        # Queue scores 1, 0.5 and 0, cache scores 0.2, 0.9 and 1: the one in the middle wins.
        pool.show({"waiting": 0, "kv": 0.8}, {"waiting": 200, "kv": 0.1}, {"waiting": 400, "kv": 0.0})
        assert goes_to(pickers(scorers(QUEUE, KV)), {pool.hostports[1]})


class TestWeights:
    @pytest.mark.parametrize(("queue", "cache", "best"), [(10, 1, 0), (1, 10, 2)])
    def test_the_heavier_wins(self, pickers: Pickers, pool: Pool, queue: int, cache: int, best: int) -> None:
        """Where the scorers disagree the weight decides."""
        pool.show({"waiting": 0, "kv": 0.7}, {"waiting": 200, "kv": 0.5}, {"waiting": 400, "kv": 0.0})
        config = scorers((QUEUE[0], queue), (KV[0], cache))
        assert goes_to(pickers(config), {pool.hostports[best]})


class TestLora:
    """lora-affinity-scorer: an adapter that is loaded, room for one, an adapter that waits, none of these."""

    CONFIG = one("lora-affinity-scorer")

    @pytest.mark.parametrize(
        ("shown", "best"),
        [
            ([("a",), ("b",), ("c",)], 0),
            ([("b",), ("b", "c"), ("a", "b")], 2),
            ([("b", "c"), ("b",), ("c", "d")], 1),
        ],
        ids=["it is loaded", "beside another", "there is room"],
    )
    def test_loaded(self, pickers: Pickers, pool: Pool, shown: list[tuple[str, ...]], best: int) -> None:
        """Adapters that run, of at most two."""
        pool.show(*({"adapters": each, "max_adapters": 2} for each in shown))
        assert goes_to(pickers(self.CONFIG), {pool.hostports[best]}, lambda: fresh("a"))

    def test_waiting(self, pickers: Pickers, pool: Pool) -> None:
        """An adapter that waits is better than one that is unknown where everything is taken."""
        full = {"adapters": ("b", "c"), "max_adapters": 2}
        pool.show(full, {**full, "waiting_adapters": ("a",)}, full)
        assert goes_to(pickers(self.CONFIG), {pool.hostports[1]}, lambda: fresh("a"))

    def test_room_beats_waiting(self, pickers: Pickers, pool: Pool) -> None:
        """Room is better than waiting."""
        full = {"adapters": ("b", "c"), "max_adapters": 2}
        pool.show({**full, "waiting_adapters": ("a",)}, full, {"adapters": ("b",), "max_adapters": 2})
        assert goes_to(pickers(self.CONFIG), {pool.hostports[2]}, lambda: fresh("a"))

    @pytest.mark.differs(go="of several series, not the one with the largest value counts")
    def test_the_newest_series_counts(self, pickers: Pickers, pool: Pool) -> None:
        """Of several series that an engine leaves standing the one with the largest value is true."""
        former = (("a",), ("a", "b"))
        stale = {"adapters": ("b", "c"), "max_adapters": 2, "former_adapters": former}
        pool.show(stale, {**stale, "adapters": ("a", "c"), "former_adapters": (("b",), ("c",))}, stale)
        assert goes_to(pickers(self.CONFIG), {pool.hostports[1]}, lambda: fresh("a"))

    def test_the_target_counts(self, pickers: Pickers, pool: Pool) -> None:
        """The adapter is the model after a rewrite."""
        pool.show(*({"adapters": each, "max_adapters": 1} for each in (("asked",), ("target",), ("c",))))
        headers = {"x-gateway-model-name-rewrite": "target"}
        assert goes_to(pickers(self.CONFIG), {pool.hostports[1]}, lambda: fresh("asked"), headers=headers)


PREFIX = one("prefix-cache-scorer")
LONG = "This text is the beginning of many prompts, and long enough to fill several blocks of any size. " * 30


class TestPrefix:
    """prefix-cache-scorer: prompts go where their beginning has been."""

    def test_the_same_prompt(self, pickers: Pickers, pool: Pool) -> None:
        """The same prompt goes to the same engine."""
        found = pickers(PREFIX)
        for number in range(4):
            body = completion(f"{number} {LONG}")
            known = route(found, body).destination
            assert {route(found, body).destination for _ in range(6)} == {known}

    def test_a_longer_prompt(self, pickers: Pickers, pool: Pool) -> None:
        """So does a prompt that goes on."""
        found = pickers(PREFIX)
        known = route(found, completion(f"longer {LONG}")).destination
        assert {route(found, completion(f"longer {LONG} and {each}")).destination for each in range(6)} == {known}

    def test_a_chat(self, pickers: Pickers, pool: Pool) -> None:
        """And a chat that goes on."""
        found = pickers(PREFIX)
        first = [{"role": "system", "content": f"chat {LONG}"}, {"role": "user", "content": "hello"}]
        more = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and now?"}]
        bodies = [json.dumps({"model": "m", "messages": each}).encode() for each in (first, more)]
        known = route(found, bodies[0], path="/v1/chat/completions").destination
        assert {route(found, bodies[1], path="/v1/chat/completions").destination for _ in range(6)} == {known}

    def test_other_prompts(self, pickers: Pickers, pool: Pool) -> None:
        """Prompts with nothing in common are spread."""
        assert goes_to(pickers(PREFIX), set(pool.hostports))

    def test_another_model(self, pickers: Pickers, pool: Pool) -> None:
        """The prefix of one model is nothing to another: 12 models do not all stay with the first."""
        found = pickers(PREFIX)
        bodies = [completion(f"models {LONG}", model=f"model-{number}") for number in range(12)]
        assert len({route(found, body).destination for body in bodies}) > 1

    def test_the_longest_match(self, pickers: Pickers, pool: Pool) -> None:
        """Of two engines that know a part, the one that knows more is chosen."""
        found = pickers(PREFIX)
        short, long = f"match {LONG}", f"match {LONG}{LONG[::-1]}"
        first = pool.hostports[0]
        second = pool.hostports[1]
        assert route(found, completion(short), hint=[first]).destination == first
        assert route(found, completion(long), hint=[second]).destination == second
        assert {route(found, completion(f"{long} more {each}")).destination for each in range(6)} == {second}

    def test_a_pod_that_is_gone(self, around: World, pickers: Pickers, pool: Pool) -> None:
        """A prefix on a pod that is gone does not lead there."""
        found = pickers(PREFIX)
        body = completion(f"gone {LONG}")
        known = route(found, body).destination
        name = pool.pod(pool.hostports.index(known))
        around.space.pod_status(name, ready=False)
        try:
            eventually(lambda: route(found, body).destination != known)
        finally:
            around.space.pod_status(name, ready=True)
            eventually(lambda: known in destinations(found, 10))


class TestPickers:
    @pytest.mark.parametrize("kind", ["max-score-picker", "weighted-random-picker", "random-picker"])
    def test_equal(self, pickers: Pickers, pool: Pool, kind: str) -> None:
        """Where all engines are alike, all are chosen."""
        assert goes_to(pickers(scorers(QUEUE, picker={"type": kind})), set(pool.hostports))

    @pytest.mark.parametrize(
        ("kind", "least", "most"),
        [("max-score-picker", 60, 60), ("weighted-random-picker", 30, 59), ("random-picker", 5, 38)],
    )
    def test_unequal(self, pickers: Pickers, pool: Pool, kind: str, least: int, most: int) -> None:
        """How much the best one gets: everything, more than its share, its share."""
        found = pickers(scorers(KV, picker={"type": kind}))
        pool.show({"kv": 0.05}, {"kv": 0.8}, {"kv": 0.8})
        name = "inference_pool_average_kv_cache_utilization"
        eventually(lambda: found.metrics().value(name, name="main") == pytest.approx(0.55))
        counted = collections.Counter(route(found).destination for _ in range(60))
        assert least <= counted[pool.hostports[0]] <= most, counted

    @pytest.mark.parametrize("kind", ["max-score-picker", "weighted-random-picker", "random-picker"])
    def test_several(self, pickers: Pickers, pool: Pool, kind: str) -> None:
        """maxNumOfEndpoints: a list of different endpoints, in header and metadata."""
        config = scorers(KV, picker={"type": kind, "parameters": {"maxNumOfEndpoints": 2}})
        found = route(pickers(config))
        assert len(set(found.destinations)) == 2
        assert set(found.destinations) <= set(pool.hostports)
        assert found.metadata["envoy.lb"]["x-gateway-destination-endpoint"] == ",".join(found.destinations)

    def test_in_order(self, pickers: Pickers, pool: Pool) -> None:
        """max-score-picker: the best comes first."""
        config = scorers(KV, picker={"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 3}})
        pool.show({"kv": 0.5}, {"kv": 0.1}, {"kv": 0.9})
        first, second, third = pool.hostports
        found = pickers(config)
        eventually(lambda: route(found).destinations == [second, first, third])

    def test_more_than_there_are(self, pickers: Pickers, pool: Pool) -> None:
        """More than there are: all there are."""
        config = scorers(KV, picker={"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 9}})
        assert sorted(route(pickers(config)).destinations) == sorted(pool.hostports)


class TestDead:
    """Engines that cannot be reached."""

    @pytest.mark.differs(go="v1.3 believes the last figures of an engine that refuses connections")
    def test_refused_connections(self, picker: Picker, pool: Pool) -> None:
        """An engine that refuses connections is not chosen; when it is back, it is."""
        pool.engines[0].stop()
        assert goes_to(picker, set(pool.hostports[1:]))
        pool.engines[0].start()
        assert goes_to(picker, set(pool.hostports))

    def test_all_of_them(self, picker: Picker, pool: Pool) -> None:
        """When all refuse, a request is refused with 503 or takes its chance; when they are back, all is as before."""
        for engine in pool.engines:
            engine.stop()
        time.sleep(0.5)  # there is nothing to wait for
        outcome = ask(picker)
        assert outcome.status == 503 if isinstance(outcome, Refused) else outcome.destination in pool.hostports
        for engine in pool.engines:
            engine.start()
        assert goes_to(picker, set(pool.hostports))

    def test_broken_metrics(self, picker: Picker, pool: Pool) -> None:
        """An engine whose metrics are broken is alive: it may be chosen."""
        for engine in pool.engines:
            engine.broken = True
        time.sleep(0.5)
        assert goes_to(picker, set(pool.hostports))


class TestLoad:
    """Figures that the picker keeps itself."""

    @pytest.mark.differs(go=LATER)
    def test_requests_in_flight(self, pickers: Pickers, pool: Pool) -> None:
        """active-request-scorer: an engine with requests in flight gets no more while others have none."""
        found = pickers(scorers(("active-request-scorer", 1), version="llm-d.ai/v1alpha1"))
        with contextlib.ExitStack() as open_requests:
            busy = set()
            for _ in range(3):
                one_more: Talk = open_requests.enter_context(talk(found))
                one_more.ask()
                busy.add(one_more.outcome.destination)  # type: ignore[union-attr]
            assert busy == set(pool.hostports)
        eventually(lambda: destinations(found, 20) == set(pool.hostports))

    def test_many_requests(self, picker: Picker, pool: Pool) -> None:
        """Sixty different requests on idle engines: each engine gets a good part."""
        counted = collections.Counter(served(picker).destination for _ in range(60))
        assert min(counted[each] for each in pool.hostports) >= 6, counted
