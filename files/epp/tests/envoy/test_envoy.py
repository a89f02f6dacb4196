# SPDX-License-Identifier: GPL-3.0-or-later
"""The EPP behind the real Envoy: routing, errors, and programs that come and go."""

from __future__ import annotations

import asyncio
import collections
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from benchmarks import rig
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from ports import free_port

pytestmark = pytest.mark.envoy

PATH = "/v1/completions"


async def post(client: aiohttp.ClientSession, url: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with client.post(url + PATH, json={"model": "llama", "prompt": "hello", **body}) as answer:
        return answer.status, await answer.json(content_type=None)


class TestRouting:
    async def test_the_chosen_pod_serves(self, client: aiohttp.ClientSession, gateway: str) -> None:
        for number in range(12):
            status, told = await post(client, gateway, prompt=f"prompt {number}")
            assert status == 200
            assert told["headers"]["x-gateway-destination-endpoint"] == told["served"]
            assert len(told["headers"]["x-request-id"]) == 36

    async def test_streams_arrive_piece_by_piece(self, client: aiohttp.ClientSession, gateway: str) -> None:
        pieces = []
        async with client.post(gateway + PATH, json={"model": "llama", "prompt": "x", "stream": True}) as answer:
            assert answer.headers["x-went-into-resp-headers"] == "true"
            async for piece in answer.content.iter_any():
                pieces.append(piece)
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        assert len(pieces) > 3

    async def test_a_request_without_body(self, client: aiohttp.ClientSession, gateway: str) -> None:
        async with client.get(gateway + "/v1/models") as answer:
            told = await answer.json()
        assert told["headers"]["x-gateway-destination-endpoint"] == told["served"]

    async def test_other_content_passes(self, client: aiohttp.ClientSession, gateway: str) -> None:
        form = aiohttp.FormData()
        form.add_field("file", b"\x00\x01", filename="a.wav")
        async with client.post(gateway + "/v1/audio/transcriptions", data=form) as answer:
            assert answer.status == 200
            assert (await answer.json())["headers"]["x-gateway-destination-endpoint"]

    async def test_a_client_cannot_choose(self, client: aiohttp.ClientSession, gateway: str) -> None:
        headers = {"x-gateway-destination-endpoint": "127.0.0.1:1"}
        async with client.post(gateway + PATH, json={"model": "llama"}, headers=headers) as answer:
            told = await answer.json()
        assert told["headers"]["x-gateway-destination-endpoint"] == told["served"]

    async def test_the_gateways_subset_is_kept(self, client: aiohttp.ClientSession, epp: rig.Epp, mirror: Any) -> None:
        allowed = mirror.hostports[1]
        options = rig.EnvoyOptions(mirror.hostports, epp.grpc_port, subset=(allowed,))
        with rig.envoy(options) as url:
            served = {(await post(client, url, prompt=f"p{number}"))[1]["served"] for number in range(8)}
        assert served == {allowed}

    async def test_a_subset_of_strangers_is_503(self, client: aiohttp.ClientSession, epp: rig.Epp, mirror: Any) -> None:
        with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port, subset=("10.9.9.9:1",))) as url:
            async with client.post(url + PATH, json={"model": "llama"}) as answer:
                assert answer.status == 503
                assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"

    async def test_usage_reaches_the_metrics(
        self, client: aiohttp.ClientSession, gateway: str, epp: rig.Epp, read_metric: Any
    ) -> None:
        for stream in (False, True):
            async with client.post(gateway + PATH, json={"model": "counted", "stream": stream}) as answer:
                await answer.read()
        await asyncio.sleep(0.2)
        page = await asyncio.to_thread(epp.metrics)
        assert read_metric(page, "inference_objective_request_total", model_name="counted") == 2
        assert read_metric(page, "inference_objective_output_tokens_sum", model_name="counted") == 20
        assert read_metric(page, "inference_objective_input_tokens_sum", model_name="counted") == 10

    async def test_many_large_prompts_at_once_stay_in_bounds(
        self, client: aiohttp.ClientSession, gateway: str, epp: rig.Epp
    ) -> None:
        streams, piece = 256, b"x" * 50_000
        all_sent = asyncio.Barrier(streams)

        async def prompt() -> AsyncIterator[bytes]:
            yield b'{"model": "llama", "prompt": "'
            for _ in range(20):
                yield piece
            await all_sent.wait()  # so that the EPP holds every prompt at the same time
            yield b'"}'

        async def one() -> int:
            async with client.post(
                gateway + PATH, data=prompt(), headers={"content-type": "application/json"}
            ) as answer:
                await answer.read()
                return answer.status

        peak = 0

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, epp.process.memory_bytes())
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        statuses = await asyncio.gather(*(one() for _ in range(streams)))
        watching.cancel()
        assert set(statuses) == {200}
        assert peak < 1_500_000_000

    async def test_a_large_prompt(self, client: aiohttp.ClientSession, gateway: str) -> None:
        status, told = await post(client, gateway, prompt="x" * 16_000_000)
        assert status == 200
        assert told["size"] > 16_000_000


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b'{"model": ', "inference error: BadRequest - failed to parse request body: "),
            (b'{"prompt": "x"}', "inference error: BadRequest - model not found in request body"),
        ],
    )
    async def test_bad_bodies(self, client: aiohttp.ClientSession, gateway: str, body: bytes, text: str) -> None:
        async with client.post(gateway + PATH, data=body, headers={"content-type": "application/json"}) as answer:
            assert answer.status == 400
            assert (await answer.text()).startswith(text)

    async def test_pool_empties_and_fills(self, client: aiohttp.ClientSession, mirror: Any, tmp_path: Path) -> None:
        file = rig.write_endpoints(tmp_path / "endpoints.yaml", [])
        with rig.epp(f"--endpoints-file={file}", "--secure-serving=false") as epp:
            options = rig.EnvoyOptions(mirror.hostports, epp.grpc_port, tls=False)
            with rig.envoy(options) as url:
                for how in ("post", "get"):
                    async with getattr(client, how)(
                        url + PATH, **({"json": {"model": "m"}} if how == "post" else {})
                    ) as no:
                        assert no.status == 503
                        assert no.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
                        assert await no.text() == (
                            "inference error: ServiceUnavailable - "
                            "failed to find endpoint candidates for serving the request"
                        )
                rig.write_endpoints(file, mirror.hostports)
                async with asyncio.timeout(20):
                    while (await client.post(url + PATH, json={"model": "m"})).status != 200:
                        await asyncio.sleep(0.05)

    async def test_plaintext_and_tls_do_not_mix(self, client: aiohttp.ClientSession, epp: rig.Epp, mirror: Any) -> None:
        with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port, tls=False)) as url:
            async with client.post(url + PATH, json={"model": "m"}) as answer:
                assert answer.status == 500


class TestComingAndGoing:
    async def test_a_client_that_leaves_gives_its_endpoint_back(
        self, client: aiohttp.ClientSession, gateway: str, epp: rig.Epp, inflight: Any, mirror: Any
    ) -> None:
        mirror.pause = 5.0
        try:
            answer = await client.post(gateway + PATH, json={"model": "llama", "stream": True})
            await answer.content.readany()
            await inflight.becomes(epp, 1)
            answer.close()
            await inflight.becomes(epp, 0)
        finally:
            mirror.pause = 0.01

    async def test_a_client_that_leaves_amid_its_prompt(
        self, client: aiohttp.ClientSession, gateway: str, epp: rig.Epp, inflight: Any
    ) -> None:
        async def half() -> Any:
            yield b'{"model": "llama", "prompt": "'
            await asyncio.sleep(60)

        with pytest.raises(TimeoutError):
            await client.post(gateway + PATH, data=half(), timeout=aiohttp.ClientTimeout(0.3))
        await inflight.becomes(epp, 0)
        assert (await post(client, gateway))[0] == 200

    async def test_sigterm_lets_streams_end(self, client: aiohttp.ClientSession, endpoints: Path, mirror: Any) -> None:
        mirror.pause = 0.3
        try:
            with rig.epp(f"--endpoints-file={endpoints}") as epp:
                with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port)) as url:
                    answer = await client.post(url + PATH, json={"model": "llama", "stream": True})
                    await answer.content.readany()
                    epp.process.popen.send_signal(signal.SIGTERM)
                    await self._health_becomes(epp, HealthCheckResponse.NOT_SERVING)
                    late = await client.post(url + PATH, json={"model": "llama"})
                    assert late.status == 200  # what comes in spite of NOT_SERVING is served
                    assert (await answer.read()).endswith(b"data: [DONE]\n\n")
                    status = await asyncio.to_thread(epp.process.popen.wait, 20)
                    assert status == 0
        finally:
            mirror.pause = 0.01

    async def test_sigterm_ends_streams_with_the_drain_timeout(
        self, client: aiohttp.ClientSession, endpoints: Path, mirror: Any
    ) -> None:
        mirror.pause = 5.0
        try:
            with rig.epp(f"--endpoints-file={endpoints}", "--drain-timeout=300ms") as epp:
                with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port)) as url:
                    answer = await client.post(url + PATH, json={"model": "llama", "stream": True})
                    await answer.content.readany()
                    assert await asyncio.to_thread(epp.process.stop) == 0
                    with pytest.raises(aiohttp.ClientError):
                        await answer.read()
                    assert "1 streams are still open" in epp.process.tail()
        finally:
            mirror.pause = 0.01

    async def test_killed_and_back(self, client: aiohttp.ClientSession, endpoints: Path, mirror: Any) -> None:
        with rig.epp(f"--endpoints-file={endpoints}") as epp:
            with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port)) as url:
                assert (await post(client, url))[0] == 200
                epp.process.popen.kill()
                epp.process.popen.wait()
                async with client.post(url + PATH, json={"model": "llama"}) as answer:
                    assert answer.status == 500
                ports = (epp.grpc_port, epp.health_port, epp.metrics_port)
                with rig.epp(f"--endpoints-file={endpoints}", ports=ports):
                    async with asyncio.timeout(20):
                        while (await client.post(url + PATH, json={"model": "llama"})).status != 200:
                            await asyncio.sleep(0.1)

    async def test_a_pod_that_refuses_connections_costs_no_request(
        self, client: aiohttp.ClientSession, mirror: Any, tmp_path: Path
    ) -> None:
        hostports = (*mirror.hostports, f"127.0.0.1:{free_port()}")
        file = rig.write_endpoints(tmp_path / "endpoints.yaml", hostports)
        with rig.epp(f"--endpoints-file={file}") as epp:
            with rig.envoy(rig.EnvoyOptions(hostports, epp.grpc_port, retries=3)) as url:
                answers = await asyncio.gather(*(post(client, url, prompt=f"{number}" * 50) for number in range(40)))
        assert [status for status, _ in answers] == [200] * 40

    async def _health_becomes(self, epp: rig.Epp, wanted: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{epp.health_port}") as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
            )
            async with asyncio.timeout(10):
                while (await check(HealthCheckRequest(service="inference-extension"))).status != wanted:
                    await asyncio.sleep(0.01)


class TestWithSimulators:
    """Four simulated vLLM servers with real prefix caches."""

    @pytest.fixture
    def stack(self, sims: tuple[str, ...], tmp_path: Path) -> Any:
        file = rig.write_endpoints(tmp_path / "endpoints.yaml", sims)
        with rig.epp(f"--endpoints-file={file}") as epp:
            with rig.envoy(rig.EnvoyOptions(sims, epp.grpc_port)) as url:
                yield epp, url

    async def _served(
        self, client: aiohttp.ClientSession, url: str, prompts: list[str], parallel: int
    ) -> dict[str, int]:
        """Which simulator answered how many of the prompts."""
        served: collections.Counter[str] = collections.Counter()
        waiting = iter(prompts)

        async def work() -> None:
            for prompt in waiting:
                body = {"model": "llama", "prompt": prompt, "max_tokens": 4}
                async with client.post(url + PATH, json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                    served[answer.headers["x-sim-instance"]] += 1

        await asyncio.gather(*(work() for _ in range(parallel)))
        return served

    async def test_a_shared_prefix_stays_where_it_is_and_others_spread(
        self, client: aiohttp.ClientSession, stack: Any
    ) -> None:
        _, url = stack
        document = "The same long document. " * 200
        same = await self._served(client, url, [f"{document} Question {number}?" for number in range(60)], parallel=2)
        assert max(same.values()) >= 45, same
        different = [f"{number * 7919} something else " * 40 for number in range(80)]
        spread = await self._served(client, url, different, parallel=8)
        assert len(spread) == 4, spread
        assert max(spread.values()) <= 40, spread

    async def test_streams_of_a_model_server(
        self, client: aiohttp.ClientSession, stack: Any, inflight: Any, read_metric: Any
    ) -> None:
        epp, url = stack
        body = {
            "model": "llama",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 12,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with client.post(url + "/v1/chat/completions", json=body) as answer:
            events = [line[6:] for line in (await answer.read()).split(b"\n\n") if line.startswith(b"data: ")]
        assert events[-1] == b"[DONE]"
        assert json.loads(events[-2])["usage"]["completion_tokens"] == 12
        await inflight.becomes(epp, 0)
        page = await asyncio.to_thread(epp.metrics)
        assert read_metric(page, "inference_objective_output_tokens_sum", model_name="llama") == 12

    async def test_many_streams_at_once_leave_nothing_behind(
        self, client: aiohttp.ClientSession, stack: Any, inflight: Any
    ) -> None:
        epp, url = stack

        async def one(number: int) -> bool:
            body = {"model": "llama", "prompt": f"{number}", "max_tokens": 8, "stream": True}
            async with client.post(url + PATH, json=body) as answer:
                return (await answer.read()).endswith(b"data: [DONE]\n\n")

        assert all(await asyncio.gather(*(one(number) for number in range(64))))
        await inflight.becomes(epp, 0)
