# SPDX-License-Identifier: GPL-3.0-or-later
"""Every pair of body modes, with the real Envoy: what reaches the model server, and what comes back."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from benchmarks import rig

pytestmark = pytest.mark.envoy

MODES = ("FULL_DUPLEX_STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "STREAMED")
REWRITE = {"content-type": "application/json", "x-gateway-model-name-rewrite": "llama-v2"}
PATH = "/v1/completions"


@pytest.fixture(params=itertools.product(MODES, (*MODES, "NONE")), ids="-".join, scope="module")
def url(request: pytest.FixtureRequest, epp: rig.Epp, mirror: Any) -> Iterator[str]:
    """An Envoy with one pair of modes, request and response."""
    with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port, *request.param)) as address:
        yield address


@pytest.fixture
def back(request: pytest.FixtureRequest) -> str:
    """The model's name that the client must see: nothing can be renamed in a body that is not sent to the EPP."""
    return "llama-v2" if "-NONE" in request.node.name else "llama"


async def test_plain(client: aiohttp.ClientSession, url: str, back: str) -> None:
    body = b'{"model": "llama", "prompt": "hello"}'
    async with client.post(url + PATH, data=body, headers=REWRITE) as answer:
        assert answer.status == 200
        told = await answer.json()
    assert told["body"] == '{"model": "llama-v2", "prompt": "hello"}'
    assert told["model"] == back
    assert told["headers"]["x-gateway-destination-endpoint"] == told["served"]


async def test_streamed_answer(client: aiohttp.ClientSession, url: str, back: str) -> None:
    body = b'{"model": "llama", "stream": true}'
    async with client.post(url + PATH, data=body, headers=REWRITE) as answer:
        assert answer.status == 200
        events = [json.loads(line[6:]) for line in (await answer.read()).split(b"\n\n") if line.startswith(b"data: {")]
    assert [event["model"] for event in events[:10]] == [back] * 10
    assert events[0]["body"] == '{"model": "llama-v2", "stream": true}'
    assert events[10]["usage"]["prompt_tokens"] == 5


async def test_large_body_without_rewrite(client: aiohttp.ClientSession, url: str) -> None:
    body = b'{"prompt": "' + b"x" * 700_000 + b'", "model": "llama"}'
    async with client.post(url + PATH, data=body, headers={"content-type": "application/json"}) as answer:
        assert answer.status == 200
        told = await answer.json()
    assert (told["size"], told["model"]) == (len(body), "llama")


async def test_chunked_body_with_the_model_last(client: aiohttp.ClientSession, url: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(20):
            yield b"x" * 1000
        yield b'", "model": "ll'
        yield b'ama"}'

    async with client.post(url + PATH, data=pieces(), headers=REWRITE) as answer:
        assert answer.status == 200
        told = await answer.json()
    assert told["size"] == 12 + 20_000 + 23


async def test_get(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(url + "/v1/models") as answer:
        told = await answer.json()
    assert told["headers"]["x-gateway-destination-endpoint"] == told["served"]


@pytest.mark.parametrize("response_mode", MODES)
async def test_partial_body_that_does_not_fit(
    client: aiohttp.ClientSession, epp: rig.Epp, mirror: Any, response_mode: str
) -> None:
    options = rig.EnvoyOptions(mirror.hostports, epp.grpc_port, "BUFFERED_PARTIAL", response_mode, buffer_bytes=32_768)
    body = b'{"model": "llama", "prompt": "' + b"x" * 300_000 + b'"}'
    with rig.envoy(options) as url:
        async with client.post(url + PATH, data=body, headers=REWRITE) as answer:
            assert answer.status == 200
            told = await answer.json()
    assert told["size"] == len(body) + len("-v2")
    assert told["model"] == "llama"
    assert told["headers"]["x-gateway-destination-endpoint"] == told["served"]


async def test_streamed_rewrite_without_a_model(client: aiohttp.ClientSession, epp: rig.Epp, mirror: Any) -> None:
    with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port, "STREAMED", "STREAMED")) as url:
        async with client.post(url + PATH, data=b'{"prompt": "x"}', headers=REWRITE) as answer:
            assert answer.status == 400
            assert "model not found in request body" in await answer.text()
