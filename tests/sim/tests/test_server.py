# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP surface, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from sim.tests.conftest import Running, Start

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 5}
COMPLETION = {"model": "demo", "prompt": "Once upon a time there was a pod that served", "max_tokens": 5}


async def post(server: Running, path: str, body: object, **headers: str) -> tuple[int, Any]:
    """Return the status and the JSON of an answer."""
    async with server.http.post(path, json=body, headers=headers) as response:
        return response.status, json.loads(await response.read() or b"null")


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """Return the events of a stream, which must end with [DONE], without that."""
    assert response.headers["Content-Type"].startswith("text/event-stream")
    parts = (await response.text()).split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


async def test_completion(start: Start) -> None:
    server = await start()
    status, body = await post(server, "/v1/completions", COMPLETION)
    assert status == 200
    assert body["object"] == "text_completion"
    assert body["model"] == "demo"
    assert body["id"].startswith("cmpl-")
    assert len(body["choices"][0]["text"].split()) == 5
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {
        "prompt_tokens": 11,
        "total_tokens": 16,
        "completion_tokens": 5,
        "prompt_tokens_details": None,
    }


async def test_streams_say_what_whole_answers_say(start: Start) -> None:
    server = await start()
    _, whole = await post(server, "/v1/chat/completions", CHAT)
    streamed = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with server.http.post("/v1/chat/completions", json=streamed) as response:
        parts = await events(response)
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(part["choices"][0]["delta"]["content"] for part in parts[:-1])
        == (whole["choices"][0]["message"]["content"])
    )
    assert [part["choices"][0]["finish_reason"] for part in parts[:-1]] == [None] * 5 + ["length"]
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["completion_tokens"] == 5
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert len({part["id"] for part in parts}) == 1


async def test_streamed_completion_without_usage(start: Start) -> None:
    server = await start()
    async with server.http.post("/v1/completions", json={**COMPLETION, "stream": True}) as response:
        parts = await events(response)
    assert len(parts) == 5
    assert all(part["choices"][0]["text"] for part in parts)
    assert not any("usage" in part for part in parts)


async def test_headers_of_a_stream_come_before_its_first_token(start: Start) -> None:
    server = await start("--prefill-overhead", "10000")  # a hundred seconds
    async with asyncio.timeout(10):
        response = await server.http.post("/v1/completions", json={**COMPLETION, "stream": True})
    assert response.status == 200
    assert server.engine.stats.generation_tokens == 0
    response.close()


async def test_several_prompts_get_a_choice_each(start: Start) -> None:
    server = await start()
    body = {**COMPLETION, "prompt": ["first prompt", "second prompt"]}
    _, whole = await post(server, "/v1/completions", body)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert whole["usage"]["completion_tokens"] == 10
    async with server.http.post("/v1/completions", json={**body, "stream": True}) as response:
        parts = await events(response)
    for choice in whole["choices"]:
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]


async def test_text_and_its_token_ids_are_the_same_prompt(start: Start) -> None:
    server = await start("--block-size", "4")
    _, tokenized = await post(server, "/tokenize", {"prompt": COMPLETION["prompt"]})
    assert tokenized["count"] == len(tokenized["tokens"]) == 11
    _, text = await post(server, "/v1/completions", COMPLETION)
    _, ids = await post(server, "/v1/completions", {**COMPLETION, "prompt": tokenized["tokens"]})
    assert ids["choices"] == text["choices"]
    assert ids["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    _, back = await post(server, "/detokenize", {"tokens": tokenized["tokens"]})
    assert back["prompt"] == COMPLETION["prompt"]
    async with server.http.post("/reset_prefix_cache") as response:
        assert response.status == 200
    _, fresh = await post(server, "/v1/completions", COMPLETION)
    assert fresh["usage"]["prompt_tokens_details"] is None


async def test_cached_tokens_can_be_left_out(start: Start) -> None:
    server = await start("--block-size", "4", "--no-enable-prompt-tokens-details")
    for _ in range(2):
        _, body = await post(server, "/v1/completions", COMPLETION)
    assert server.engine.stats.prefix_cache_hits == 8
    assert body["usage"]["prompt_tokens_details"] is None


async def test_a_conversation_finds_its_earlier_turns_in_the_cache(start: Start) -> None:
    server = await start("--block-size", "4")
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "Tell me of the sea."}]}]
    _, first = await post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 40, "ignore_eos": True})
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    _, second = await post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["total_tokens"] - 5 <= cached <= first["usage"]["total_tokens"]


async def test_a_body_of_any_size_in_chunks(start: Start) -> None:
    server = await start("--max-model-len", "2m", "--num-gpu-blocks-override", "200000")
    text = json.dumps({"prompt": "word" * 500_000, "max_tokens": 1}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(text), 50_000):
            yield text[at : at + 50_000]

    headers = {"Content-Type": "application/json"}
    async with server.http.post("/v1/completions", data=chunks(), headers=headers) as response:
        assert response.status == 200
        assert (await response.json())["usage"]["prompt_tokens"] == 500_000


async def test_a_client_that_expects_to_be_asked_for_the_body(start: Start) -> None:
    server = await start()
    async with asyncio.timeout(10):
        async with server.http.post("/v1/completions", json=COMPLETION, expect100=True) as response:
            assert response.status == 200


async def test_answers_end_by_themselves_unless_eos_is_ignored(start: Start) -> None:
    server = await start("--output-tokens-mean", "10")
    _, natural = await post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 1000})
    assert natural["choices"][0]["finish_reason"] == "stop"
    assert 5 <= natural["usage"]["completion_tokens"] <= 15
    _, longer = await post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 1000, "min_tokens": 33})
    assert longer["usage"]["completion_tokens"] == 33
    _, full = await post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 100, "ignore_eos": True})
    assert (full["choices"][0]["finish_reason"], full["usage"]["completion_tokens"]) == ("length", 100)


async def test_request_ids(start: Start) -> None:
    plain = await start()
    async with plain.http.post("/v1/completions", json=COMPLETION, headers={"X-Request-Id": "abc"}) as response:
        assert (await response.json())["id"] == "cmpl-abc"
        assert "X-Request-Id" not in response.headers
    echoing = await start("--enable-request-id-headers")
    for path, body, prefix in (("/v1/completions", COMPLETION, "cmpl-"), ("/v1/chat/completions", CHAT, "chatcmpl-")):
        async with echoing.http.post(path, json=body, headers={"X-Request-Id": "abc"}) as response:
            assert (await response.json())["id"] == f"{prefix}abc"
            assert response.headers["X-Request-Id"] == "abc"
    async with echoing.http.post(
        "/v1/completions", json={**COMPLETION, "stream": True}, headers={"X-Request-Id": "abc"}
    ) as response:
        assert response.headers["X-Request-Id"] == "abc"
    async with echoing.http.get("/v1/models") as response:
        assert len(response.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/v1/completions", {**COMPLETION, "model": "nope"}, 404, "The model `nope` does not exist."),
        ("/v1/completions", {"model": "demo"}, 400, "prompt must be"),
        ("/v1/completions", {"prompt": ""}, 400, "cannot be empty"),
        ("/v1/completions", {"prompt": [1, "a"]}, 400, "integers only"),
        ("/v1/completions", {"prompt": [-1]}, 400, "token ids must be"),
        ("/v1/completions", {**COMPLETION, "n": 2}, 400, "n must be 1"),
        ("/v1/completions", {**COMPLETION, "max_tokens": 0}, 400, "at least 1"),
        ("/v1/completions", {**COMPLETION, "max_tokens": "5"}, 400, "must be an integer, not a string"),
        ("/v1/completions", {**COMPLETION, "stream": "yes"}, 400, "true or false"),
        ("/v1/completions", {**COMPLETION, "stream_options": {"include_usage": True}}, 400, "stream=True"),
        ("/v1/completions", {**COMPLETION, "max_tokens": 100}, 400, "maximum context length is 64 tokens"),
        ("/v1/chat/completions", {"messages": []}, 400, "non-empty list"),
        ("/v1/chat/completions", {"messages": ["hi"]}, 400, "messages[0] must be an object"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "type text"),
        ("/v1/chat/completions", [], 400, "must be a JSON object, not an array"),
        ("/v1/nothing", {}, 404, "Not Found"),
        ("/v1/models", {}, 405, "Method Not Allowed"),
        ("/v1/load_lora_adapter", {}, 404, "Not Found"),
    ],
)
async def test_bad_requests_get_an_error_object_and_change_nothing(
    start: Start, path: str, body: object, status: int, text: str
) -> None:
    server = await start("--max-model-len", "64")
    answer = await post(server, path, body)
    assert answer[0] == answer[1]["error"]["code"] == status
    assert text in answer[1]["error"]["message"]
    assert set(answer[1]["error"]) == {"message", "type", "param", "code"}
    assert server.engine.stats.prefix_cache_queries == 0
    assert not server.engine.running


async def test_broken_json_and_other_content_types_are_refused(start: Start) -> None:
    server = await start()
    for content_type, text in (("application/json", "JSON decode error"), ("text/plain", "Unsupported Media Type")):
        headers = {"Content-Type": content_type}
        async with server.http.post("/v1/completions", data=b'{"prompt": ', headers=headers) as response:
            assert response.status == 400
            assert text in (await response.json())["error"]["message"]


async def test_models_health_and_version(start: Start) -> None:
    server = await start("--served-model-name", "one", "two", "--enable-lora", "--lora-modules", "a=/a")
    async with server.http.get("/v1/models") as response:
        cards = (await response.json())["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("one", "demo", None),
        ("two", "demo", None),
        ("a", "/a", "one"),
    ]
    _, answer = await post(server, "/v1/completions", {**COMPLETION, "model": "two"})
    assert answer["model"] == "one"
    async with server.http.get("/health") as response:
        assert (response.status, await response.read()) == (200, b"")
    async with server.http.get("/version") as response:
        assert (await response.json())["version"].endswith("+sim")


async def test_adapters_can_be_loaded_and_unloaded(start: Start) -> None:
    server = await start("--enable-lora", "--max-loras", "2")
    wanted = {**COMPLETION, "model": "extra"}
    assert (await post(server, "/v1/completions", wanted))[0] == 404
    load = {"lora_name": "extra", "lora_path": "/adapters/extra"}
    async with server.http.post("/v1/load_lora_adapter", json=load) as response:
        assert (response.status, await response.text()) == (200, "Success: LoRA adapter 'extra' added successfully.")
    assert (await post(server, "/v1/load_lora_adapter", load))[0] == 400
    assert (await post(server, "/v1/load_lora_adapter", {"lora_name": "x"}))[0] == 400
    status, body = await post(server, "/v1/completions", wanted)
    assert (status, body["model"]) == (200, "extra")
    assert ("extra", "") in server.engine.stats.lora_info
    async with server.http.post("/v1/unload_lora_adapter", json={"lora_name": "extra"}) as response:
        assert response.status == 200
    assert (await post(server, "/v1/completions", wanted))[0] == 404
    assert (await post(server, "/v1/unload_lora_adapter", {"lora_name": "extra"}))[0] == 404


async def test_api_keys_guard_the_api_only(start: Start) -> None:
    server = await start("--api-key", "secret", "other")
    assert (await post(server, "/v1/completions", COMPLETION))[0] == 401
    assert (await post(server, "/v1/completions", COMPLETION, Authorization="Bearer wrong"))[0] == 401
    assert (await post(server, "/v1/completions", COMPLETION, Authorization="Bearer other"))[0] == 200
    async with server.http.get("/metrics") as response:
        assert response.status == 200


async def test_a_client_that_goes_away_frees_its_blocks(start: Start) -> None:
    server = await start("--inter-token-latency", "100")  # a second for each token
    response = await server.http.post("/v1/completions", json={**COMPLETION, "stream": True})
    assert server.engine.pool.in_use > 0
    response.close()
    async with asyncio.timeout(10):
        while server.engine.pool.in_use:
            await asyncio.sleep(0.01)
    assert server.engine.stats.request_success["abort"] == 1


async def test_a_full_queue_is_429(start: Start) -> None:
    server = await start("--inter-token-latency", "100", "--max-num-seqs", "1", "--max-waiting-queue-length", "1")
    streams = [
        await server.http.post("/v1/completions", json={**COMPLETION, "stream": True, "ignore_eos": True})
        for _ in range(2)
    ]
    status, body = await post(server, "/v1/completions", COMPLETION)
    assert (status, body["error"]["type"]) == (429, "TooManyRequests")
    async with server.http.get("/metrics") as response:
        page = await response.text()
    assert 'vllm:num_requests_waiting{engine="0",model_name="demo"} 1.0' in page
    for stream in streams:
        stream.close()


async def test_injected_faults_are_seeded(start: Start) -> None:
    async def outcomes() -> list[int | None]:
        server = await start("--fail-rate", "0.3", "--reset-rate", "0.3", "--fault-seed", "7", "--instance-header")
        seen: list[int | None] = []
        for _ in range(20):
            try:
                async with server.http.post("/v1/completions", json=COMPLETION) as response:
                    seen.append(response.status)
                    assert response.headers["x-sim-instance"] == f"127.0.0.1:{server.listener.port}"
            except aiohttp.ClientOSError as error:
                seen.append(error.errno)
        async with server.http.get("/health") as response:
            assert response.status == 200
        return seen

    first = await outcomes()
    assert set(first) == {200, 500, errno.ECONNRESET}
    assert await outcomes() == first
