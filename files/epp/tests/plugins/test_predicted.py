# SPDX-License-Identifier: GPL-3.0-or-later
"""The producer of predictions, with a real predictor beside it, and v1.3's scorer that chooses by them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from ports import free_port

from epp.model import Decision, Endpoint, Usage
from epp.plugins import predicted_latency_producer
from epp.scheduling import LatencyPrediction

TYPE = "predicted-latency-producer"
KEY = f"latency-prediction/{TYPE}"


class Sidecar:
    """10 ms and 1 ms per request in flight, plus 1 ms per uncached token."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.taught: list[dict[str, Any]] = []
        self.port = free_port("127.0.0.1")

    async def predict(self, request: web.Request) -> web.Response:
        rows = (await request.json())["requests"]
        self.asked.append(rows)
        found = []
        for row in rows:
            tokens = row["input_token_length"] * (1.0 - row["prefix_cache_score"])
            running = row["num_request_running"]
            found.append({"ttft_ms": 10.0 * running + tokens, "tpot_ms": 1.0 * running})
        return web.json_response({"predictions": found})

    async def learn(self, request: web.Request) -> web.Response:
        self.taught += (await request.json())["entries"]
        return web.Response(status=202)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests measure nothing, and the machine may be busy."""
    for name in (
        "epp.datalayer.predictor.PREDICT_SECONDS",
        "epp.scheduling.scheduler.PREPARE_SECONDS",
        "epp.plugins.predicted_latency_producer.FRESH_SECONDS",
    ):
        monkeypatch.setattr(name, 20.0)


@pytest.fixture
async def sidecar(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sidecar]:
    made = Sidecar()
    app = web.Application()
    app.router.add_post("/predict/bulk/strict", made.predict)
    app.router.add_post("/add_training_data_bulk", made.learn)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", made.port).start()
    for name in ("PREDICTION_SERVER_URL", "TRAINING_SERVER_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{made.port}")
    yield made
    await runner.cleanup()


def figure(world: Any, name: str, *parts: str) -> float:
    lines = world.recorder.render().decode().splitlines()
    found = [line for line in lines if line.startswith(f"llm_d_epp_{name}{{") and all(part in line for part in parts)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


class Rig:
    """A producer by itself, with its world."""

    def __init__(self, kit: Any, text: str = "{}", count: int = 2) -> None:
        self.kit, self.world = kit, kit.World()
        self.producer = kit.make(TYPE, self.world, **vars(kit.parameters(TYPE, text)))
        self.pods: list[Endpoint] = kit.endpoints(count)
        self.worker = asyncio.ensure_future(self.producer.run())

    async def ask(self, **fields: Any) -> Any:
        request = self.kit.ask(**{"prompt_tokens": 100, **fields})
        if self.producer.asks:
            await self.producer.prepare(request, self.pods)
        self.producer.produce(request, self.pods)
        return request

    def taught(self) -> list[Any]:
        found, self.producer._predictor._samples = self.producer._predictor._samples, []
        return found

    async def close(self) -> None:
        self.worker.cancel()
        await asyncio.gather(self.worker, return_exceptions=True)


@pytest.fixture
async def rigs(kit: Any) -> AsyncIterator[Any]:
    made: list[Rig] = []

    def make(*arguments: Any) -> Rig:
        made.append(Rig(kit, *arguments))
        return made[-1]

    yield make
    for each in made:
        await each.close()


class TestPredictions:
    async def test_of_every_endpoint(self, rigs: Any, sidecar: Sidecar) -> None:
        rig = rigs("{streamingMode: true, endpointRoleLabel: role}")
        rig.pods[0].inflight, rig.pods[0].inflight_tokens = 3, 50
        rig.pods[1].labels = {"role": "prefill"}
        request = rig.kit.ask(prompt_tokens=100)
        rig.kit.matched(request, {rig.pods[1]: 5}, total=10)
        await rig.producer.prepare(request, rig.pods)
        rig.producer.produce(request, rig.pods)
        prediction = request.attributes[KEY]
        assert prediction.ttft == {rig.pods[0]: 130.0, rig.pods[1]: 50.0}
        assert prediction.tpot == {rig.pods[0]: 3.0}  # who only computes prompts has no time per token
        first, second = sidecar.asked[0]
        assert (first["num_request_running"], first["prefill_tokens_in_flight"], first["pod_type"]) == (3, 50, "")
        assert (second["prefix_cache_score"], second["pod_type"]) == (0.5, "prefill")
        assert figure(rig.world, "request_ttft_prediction_duration_seconds_count") == 1

    async def test_without_streaming_nothing_is_said_of_tokens(self, rigs: Any, sidecar: Sidecar) -> None:
        rig = rigs()
        assert (await rig.ask()).attributes[KEY].tpot == {}

    async def test_nobody_there(self, rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PREDICTION_SERVER_URL", f"http://127.0.0.1:{free_port('127.0.0.1')}")
        rig = rigs()
        for _ in range(2):
            request = await rig.ask()
            assert KEY not in request.attributes
        rig.producer.pre_request(request, Decision((rig.pods[0],)))
        rig.producer.response_piece(request, Decision((rig.pods[0],)))
        rig.producer.response_complete(request, Decision((rig.pods[0],)), Usage(1, 1))
        assert len(rig.taught()) == 1  # it is taught nevertheless

    async def test_only_teaching(self, rigs: Any, sidecar: Sidecar) -> None:
        rig = rigs("{predictInProduce: false}")
        request = await rig.ask()
        assert not rig.producer.asks
        assert KEY not in request.attributes
        assert sidecar.asked == []

    async def test_what_is_old_does_not_count(
        self, rigs: Any, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig = rigs()
        request = await rig.ask()
        assert KEY in request.attributes
        monkeypatch.setattr(predicted_latency_producer, "FRESH_SECONDS", 0.0)
        rig.pods[0].inflight = 7
        await asyncio.sleep(0.001)
        rig.producer.produce(request, rig.pods)
        assert KEY not in request.attributes
        rig.producer.pre_request(request, Decision((rig.pods[0],)))
        rig.producer.response_piece(request, Decision((rig.pods[0],)))
        rig.producer.response_complete(request, Decision((rig.pods[0],)), Usage(1, 1))
        assert rig.taught()[0].num_request_running == 7


class TestTargets:
    async def test_the_strictest_in_flight_counts(self, rigs: Any, sidecar: Sidecar) -> None:
        """A target is lowered where a stricter request is being answered; sloBufferFactor multiplies it."""
        rig = rigs("{streamingMode: true, sloBufferFactor: 0.5}")
        here, there = rig.pods
        sent = []
        for wanted in ("20", "30", "20"):
            request = await rig.ask(headers={"x-slo-tpot-ms": wanted})
            rig.producer.pre_request(request, Decision((here,)))
            sent.append(request)
        request = await rig.ask(headers={"x-llm-d-slo-tpot-ms": "50"})
        assert request.attributes[KEY].tpot_targets == {here: 10.0, there: 25.0}
        for number, left in ((0, 10.0), (2, 15.0), (1, 25.0)):
            rig.producer.response_complete(sent[number], Decision((here,)), None)
            request = await rig.ask(headers={"x-llm-d-slo-tpot-ms": "50"})
            assert request.attributes[KEY].tpot_targets == {here: left, there: 25.0}
        assert (await rig.ask()).attributes[KEY].tpot_targets == {}

    async def test_who_heeds_it(self, rigs: Any, sidecar: Sidecar) -> None:
        """A target that is lower on one endpoint makes it late there, for filters, scorers and admitters."""
        rig = rigs("{streamingMode: true}")
        kit, (here, there) = rig.kit, rig.pods
        for pod in rig.pods:
            pod.inflight = 15
            pod.metrics = kit.read(running=15, kv_cache_usage=0.5)
        headers = {"x-slo-tpot-ms": "20", "x-slo-ttft-ms": "1000"}
        strict = await rig.ask(headers={"x-slo-tpot-ms": "10"})
        rig.producer.pre_request(strict, Decision((here,)))
        request = await rig.ask(headers=headers, priority=-1)
        assert kit.make("slo-headroom-tier-filter", epsilon_explore_neg=0.0).filter(request, rig.pods) == [there]
        scores = kit.make("latency-scorer").score(request, rig.pods)
        assert scores[0] == 0.0 < scores[1]
        admitter = kit.make("latency-slo-admitter")
        assert admitter.admit(request, rig.pods) == ""
        also = await rig.ask(headers={"x-slo-tpot-ms": "10"})
        rig.producer.pre_request(also, Decision((there,)))
        request = await rig.ask(headers=headers, priority=-1)
        assert "no endpoint is expected" in admitter.admit(request, rig.pods)


class TestTeaching:
    async def answered(self, rig: Rig, usage: Usage | None, pieces: int = 1, **fields: Any) -> list[Any]:
        request = await rig.ask(**fields)
        decision = Decision((rig.pods[0],))
        rig.producer.pre_request(request, decision)
        assert KEY not in request.attributes
        await asyncio.sleep(0.02)
        for _ in range(pieces):
            rig.producer.response_piece(request, decision)
        await asyncio.sleep(0.02)
        rig.producer.response_complete(request, decision, usage)
        rig.producer.response_complete(request, decision, usage)
        return rig.taught()

    async def test_a_streamed_answer(self, rigs: Any, sidecar: Sidecar) -> None:
        rig = rigs("{streamingMode: true}")
        rig.pods[0].inflight = 2
        first, others = await self.answered(rig, Usage(100, 11), pieces=4, stream=True)
        assert 20 <= first.actual_ttft_ms < 2000
        assert (first.actual_tpot_ms, first.predicted_ttft_ms, first.num_request_running) == (0.0, 120.0, 2)
        assert 2 <= others.actual_tpot_ms < 200
        assert (others.actual_ttft_ms, others.predicted_tpot_ms) == (0.0, 2.0)

    async def test_pieces_stand_for_tokens(self, rigs: Any, sidecar: Sidecar) -> None:
        rig = rigs("{streamingMode: true}")
        _, others = await self.answered(rig, None, pieces=3, stream=True)
        assert 10 <= others.actual_tpot_ms < 1000
        assert len(await self.answered(rig, None, pieces=1, stream=True)) == 1

    async def test_whole_answers(self, rigs: Any, sidecar: Sidecar) -> None:
        """Without streamingMode the time to the end counts."""
        rig = rigs()
        for stream in (False, True):
            (only,) = await self.answered(rig, Usage(100, 11), stream=stream)
            assert only.actual_ttft_ms >= 40
        assert figure(rig.world, "inference_request_metric", 'type="ttft"') > 0

    @pytest.mark.parametrize(
        ("text", "stream", "usage", "pieces"),
        [
            ("{streamingMode: true}", False, Usage(1, 2), 1),
            ("{}", False, None, 1),
            ("{streamingMode: true}", True, Usage(1, 2), 0),
        ],
        ids=["not streamed", "cut off", "failed"],
    )
    async def test_what_teaches_nothing(
        self, rigs: Any, sidecar: Sidecar, text: str, stream: bool, usage: Usage | None, pieces: int
    ) -> None:
        assert await self.answered(rigs(text), usage, pieces, stream=stream) == []

    async def test_the_first_token_comes_from_who_computes_the_prompt(self, rigs: Any, sidecar: Sidecar) -> None:
        rig = rigs("{streamingMode: true, endpointRoleLabel: role}")
        decode, prefill = rig.pods
        prefill.labels = {"role": "prefill"}
        request = await rig.ask(stream=True)
        decision = Decision((decode,), profiles={"decode": (decode,), "prefill": (prefill,)})
        rig.producer.pre_request(request, decision)
        await asyncio.sleep(0.01)
        for _ in range(2):
            rig.producer.response_piece(request, decision)
            await asyncio.sleep(0.01)
        rig.producer.response_complete(request, decision, None)
        assert [each.pod_type for each in rig.taught()] == ["prefill", ""]

    async def test_requests_that_it_has_not_seen(self, rigs: Any) -> None:
        rig = rigs()
        request, decision = rig.kit.ask(), Decision((rig.pods[0],))
        rig.producer.pre_request(request, decision)
        rig.producer.response_piece(request, decision)
        rig.producer.response_complete(request, decision, None)
        assert rig.taught() == []

    async def test_late_answers_are_counted(self, rigs: Any, sidecar: Sidecar) -> None:
        rig = rigs("{streamingMode: true}")
        headers = {"x-slo-ttft-ms": "1", "x-slo-tpot-ms": "0.001"}
        await self.answered(rig, Usage(100, 11), pieces=4, stream=True, headers=headers)
        await self.answered(rig, Usage(100, 11), pieces=4, stream=True, headers={"x-slo-ttft-ms": "60000"})
        for kind in ("ttft", "tpot"):
            assert figure(rig.world, "request_slo_violation_total", f'type="{kind}"') == 1
        assert figure(rig.world, "request_predicted_ttft_seconds_count") == 2

    async def test_all_of_it(self, kit: Any, sidecar: Sidecar) -> None:
        """A scheduler asks, sends to the endpoint that is soonest, and the predictor hears how it was."""
        text = "plugins:\n- {type: latency-scorer}\n- {type: max-score-picker}\n"
        rig = kit.rig(text, kit.endpoints(3))
        workers = [asyncio.ensure_future(each.run()) for each in rig.scheduler.workers]
        rig.endpoints[0].inflight = rig.endpoints[2].inflight = 4
        request = kit.ask(b"x" * 400, stream=True)
        await rig.scheduler.prepare(request, rig.endpoints)
        decision = rig.scheduler.schedule(request, rig.endpoints)
        rig.scheduler.pre_request(request, decision)
        assert decision.endpoints == (rig.endpoints[1],)
        assert rig.scheduler.follows
        rig.scheduler.response_piece(request, decision)
        await asyncio.sleep(0.005)
        rig.scheduler.response_complete(request, decision, Usage(100, 3))
        started = time.monotonic()
        while not sidecar.taught and time.monotonic() - started < 10:
            await asyncio.sleep(0.02)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert [entry["predicted_ttft_ms"] for entry in sidecar.taught] == [100.0]

    @pytest.mark.parametrize("named", ["", ", encoderCacheMatchInfoProducerName: mm-embeddings-cache-producer"])
    async def test_pictures(self, kit: Any, sidecar: Sidecar, named: str) -> None:
        """How many a request brings, and how many of them an endpoint has seen."""
        own = "- type: mm-embeddings-cache-producer\n" if named else ""
        text = f"plugins:\n- type: {TYPE}\n  parameters: {{useEncoderCacheFeatures: true{named}}}\n"
        rig = kit.rig(text + own, kit.endpoints(2))
        parts = [f'{{"type": "image_url", "image_url": {{"url": "http://x/{number}"}}}}' for number in range(3)]
        for count, seen in ((2, [0, 0]), (3, [0, 2])):
            prompt = f'[{{"role": "user", "content": [{", ".join(parts[:count])}]}}]'.encode()
            request = kit.ask(prompt)
            await rig.scheduler.prepare(request, rig.endpoints)
            rows = sidecar.asked[-1]
            assert [row["encoder_input_size"] for row in rows] == [count, count]
            assert [row["encoder_matched_size"] for row in rows] == seen
            rig.scheduler.pre_request(request, Decision((rig.endpoints[1],)))
        for each in rig.scheduler.workers:
            await each._predictor._service.close()


class TestScorer:
    """predicted-latency-scorer; with selectionMode max the largest weight always wins."""

    def scorer(self, kit: Any, **parameters: Any) -> Any:
        given = {"selection_mode": "max", "epsilon_explore_sticky": 0.0, "epsilon_explore_neg": 0.0, **parameters}
        return kit.make("predicted-latency-scorer", **given)

    def request(self, kit: Any, pods: list[Endpoint], *each: tuple[float, float], slo: float = 100.0) -> Any:
        request = kit.ask(headers={"x-slo-ttft-ms": str(slo), "x-slo-tpot-ms": str(slo)})
        request.attributes["latency-prediction/predicted-latency-scorer"] = LatencyPrediction(
            {pod: ttft for pod, (ttft, _) in zip(pods, each, strict=False)},
            {pod: tpot for pod, (_, tpot) in zip(pods, each, strict=False)},
        )
        return request

    def chosen(self, scorer: Any, request: Any, pods: list[Endpoint]) -> int:
        scores = scorer.score(request, pods)
        assert sorted(scores) == [0.0] * (len(pods) - 1) + [1.0]
        return int(scores.index(1.0))

    @pytest.mark.parametrize(
        ("parameters", "which"),
        [
            ({}, 1),
            ({"headroom_selection_strategy": "most"}, 0),
            ({"headroom_ttft_weight": 0.0, "headroom_tpot_weight": 1.0}, 0),
            ({"headroom_ttft_weight": 0.0, "headroom_tpot_weight": 0.0}, 1),
            ({"headroom_tpot_weight": 9.0, "streaming_mode": False}, 1),
        ],
    )
    def test_in_time(self, kit: Any, parameters: dict[str, Any], which: int) -> None:
        pods = kit.endpoints(3)
        request = self.request(kit, pods, (10, 80), (90, 10), (150, 10))
        assert self.chosen(self.scorer(kit, **parameters), request, pods) == which

    @pytest.mark.parametrize(
        ("times", "inflight", "parameters", "which"),
        [
            (((200, 0), (150, 0), (300, 0)), (1, 1, 1), {}, 1),
            (((200, 0), (150, 0), (300, 0)), (1, 1, 0), {}, 2),
            (((200, 200), (150, 300), (160, 200)), (1, 1, 1), {"neg_headroom_tpot_weight": 0.0}, 1),
            (((200, 200), (150, 300), (160, 200)), (1, 1, 1), {"neg_headroom_ttft_weight": 0.0}, 0),
            (((0, 300), (0, 200), (0, 300)), (1, 1, 1), {}, 1),
        ],
        ids=["least late", "idle", "ttft", "tpot", "late per token"],
    )
    def test_late(self, kit: Any, times: Any, inflight: Any, parameters: dict[str, Any], which: int) -> None:
        pods = kit.endpoints(3)
        for pod, count in zip(pods, inflight, strict=True):
            pod.inflight = count
        assert self.chosen(self.scorer(kit, **parameters), self.request(kit, pods, *times), pods) == which

    def test_chance_takes_a_late_one_now_and_then(self, kit: Any) -> None:
        pods = kit.endpoints(2)
        request = self.request(kit, pods, (10, 10), (200, 10))
        scorer = self.scorer(kit, epsilon_explore_neg=0.25)
        found = Counter(self.chosen(scorer, request, pods) for _ in range(1000))
        assert 180 < found[1] < 320

    def test_the_lot(self, kit: Any) -> None:
        """By their weights: 101 and 2 of those in time."""
        pods = kit.endpoints(2)
        request = self.request(kit, pods, (90, 50), (0, 50))
        scorer = self.scorer(kit, selection_mode="linear", headroom_tpot_weight=0.0)
        found = Counter(self.chosen(scorer, request, pods) for _ in range(3000))
        assert 30 < found[1] < 100

    @pytest.mark.parametrize(
        ("strategy", "which"), [("composite-most", 1), ("composite-least", 0), ("composite-only", 2)]
    )
    def test_composite(self, kit: Any, strategy: str, which: int) -> None:
        pods = [kit.endpoint(n, metrics=kit.read(kv_cache_usage=usage)) for n, usage in enumerate((0.9, 0.5, 0.1))]
        request = self.request(kit, pods, (10, 10), (10, 10), (500, 10))
        scorer = self.scorer(kit, headroom_selection_strategy=strategy)
        assert self.chosen(scorer, request, pods) == which
        late = self.request(kit, pods, (500, 10), (500, 10), (500, 10))
        assert self.chosen(scorer, late, pods) == 2

    @pytest.mark.parametrize(
        ("weights", "which"),
        [((1, 0, 0), 0), ((0, 1, 0), 1), ((0, 0, 1), 2), ((0, 0, 0), 0), ((1, 5, 1), 1)],
    )
    def test_without_predictions(self, kit: Any, weights: tuple[float, ...], which: int) -> None:
        pods = [
            kit.endpoint(0, metrics=kit.read(kv_cache_usage=0.1, waiting=9)),
            kit.endpoint(1, metrics=kit.read(kv_cache_usage=0.9, waiting=2)),
            kit.endpoint(2, metrics=kit.read(kv_cache_usage=0.9, waiting=9)),
        ]
        kv, queue, prefix = weights
        scorer = self.scorer(kit, composite_kv_weight=kv, composite_queue_weight=queue, composite_prefix_weight=prefix)
        request = kit.ask()
        kit.matched(request, {pods[2]: 9}, total=10)
        assert self.chosen(scorer, request, pods) == which
        some = self.request(kit, pods[:1], (1, 1))
        kit.matched(some, {pods[2]: 9}, total=10)
        assert self.chosen(scorer, some, pods) == which
        assert scorer.score(request, []) == []

    @pytest.mark.parametrize(
        ("blocks", "parameters", "which"),
        [
            ((0, 0, 10), {}, 2),
            ((0, 0, 10), {"affinity_gate_tau_global": 0.0, "affinity_gate_tau": 0.0}, 0),
            ((0, 8, 0), {}, 1),
            ((0, 7, 0), {}, 0),
        ],
        ids=["outer", "none", "inner", "too little"],
    )
    def test_gates(self, kit: Any, blocks: tuple[int, ...], parameters: dict[str, Any], which: int) -> None:
        """Who holds nearly all of the prompt gets it even late; who holds most of it, among those in time."""
        pods = kit.endpoints(3)
        request = self.request(kit, pods, (90, 10), (10, 10), (300, 10))
        kit.matched(request, {pod: count for pod, count in zip(pods, blocks, strict=True) if count}, total=10)
        assert self.chosen(self.scorer(kit, **parameters), request, pods) == which

    def test_the_gates_are_open_now_and_then(self, kit: Any) -> None:
        pods = kit.endpoints(2)
        request = self.request(kit, pods, (90, 10), (300, 10))
        kit.matched(request, {pods[1]: 10}, total=10)
        scorer = self.scorer(kit, epsilon_explore_sticky=0.25)
        found = Counter(self.chosen(scorer, request, pods) for _ in range(1000))
        assert 180 < found[0] < 320

    async def test_it_asks_by_itself(self, kit: Any, sidecar: Sidecar) -> None:
        rig = kit.rig(
            "plugins:\n- {type: predicted-latency-scorer, parameters: {selectionMode: max, streamingMode: false}}\n",
            kit.endpoints(2),
        )
        rig.endpoints[0].inflight = rig.endpoints[1].inflight = 1
        rig.endpoints[0].inflight = 9
        request = kit.ask(b"x" * 400, headers={"x-slo-ttft-ms": "1"})
        await rig.scheduler.prepare(request, rig.endpoints)
        assert rig.scheduler.schedule(request, rig.endpoints).endpoints == (rig.endpoints[1],)
        assert [row["input_token_length"] for row in sidecar.asked[0]] == [100, 100]
        for each in rig.scheduler.workers:
            await each._predictor._service.close()
