# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines of every kind, alone and mixed in one pool, by their own metrics pages; and engines without metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from conformance.kit.engines import Engine
from conformance.kit.pages import PAGES, llamacpp_with_kv, ollama
from conformance.kit.picker import Picker
from conformance.kit.talk import Refused, Talk, ask, destinations, fresh, route, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

ONLY_VLLM = "v1.3 reads one engine's metrics in a pool: vLLM's, or those that its flags name"
LATER = "engineConfigs are of later versions"
KINDS = ["vllm", "sglang", "trtllm-serve", "triton-tensorrt-llm", "triton", "llamacpp"]
QUEUE, RUNNING, KV = "queue-scorer", "running-requests-size-scorer", "kv-cache-utilization-scorer"


def config(*scorers: str, extractor: dict[str, Any] | None = None) -> str:
    """A configuration with these scorers, and perhaps an extractor's parameters."""
    plugins: list[dict[str, Any]] = [{"type": name} for name in scorers]
    if extractor is not None:
        plugins.append({"type": "core-metrics-extractor", "parameters": extractor})
    return yaml.safe_dump(
        {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": plugins,
            "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": name} for name in scorers]}],
        }
    )


def differs(kinds: list[str]) -> list[Any]:
    """Parameters, of which v1.3 passes vLLM's only."""
    mark = pytest.mark.differs(go=ONLY_VLLM)
    return [pytest.param(kind, marks=[] if kind == "vllm" else [mark]) for kind in kinds]


def goes_to(found: Picker, wanted: set[str], make: Callable[[], bytes] = fresh) -> None:
    """Wait until requests go to just these endpoints."""
    times = 8 if len(wanted) == 1 else 45
    eventually(lambda: destinations(found, times, make) == wanted)


@pytest.fixture(scope="module")
def twos(around: World) -> Iterator[Callable[[str], tuple[Pool, Picker]]]:
    """Two engines of a kind and a picker that looks at all their figures; one kind at a time."""
    running = contextlib.ExitStack()
    current: dict[str, tuple[Pool, Picker]] = {}

    def get(kind: str) -> tuple[Pool, Picker]:
        if kind not in current:
            running.close()
            current.clear()
            pool = running.enter_context(around.pool(f"two-{kind}", kinds=[kind, kind]))
            found = running.enter_context(around.picker(pool.name, config=config(QUEUE, RUNNING, KV)))
            current[kind] = (pool, found)
        pool, found = current[kind]
        pool.reset()
        return pool, found

    yield get
    running.close()


Twos = Callable[[str], tuple[Pool, Picker]]
FIGURES = [("waiting", 100, 400), ("running", 100, 400), ("kv", 0.1, 0.7)]


class TestPages:
    """Two engines of one kind, and what their own page says."""

    @pytest.mark.parametrize(("gauge", "low", "high"), FIGURES, ids=[name for name, _, _ in FIGURES])
    @pytest.mark.parametrize("kind", differs(KINDS))
    def test_the_lowest_figure(self, twos: Twos, kind: str, gauge: str, low: float, high: float) -> None:
        """Waiting requests, running requests, use of the KV cache: the engine with less of it gets the requests."""
        if kind == "triton" and gauge != "waiting":
            pytest.skip("it has no such metric")
        pool, found = twos(kind)
        if kind == "llamacpp":
            for engine in pool.engines:
                engine.write = llamacpp_with_kv
        for best in (0, 1):
            pool.show(*({gauge: low if place == best else high} for place in range(2)))
            goes_to(found, {pool.hostports[best]})

    @pytest.mark.differs(go=ONLY_VLLM)
    def test_an_engine_that_has_lost_a_metric(self, twos: Twos) -> None:
        """A newer llama.cpp says nothing of its KV cache; its queue counts all the same."""
        pool, found = twos("llamacpp")
        for engine in pool.engines:
            engine.become("llamacpp")
        pool.show({"waiting": 400}, {"waiting": 100})
        goes_to(found, {pool.hostports[1]})

    def test_what_ever_ran_is_no_batch(self, twos: Twos) -> None:
        """Triton counts all requests that it ever had: that says nothing of its load, and both get requests."""
        pool, found = twos("triton")
        pool.show({"ran": 1_000_000}, {"ran": 3})
        goes_to(found, set(pool.hostports))

    @pytest.mark.differs(go=ONLY_VLLM)
    def test_the_place_of_the_page(self, around: World) -> None:
        """trtllm-serve shows its metrics at /prometheus/metrics."""
        options = {"metrics_path": "/prometheus/metrics"}
        with around.pool("elsewhere", kinds=["trtllm-serve"] * 2, **options) as pool:
            with around.picker("elsewhere", config=config(QUEUE)) as found:
                pool.show({"waiting": 400}, {"waiting": 100})
                goes_to(found, {pool.hostports[1]})


@pytest.fixture(scope="module")
def mixed(around: World) -> Iterator[tuple[Pool, Picker]]:
    """One engine of each kind, and a picker that looks at their queues."""
    with around.pool("mixed", kinds=KINDS) as pool, around.picker("mixed", config=config(QUEUE)) as found:
        yield pool, found


class TestMixed:
    @pytest.mark.differs(go=ONLY_VLLM)
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_is_the_least_loaded(self, mixed: tuple[Pool, Picker], kind: str) -> None:
        """Of engines of all kinds in one pool, the one with the shortest queue gets the requests."""
        pool, found = mixed
        best = KINDS.index(kind)
        pool.show(*({"waiting": 50 if place == best else 400} for place in range(len(KINDS))))
        goes_to(found, {pool.hostports[best]})

    @pytest.mark.differs(go=ONLY_VLLM)
    def test_all_are_equal(self, mixed: tuple[Pool, Picker]) -> None:
        """With equal queues all of them get requests."""
        pool, found = mixed
        pool.show(*({"waiting": 50} for _ in KINDS))
        eventually(lambda: destinations(found, 90) == set(pool.hostports))


class TestLabels:
    @pytest.mark.differs(go=ONLY_VLLM)
    def test_the_older_label(self, around: World) -> None:
        """inference.networking.k8s.io/engine-type says the same."""
        label = "inference.networking.k8s.io/engine-type"
        with around.pool("older", kinds=["sglang"] * 2, label=label) as pool:
            with around.picker("older", config=config(QUEUE)) as found:
                pool.show({"waiting": 400}, {"waiting": 100})
                goes_to(found, {pool.hostports[1]})

    @pytest.mark.parametrize("kind", ["unheard-of", "vllm"])
    def test_an_unknown_engine(self, around: World, kind: str) -> None:
        """An engine that nobody knows is read as the default one, vLLM."""
        with around.pool("unknown", kinds=[kind] * 2) as pool, around.picker("unknown", config=config(QUEUE)) as found:
            pool.show({"waiting": 400}, {"waiting": 100})
            goes_to(found, {pool.hostports[1]})

    @pytest.mark.differs(go=LATER)
    def test_another_default(self, around: World) -> None:
        """defaultEngine is that of pods without the label."""
        text = config(QUEUE, extractor={"defaultEngine": "sglang"})
        with around.pool("default", engines=2) as pool, around.picker("default", config=text) as found:
            for engine in pool.engines:
                engine.write = PAGES["sglang"]
            pool.show({"waiting": 400}, {"waiting": 100})
            goes_to(found, {pool.hostports[1]})

    @pytest.mark.differs(go=LATER)
    def test_another_label(self, around: World) -> None:
        """engineLabelKey is the label to look at."""
        text = config(QUEUE, extractor={"engineLabelKey": "engine"})
        with around.pool("label", kinds=["llamacpp"] * 2, label="engine") as pool:
            with around.picker("label", config=text) as found:
                pool.show({"waiting": 400}, {"waiting": 100})
                goes_to(found, {pool.hostports[1]})

    @pytest.mark.differs(go=LATER)
    def test_an_engine_of_ones_own(self, around: World) -> None:
        """engineConfigs name its metrics, series by their labels."""
        own = {"name": "own", "queuedRequestsSpec": 'jobs{state=waiting,zone="a"}', "runningRequestsSpec": "busy"}
        text = config(QUEUE, extractor={"engineConfigs": [own]})

        def page(figures: Any) -> str:
            return (
                f'jobs{{state="done",zone="a"}} {500 - figures.waiting}\njobs{{state="waiting",zone="b"}} 7\n'
                f'jobs{{state="waiting",zone="a"}} {figures.waiting}\nbusy 1\n'
            )

        with around.pool("own", kinds=["own"] * 2) as pool, around.picker("own", config=text) as found:
            for engine in pool.engines:
                engine.write = page
            pool.show({"waiting": 400}, {"waiting": 100})
            goes_to(found, {pool.hostports[1]})


def open_streams(found: Picker, count: int, stack: contextlib.ExitStack) -> list[str]:
    """Requests that are on their way until the stack is closed; returns where they went."""
    places = []
    for _ in range(count):
        one: Talk = stack.enter_context(talk(found))
        outcome = one.ask()
        assert not isinstance(outcome, Refused), outcome
        places.append(outcome.destination)
    return places


def no_page(engine: Engine) -> None:
    engine.without_page = True


def nothing_on_it(engine: Engine) -> None:
    engine.write = ollama


class TestWithoutMetrics:
    """Engines that show none: what this picker has sent them stands in."""

    @pytest.mark.differs(go="v1.3 takes an engine without metrics for an idle one")
    @pytest.mark.parametrize("how", [None, no_page, nothing_on_it], ids=["label", "no page", "nothing on it"])
    def test_requests_in_flight_stand_in(self, around: World, how: Callable[[Engine], None] | None) -> None:
        """Whoever has fewer requests in flight gets the next one: ten go five and five."""
        kinds = {"kinds": ["none"] * 2} if how is None else {"engines": 2}
        with around.pool("silent", **kinds) as pool, contextlib.ExitStack() as stack:  # type: ignore[arg-type]
            for engine in pool.engines:
                if how is not None:
                    how(engine)
            found = stack.enter_context(around.picker("silent", config=config(QUEUE, RUNNING)))
            places = open_streams(found, 10, stack)
            assert sorted(places.count(each) for each in pool.hostports) == [5, 5]

    @pytest.mark.differs(go="v1.3.0 never looks whether the cluster has InferenceObjectives, and so never reads them")
    def test_they_do_not_saturate_a_pool(self, around: World) -> None:
        """A pool of engines without metrics is not full because of it: sheddable requests pass while it is idle."""
        with around.pool("quiet", kinds=["none"] * 2), around.objective("quiet", "sheddable", -1):
            with around.picker("quiet", config=config(QUEUE)) as found:
                headers = {"x-gateway-inference-objective": "sheddable"}
                eventually(lambda: not isinstance(ask(found, headers=headers), Refused))
                with contextlib.ExitStack() as stack:
                    open_streams(found, 12, stack)
                    shed = ask(found, headers=headers)
                    assert isinstance(shed, Refused), "with six requests each they are full"
                    assert shed.status == 429

    def test_they_are_not_dead(self, around: World) -> None:
        """Requests still go to them after a while."""
        with around.pool("alive", kinds=["none"] * 2) as pool, around.picker("alive", config=config(QUEUE)) as found:
            for engine in pool.engines:
                engine.without_page = True
            eventually(lambda: destinations(found, 45) == set(pool.hostports))
            assert route(found).destination in pool.hostports

    def test_beside_others(self, around: World) -> None:
        """An engine without metrics and without requests is better than a full one with metrics, and the other way."""
        with around.pool("both", kinds=["vllm", "none"]) as pool, around.picker("both", config=config(QUEUE)) as found:
            full, silent = pool.hostports
            pool.engines[0].show(waiting=400)
            goes_to(found, {silent})
            pool.engines[0].show(waiting=0)
            goes_to(found, {full, silent})
            with contextlib.ExitStack() as stack:
                assert set(open_streams(found, 20, stack)) == {full, silent}
                eventually(lambda: route(found).destination == full)
