# SPDX-License-Identifier: GPL-3.0-or-later
"""Token ids from a renderer and from requests, and prefixes by what engines say; real servers and real sockets."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from aiohttp import web
from ports import free_port

from epp.datalayer.kvblocks import MAX_ENTRIES
from epp.datalayer.kvevents import Batch, BlockStored
from epp.model import Decision, Endpoint
from epp.plugins import precise_prefix_cache_producer as precise
from epp.plugins.tokens import extras_of, sent_tokens, tokens_of
from epp.scheduling import PrefixMatch, TokenizedPrompt
from epp.scheduling.api import TOKENS

PROMPT = json.dumps(list(range(64))).encode()
KEY = "prefix-match/precise-prefix-cache-producer"
CONFIG = """
plugins:
- type: token-producer
  parameters:
    vllm: {url: "URL"}
- type: precise-prefix-cache-producer
  parameters:
    speculativeIndexing: true
    speculativeTTL: 300ms
    kvEventsConfig: {podDiscoveryConfig: {socketPort: PORT}}
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}
"""


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def stored(tokens: int, first: int = 0, medium: str = "gpu", size: int = 16, **more: Any) -> Batch:
    """An engine holds the first tokens of the prompt."""
    hashes = list(range(1 + first, 1 + first + tokens // size))
    event = BlockStored(hashes, first or None, list(range(first * size, first * size + tokens)), size, medium, **more)
    return Batch([event])


def figure(world: Any, name: str, *parts: str) -> float:
    lines = world.recorder.render().decode().splitlines()
    found = [line for line in lines if line.startswith(f"llm_d_epp_{name}{{") and all(part in line for part in parts)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


class TestTokenIds:
    @pytest.mark.parametrize(
        ("prompt", "prompts"),
        [
            (b"[1, 2]", [[1, 2]]),
            (b" [ 7 ]", [[7]]),
            (b"[[1], [2, 3]]", [[1], [2, 3]]),
            (b"[]", None),
            (b"[[]]", [[]]),
            (b'"text"', None),
            (b'["a", "b"]', None),
            (b'[{"role": "user"}]', None),
            (b"[1, 2", None),
            (b"[1, -2]", None),
            (b"[1, 99999999999]", None),
            (b"[1.5]", None),
            (b"", None),
        ],
    )
    def test_in_requests(self, prompt: bytes, prompts: list[list[int]] | None) -> None:
        found = sent_tokens(prompt)
        assert (found and [list(each) for each in found.prompts]) == prompts

    def test_a_producers_word_counts_more(self, kit: Any) -> None:
        request = kit.ask(b"[1]")
        assert tokens_of(request) is not None
        request.attributes[TOKENS] = known = TokenizedPrompt([array("I", [5])])
        assert tokens_of(request) is known

    def test_extras(self) -> None:
        tokenized = TokenizedPrompt([array("I", range(64))], [("a", 15, 2), ("b", 20, 0), ("c", 32, 32)])
        assert extras_of(tokenized, 16, "") == {0: ("a",), 1: ("a", "b"), 2: ("c",), 3: ("c",)}
        assert extras_of(tokenized, 16, "salt")[0] == ("a", "salt")
        assert extras_of(TokenizedPrompt([]), 16, "salt") == {0: ("salt",)}


class Renderer:
    """A server that renders."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.status, self.pause = 200, 0.0
        self.port = free_port("127.0.0.1")

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        await asyncio.sleep(self.pause)
        answer: Any = {"token_ids": list(range(64))}
        return web.json_response(answer if "chat" in request.path else [answer], status=self.status)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests measure nothing, and the machine may be busy."""
    for name in ("epp.plugins.token_producer.ASK_SECONDS", "epp.scheduling.scheduler.PREPARE_SECONDS"):
        monkeypatch.setattr(name, 20.0)


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    app = web.Application()
    app.router.add_post("/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", made.port).start()
    yield made
    await runner.cleanup()


class TestTokenProducer:
    async def prepared(self, kit: Any, text: str, path: str = "/v1/completions", **fields: Any) -> Any:
        producer = kit.make("token-producer", **vars(kit.parameters("token-producer", text)))
        working = asyncio.create_task(producer.run())
        request = kit.ask(**{"prompt": b'"hello"', "body": b'{"prompt": "hello"}', **fields}, headers={":path": path})
        try:
            assert producer.asks
            await producer.prepare(request, [Endpoint("e", "", "e", "127.0.0.1", self.port)])
            producer.produce(request, [])
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        return request

    port = 1

    async def test_a_renderer(self, kit: Any, renderer: Renderer) -> None:
        url = f"http://127.0.0.1:{renderer.port}/"
        for text in (f"{{vllm: {{url: '{url}'}}}}", f"{{modelName: m, vllm: {{http: '{url}', timeout: 1s}}}}"):
            request = await self.prepared(kit, text)
            assert list(request.attributes[TOKENS].prompts[0]) == list(range(64))
            assert request.prompt_tokens == 64
        assert renderer.asked == [("/v1/completions/render", {"prompt": "hello"})] * 2
        kit.make("token-producer").pre_request(request, None)
        assert TOKENS not in request.attributes

    async def test_the_endpoints_themselves(self, kit: Any, renderer: Renderer) -> None:
        self.port = renderer.port
        request = await self.prepared(kit, "{vllm: {endpointDiscovery: {}}}", "/v1/chat/completions")
        assert request.prompt_tokens == 64
        assert renderer.asked[0][0] == "/v1/chat/completions/render"
        rules = f"[{{selector: {{matchLabels: {{a: b}}}}, basePort: 1}}, {{basePort: {renderer.port}}}]"
        self.port = 1
        text = f"{{vllm: {{endpointDiscovery: {{portRules: {rules}}}}}}}"
        assert (await self.prepared(kit, text)).prompt_tokens == 64

    async def test_endpoints_that_have_just_failed_are_left_out(self, kit: Any, renderer: Renderer) -> None:
        parameters = kit.parameters("token-producer", "{vllm: {endpointDiscovery: {}}}")
        producer = kit.make("token-producer", **vars(parameters))
        nobody = Endpoint("n", "", "n", "127.0.0.1", free_port("127.0.0.1"))
        pods = [nobody, Endpoint("e", "", "e", "127.0.0.1", renderer.port)]
        counted = []
        for number in range(4):
            body = json.dumps({"prompt": str(number)}).encode()
            request = kit.ask(b'"hello"', headers={":path": "/v1/completions"}, body=body)
            await producer.prepare(request, pods)
            counted.append(request.prompt_tokens)
        assert counted == [0, 64, 64, 64]
        request = kit.ask(b'"hello"', headers={":path": "/v1/completions"}, body=b'{"prompt": 1}')
        await producer.prepare(request, [nobody])
        assert request.prompt_tokens == 0
        await producer._renderer.close()

    def test_where_endpoints_render(self, kit: Any) -> None:
        rules = (
            "[{selector: {matchLabels: {role: p}}, basePort: 8000}, {selector: {matchLabels: {role: d}}, basePort: 9}]"
        )
        found = kit.parameters("token-producer", f"{{vllm: {{endpointDiscovery: {{portRules: {rules}}}}}}}").vllm
        places = [
            found.place(Endpoint(f"x-rank-{rank}", "", "x", address, 1, {"role": role}))
            for rank, address, role in ((3, "10.0.0.1", "p"), (0, "fd00::1", "d"), (0, "10.0.0.1", "e"))
        ]
        assert places == ["http://10.0.0.1:8003", "http://[fd00::1]:9", ""]

    @pytest.mark.parametrize(
        "fields", [{"body": b""}, {"prompt": b"[1, 2]"}, {"attributes": {TOKENS: TokenizedPrompt([])}}]
    )
    async def test_nobody_needs_to_be_asked(self, kit: Any, renderer: Renderer, fields: Any) -> None:
        await self.prepared(kit, f"{{vllm: {{url: 'http://127.0.0.1:{renderer.port}'}}}}", **fields)
        assert renderer.asked == []

    async def test_a_renderer_that_does_not_help(self, kit: Any, renderer: Renderer) -> None:
        renderer.status = 500
        request = await self.prepared(kit, f"{{vllm: {{url: 'http://127.0.0.1:{renderer.port}'}}}}")
        assert TOKENS not in request.attributes
        assert request.prompt_tokens == 0

    async def test_a_renderer_that_dawdles(self, kit: Any, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("epp.plugins.token_producer.ASK_SECONDS", 0.05)
        renderer.pause = 10.0
        request = await self.prepared(kit, f"{{vllm: {{url: 'http://127.0.0.1:{renderer.port}'}}}}")
        assert TOKENS not in request.attributes

    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("{}", None),
            ("{backend: estimate}", None),
            ("{backend: vllm}", "http://localhost:8000"),
            ("{modelName: m}", "http://localhost:8000"),
            ("{vllm: {url: 'https://x/', insecureSkipVerify: true}}", "https://x"),
            ("{vllm: {endpointDiscovery: {attemptTimeout: 10ms}}}", ""),
        ],
    )
    def test_who_is_asked(self, kit: Any, text: str, url: str | None) -> None:
        found = kit.parameters("token-producer", text).renderer()
        assert (found.base if found is not None else None) == url
        assert kit.make("token-producer", **vars(kit.parameters("token-producer", text))).asks is (url is not None)
        if found is not None:
            assert (found.tls() is not None) is (url == "https://x")

    @pytest.mark.parametrize(
        ("text", "chat", "seconds"),
        [
            ("{timeout: 100ms, mmTimeout: 200ms}", False, 0.1),
            ("{timeout: 100ms, mmTimeout: 200ms}", True, 0.2),
            ("{}", True, 0.35),
            ("{endpointDiscovery: {attemptTimeout: 10ms}}", True, 0.01),
        ],
    )
    def test_how_long_it_may_take(
        self, kit: Any, monkeypatch: pytest.MonkeyPatch, text: str, chat: bool, seconds: float
    ) -> None:
        monkeypatch.setattr("epp.plugins.token_producer.ASK_SECONDS", 0.35)
        assert kit.parameters("token-producer", f"{{vllm: {text}}}").vllm.seconds(chat) == seconds

    def test_one_place_to_ask(self, kit: Any) -> None:
        with pytest.raises(ValueError, match="exclude each other"):
            kit.parameters("token-producer", "{vllm: {url: 'http://x', endpointDiscovery: {}}}")


class TestPrecise:
    def producer(self, kit: Any, text: str = "{}") -> tuple[Any, Any, list[Endpoint]]:
        world, pods = kit.World(), kit.endpoints(3)
        world.datastore.replace(pods)
        return (
            kit.make("precise-prefix-cache-producer", world, **vars(kit.parameters(precise_type(), text))),
            world,
            pods,
        )

    def test_by_what_engines_hold(self, kit: Any) -> None:
        producer, world, pods = self.producer(kit)
        producer.heard(pods[0], "m", stored(64))
        producer.heard(pods[1], "m", stored(32))
        request = kit.ask(PROMPT)
        producer.produce(request, pods)
        match = request.attributes[KEY]
        assert (match.blocks, match.block_tokens, len(match.hashes)) == ({pods[0]: 4, pods[1]: 2}, 16, 4)
        world.made["precise-prefix-cache-producer"] = producer
        scorer = kit.make("prefix-cache-scorer", world, prefix_match_info_producer_name="precise-prefix-cache-producer")
        assert scorer.score(request, pods) == [1.0, 0.5, 0.0]
        producer.pre_request(request, kit_decision(pods[0]))
        assert match.hashes == ()
        producer.pre_request(request, kit_decision(pods[0]))
        assert figure(world, "precise_prefix_lookups_total", 'source="events"') == 1
        assert figure(world, "kv_cache_index_lookup_hits_total") == 4
        producer.forgotten(pods[0])
        world.datastore.replace(pods[2:])
        producer.produce(request, pods)
        assert request.attributes[KEY].blocks == {}

    def test_the_older_scorer(self, kit: Any) -> None:
        rig = kit.rig("plugins:\n- type: precise-prefix-cache-scorer\n", kit.endpoints(2))
        producer = next(each for each in rig.scheduler.workers if precise_type() == each.TYPE)
        producer.heard(rig.endpoints[1], "m", stored(64))
        assert rig.send(kit.ask(PROMPT)).endpoints == (rig.endpoints[1],)
        assert rig.cfg.warnings == ()

    def test_slower_media_count_for_less(self, kit: Any) -> None:
        text = "{indexerConfig: {kvCacheBackendConfigs: [{name: gpu, weight: 1.0}, {name: cpu, weight: 0.5}]}}"
        for parameters, weight in (("{}", 0.8), (text, 0.5)):
            producer, _, pods = self.producer(kit, parameters)
            producer.heard(pods[0], "m", stored(64))
            producer.heard(pods[1], "m", stored(64, medium="cpu"))
            request = kit.ask(PROMPT)
            producer.produce(request, pods)
            match = request.attributes[KEY]
            assert match.blocks == {pods[0]: 4, pods[1]: 4}
            assert match.weights == {pods[0]: 4.0, pods[1]: pytest.approx(4 * weight)}

    def test_salts_and_pictures(self, kit: Any) -> None:
        producer, _, pods = self.producer(kit)
        producer.heard(pods[0], "m", stored(64, extras=[("salt",), (), ("pic",), ()]))
        for salt, features, blocks in (("", [], 0), ("salt", [], 2), ("salt", [("pic", 33, 4)], 4)):
            request = kit.ask(cache_salt=salt)
            request.attributes[TOKENS] = TokenizedPrompt([array("I", range(64))], features)
            producer.produce(request, pods)
            assert request.attributes[KEY].blocks.get(pods[0], 0) == blocks

    def test_a_batch(self, kit: Any) -> None:
        """Every prompt of a batch counts, each from its own beginning."""
        producer, _, pods = self.producer(kit)
        producer.heard(pods[0], "m", stored(64))
        request = kit.ask(json.dumps([list(range(32)), list(range(48)), [9] * 16]).encode())
        producer.produce(request, pods)
        match = request.attributes[KEY]
        assert (match.blocks, len(match.hashes)) == ({pods[0]: 5}, 6)

    def test_adapters_and_rewrites(self, kit: Any) -> None:
        producer, _, pods = self.producer(kit)
        producer.heard(pods[0], "m", stored(64, lora="adapter"))
        for fields, blocks in (({}, {}), ({"target_model": "adapter"}, {pods[0]: 4})):
            request = kit.ask(PROMPT, **fields)
            producer.produce(request, pods)
            assert request.attributes[KEY].blocks == blocks

    @pytest.mark.parametrize("ready", [False, True])
    def test_estimates(self, kit: Any, ready: bool, caplog: pytest.LogCaptureFixture) -> None:
        """Without token ids, or without events, what was sent where counts; and it is said once."""
        producer, world, pods = self.producer(kit)
        if ready:
            producer.heard(pods[0], "m", stored(64))
        prompt = b'"' + b"x" * 1000 + b'"' if ready else PROMPT
        for round_ in range(3):
            request = kit.ask(prompt)
            producer.produce(request, pods)
            match = request.attributes[KEY]
            assert type(match) is PrefixMatch
            assert bool(match.blocks) is (round_ > 0)
            producer.pre_request(request, kit_decision(pods[2]))
        assert figure(world, "precise_prefix_lookups_total", 'source="estimate"') == 3
        said = [record.message for record in caplog.records]
        assert said == [
            f"{precise_type()} estimates the prefix of a prompt (said once): "
            + (precise.NO_TOKENS if ready else precise.NO_EVENTS)
        ]

    def test_other_blocks_than_expected(self, kit: Any, caplog: pytest.LogCaptureFixture) -> None:
        producer, _, pods = self.producer(kit, "{tokenProcessorConfig: {blockSize: 64}}")
        producer.heard(pods[0], "m", stored(64))
        assert "has other blocks than of 64 tokens: they are cut into 16" in caplog.text
        producer.heard(pods[0], "m", stored(64))
        request = kit.ask(PROMPT)
        producer.produce(request, pods)
        assert request.attributes[KEY].block_tokens == 16

    def test_one_event_that_makes_no_sense(self, kit: Any) -> None:
        producer, _, pods = self.producer(kit)
        wrong = BlockStored([1], None, [1, 2, 3], 16)
        with pytest.raises(ValueError, match="3 tokens"):
            producer.heard(pods[0], "m", Batch([wrong, *stored(16).events]))
        request = kit.ask(PROMPT)
        producer.produce(request, pods)
        assert request.attributes[KEY].blocks == {pods[0]: 1}

    @pytest.mark.parametrize(
        ("text", "limit"),
        [
            ("{}", MAX_ENTRIES),
            ("{indexerConfig: {kvBlockIndexConfig: {inMemoryConfig: {size: 100}}}}", 100),
            ("{indexerConfig: {kvBlockIndexConfig: {inMemoryConfig: {size: 100000000}}}}", MAX_ENTRIES),
            (
                "{indexerConfig: {kvBlockIndexConfig: 5, kvCacheBackendConfigs: [1, {name: cpu, weight: x}]}}",
                MAX_ENTRIES,
            ),
        ],
    )
    def test_limits(self, kit: Any, text: str, limit: int) -> None:
        found = kit.parameters(precise_type(), text)
        assert found.limit() == limit
        assert found.elsewhere() == 0.8

    @pytest.mark.parametrize(
        ("text", "bind", "port", "replay"),
        [
            ("{}", "", 5557, 0),
            ("{zmqEndpoint: 'tcp://*:5557', discoverPods: false}", "tcp://*:5557", 0, 0),
            ("{podDiscoveryConfig: {socketPort: 6000, replaySocketPort: 6100, podLabelSelector: a=b}}", "", 6000, 6100),
        ],
    )
    def test_where_engines_are_heard(self, kit: Any, text: str, bind: str, port: int, replay: int) -> None:
        found = kit.parameters(precise_type(), f"{{kvEventsConfig: {text}}}").kv_events_config.listening()
        assert (found.topic, found.bind, found.port, found.replay_port) == ("kv@", bind, port, replay)


def precise_type() -> str:
    return "precise-prefix-cache-producer"


def kit_decision(*endpoints: Endpoint) -> Decision:
    return Decision(endpoints)


async def test_all_of_it(kit: Any, renderer: Renderer) -> None:
    """A text is rendered, an engine says what it holds, the request goes there; and what was sent is expected."""
    port = free_port()
    pods = [Endpoint(f"e{i}", "", f"e{i}", f"127.0.0.{i + 1}", 8000) for i in range(2)]
    text = CONFIG.replace("URL", f"http://127.0.0.1:{renderer.port}").replace("PORT", str(port))
    rig = kit.rig(text, pods)
    assert rig.scheduler.asks
    workers = [asyncio.create_task(each.run()) for each in rig.scheduler.workers]
    context = zmq.asyncio.Context()
    engine = context.socket(zmq.PUB)
    engine.bind(f"tcp://127.0.0.2:{port}")

    async def ask(body: bytes) -> Any:
        request = kit.ask(b'"hello"', headers={":path": "/v1/completions"}, body=body)
        await rig.scheduler.prepare(request, rig.endpoints)
        return request, rig.scheduler.schedule(request, rig.endpoints)

    try:
        event = ["BlockStored", [1], None, list(range(16)), 16]
        number = 0
        async with asyncio.timeout(10):
            while True:
                payload = msgspec.msgpack.encode([0.0, [event]])
                await engine.send_multipart((b"kv@e@m", number.to_bytes(8, "big"), payload))
                number += 1
                request, decision = await ask(b'{"prompt": "hello"}')
                if decision.cached:
                    break
                await asyncio.sleep(0.02)
        assert decision.endpoints == (rig.endpoints[1],)
        assert request.attributes[KEY].blocks == {rig.endpoints[1]: 1}
        rig.scheduler.pre_request(request, decision)
        request, decision = await ask(b'{"prompt": "hello"}')
        assert request.attributes[KEY].blocks == {rig.endpoints[1]: 4}
        await eventually(lambda: figure(rig, "kv_cache_index_admissions_total") == 1)
        await asyncio.sleep(0.6)
        request, _ = await ask(b'{"prompt": "hello"}')
        assert request.attributes[KEY].blocks == {rig.endpoints[1]: 1}
        assert len(renderer.asked) == 1
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        context.destroy(linger=0)
