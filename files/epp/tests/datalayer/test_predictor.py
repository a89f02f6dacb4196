# SPDX-License-Identifier: GPL-3.0-or-later
"""A latency predictor: real servers with a linear model, asked together, taught, and sometimes not there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from ports import free_port

from epp.datalayer import predictor as module
from epp.datalayer.predictor import Features, Predictor, PredictorOptions, sample
from epp.datalayer.service import ServiceError


def features(tokens: int = 10, running: int = 0) -> Features:
    return Features(0.5, tokens, 0, running, 1, 0.0)


class Server:
    """Predicts 2 ms per token of the prompt, and 3 ms per token and running request; remembers what it is taught."""

    def __init__(self) -> None:
        self.port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.asked: list[list[dict[str, Any]]] = []
        self.taught: list[list[dict[str, Any]]] = []
        self.status = 200
        self.pause = 0.0
        self.answer: Any = None

    async def predict(self, request: web.Request) -> web.Response:
        rows = (await request.json())["requests"]
        self.asked.append(rows)
        await asyncio.sleep(self.pause)
        found = [
            {"ttft_ms": 2.0 * each["input_token_length"], "tpot_ms": 3.0 * each["num_request_running"], "more": "x"}
            for each in rows
        ]
        return web.json_response(
            {"predictions": found, "total_requests": len(rows)} if self.answer is None else self.answer,
            status=self.status,
        )

    async def learn(self, request: web.Request) -> web.Response:
        self.taught.append((await request.json())["entries"])
        return web.json_response({"message": "Accepted"}, status=202 if self.status == 200 else self.status)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests measure nothing, and the machine may be busy."""
    for name in ("epp.datalayer.predictor.PREDICT_SECONDS",):
        monkeypatch.setattr(name, 20.0)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/predict/bulk/strict", made.predict)
    app.router.add_post("/add_training_data_bulk", made.learn)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", made.port).start()
    yield made
    await runner.cleanup()


class Working:
    """A predictor at work."""

    def __init__(self, url: str, **options: Any) -> None:
        self.predictor = Predictor(PredictorOptions(url, **{"prediction": (url,), **options}), random.Random(1))

    async def __aenter__(self) -> Predictor:
        self.task = asyncio.create_task(self.predictor.run())
        await asyncio.sleep(0)
        return self.predictor

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class TestPredictions:
    async def test_each_row_has_its_own(self, server: Server) -> None:
        async with Working(server.url) as predictor:
            assert await predictor.predict([features(10), features(20, 2)]) == [(20.0, 0.0), (40.0, 6.0)]
            assert await predictor.predict([]) == []
            assert server.asked == [
                [
                    {
                        "kv_cache_percentage": 0.5,
                        "input_token_length": tokens,
                        "num_request_waiting": 0,
                        "num_request_running": running,
                        "num_tokens_generated": 1,
                        "prefix_cache_score": 0.0,
                        "prefill_tokens_in_flight": 0,
                        "decode_tokens_in_flight": 0,
                        "encoder_input_size": 0,
                        "encoder_matched_size": 0,
                        "pod_type": "",
                    }
                    for tokens, running in ((10, 0), (20, 2))
                ]
            ]

    async def test_questions_go_together(self, server: Server) -> None:
        async with Working(server.url, max_rows=5, window=0.02) as predictor:
            asked = [asyncio.create_task(predictor.predict([features(n), features(n + 100)])) for n in range(1, 6)]
            found = await asyncio.gather(*asked)
            assert found == [[(2.0 * n, 0.0), (2.0 * (n + 100), 0.0)] for n in range(1, 6)]
            assert sorted(map(len, server.asked)) == [2, 4, 4]

    async def test_too_many_for_one_message(self, server: Server) -> None:
        async with Working(server.url, max_rows=3) as predictor:
            found = await predictor.predict([features(n) for n in range(8)])
            assert found == [(2.0 * n, 0.0) for n in range(8)]
            assert sorted(map(len, server.asked)) == [2, 3, 3]

    async def test_one_who_leaves_takes_nothing_with_him(self, server: Server) -> None:
        server.pause = 0.05
        async with Working(server.url) as predictor:
            first, second = (asyncio.create_task(predictor.predict([features(n)])) for n in (1, 2))
            await asyncio.sleep(0.02)
            first.cancel()
            assert await second == [(4.0, 0.0)]
            server.status = 500
            first, second = (asyncio.create_task(predictor.predict([features(n)])) for n in (1, 2))
            await asyncio.sleep(0.02)
            first.cancel()
            with pytest.raises(ServiceError):
                await second

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ({"predictions": []}, "0 predictions for 1 requests"),
            ({"predictions": [{"ttft_ms": 1, "tpot_ms": 1}], "failed_predictions": 1}, "0 predictions for 1"),
            ({"predictions": [{"ttft_ms": 1}]}, "not understood"),
            ({}, "not understood"),
        ],
    )
    async def test_nonsense(self, server: Server, answer: Any, message: str) -> None:
        server.answer = answer
        async with Working(server.url) as predictor:
            with pytest.raises(ServiceError, match=message):
                await predictor.predict([features()])
            assert not predictor.resting

    async def test_no_number(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Working(server.url) as predictor:
            monkeypatch.setattr("math.isfinite", lambda value: False)
            with pytest.raises(ServiceError, match="no number"):
                await predictor.predict([features()])

    async def test_it_is_not_waited_for(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PREDICT_SECONDS", 0.05)
        server.pause = 5.0
        async with Working(server.url) as predictor:
            with pytest.raises(ServiceError, match="no answer within"):
                await predictor.predict([features()])
            assert predictor.resting
            with pytest.raises(ServiceError, match="rests"):
                await predictor.predict([features()])
            assert len(server.asked) == 1

    async def test_several(self, server: Server) -> None:
        """They take turns by chance, and one that fails is left out for a while."""
        nobody = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        async with Working(server.url, prediction=(nobody, server.url)) as predictor:
            failed = 0
            for _ in range(20):
                try:
                    assert await predictor.predict([features(3)]) == [(6.0, 0.0)]
                except ServiceError:
                    failed += 1
            assert failed == 1
            assert not predictor.resting

    async def test_the_end(self, server: Server) -> None:
        server.pause = 5.0
        async with Working(server.url) as predictor:
            asking = asyncio.create_task(predictor.predict([features()]))
            while not server.asked:
                await asyncio.sleep(0.01)
        assert not asking.done()
        asking.cancel()


class TestTeaching:
    async def test_samples(self, server: Server) -> None:
        async with Working(server.url, flush=0.02) as predictor:
            predictor.learn([sample(features(7), "2026-01-01T00:00:00Z", ttft=12.0, predicted=10.0)])
            predictor.learn([sample(features(7), "2026-01-01T00:00:00Z", tpot=3.0, predicted=2.0)])
            predictor.learn([sample(features(8), "2026-01-01T00:00:00Z", tpot=3.0)])
            while not server.taught:
                await asyncio.sleep(0.01)
        (entries,) = server.taught
        assert [entry["actual_ttft_ms"] for entry in entries] == [12.0, 0.0, 0.0]
        assert [entry["actual_tpot_ms"] for entry in entries] == [0.0, 3.0, 3.0]
        assert [entry.get("predicted_ttft_ms") for entry in entries] == [10.0, None, None]
        assert [entry.get("predicted_tpot_ms") for entry in entries] == [None, 2.0, None]
        assert entries[0]["input_token_length"] == 7
        assert entries[0]["timestamp"] == "2026-01-01T00:00:00Z"

    async def test_of_too_many_a_part_of_each_kind(self, server: Server) -> None:
        async with Working(server.url, flush=0.02, max_samples=20) as predictor:
            predictor.learn([sample(features(n), "t", ttft=1.0) for n in range(30)])
            predictor.learn([sample(features(n), "t", tpot=1.0) for n in range(10)])
            while not server.taught:
                await asyncio.sleep(0.01)
            assert sum(1 for entry in server.taught[0] if entry["actual_ttft_ms"]) == 15
            assert len(server.taught[0]) == 20
            server.taught.clear()
            predictor.learn([sample(features(n), "t", ttft=1.0) for n in range(300)])
            assert len(predictor._samples) == 200
            assert predictor._samples[0].input_token_length == 100

    async def test_nobody_learns(self) -> None:
        async with Working(f"http://127.0.0.1:{free_port('127.0.0.1')}", flush=0.02) as predictor:
            predictor.learn([sample(features(), "t", ttft=1.0)])
            await asyncio.sleep(0.1)
            predictor.learn([sample(features(), "t", ttft=1.0)])
            await asyncio.sleep(0.05)
            assert len(predictor._samples) == 1  # kept while it rests


class TestEnvironment:
    def test_defaults(self) -> None:
        assert PredictorOptions.from_environment({}) == PredictorOptions()

    def test_variables(self) -> None:
        found = PredictorOptions.from_environment(
            {
                "TRAINING_SERVER_URL": "http://t:1/",
                "PREDICTION_SERVER_URL": "http://a:1, http://b:2/,",
                "LATENCY_MAX_SAMPLE_SIZE": "5",
                "LATENCY_FLUSH_INTERVAL_SEC": "2",
                "LATENCY_HTTP_TIMEOUT_SEC": "3",
                "LATENCY_MAX_COALESCED_ROWS": "50",
                "LATENCY_COALESCE_WINDOW_MS": "0",
                "LATENCY_MAX_CONCURRENT_DISPATCHES": "4",
            }
        )
        assert found == PredictorOptions("http://t:1", ("http://a:1", "http://b:2"), 5, 2.0, 3.0, 50, 0.0, 4)

    @pytest.mark.parametrize("value", ["", "x", "-1", "0", "10001", "٣"])
    def test_nonsense(self, value: str) -> None:
        assert PredictorOptions.from_environment({"LATENCY_MAX_COALESCED_ROWS": value}).max_rows == 5000
