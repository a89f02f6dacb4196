# SPDX-License-Identifier: GPL-3.0-or-later
"""Prefix caches as the engines themselves say what they hold, and prompts as they tokenize them."""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections.abc import Callable, Iterator

import pytest

from conformance.kit.caches import Cache, cache
from conformance.kit.picker import Picker
from conformance.kit.sidecars import RENDERER, sidecar, tokenized
from conformance.kit.talk import completion, destinations, fresh, route, served
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

pytestmark = pytest.mark.differs(go="plugins of later versions")

Pickers = Callable[[str], Picker]

PRODUCER = "precise-prefix-cache-producer"
_NUMBERS = itertools.count(1)


def config(parameters: str = "{}", *more: str) -> str:
    """A configuration that looks at caches alone."""
    scorer = f"{{type: prefix-cache-scorer, parameters: {{prefixMatchInfoProducerName: {PRODUCER}}}}}"
    producer = f"{{type: {PRODUCER}, parameters: {parameters}}}"
    return "plugins:\n" + "".join(f"- {each}\n" for each in (*more, producer, scorer))


@pytest.fixture
def tokens() -> list[int]:
    """A prompt of four blocks that nobody knows."""
    first = next(_NUMBERS) * 100 + 1_000
    return [first + number for number in range(64)]


@contextlib.contextmanager
def caches(pool: Pool, **options: object) -> Iterator[list[Cache]]:
    """The caches of a pool's engines, each at its own address."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(cache(engine.address, f"kv@{engine.hostport}@m", **options)) for engine in pool.engines
        ]


def ids(tokens: list[int], model: str = "m") -> bytes:
    """A completion whose prompt is written in token ids."""
    return json.dumps({"model": model, "prompt": tokens}).encode()


def goes_to(found: Picker, wanted: set[str], body: bytes, *, until: Callable[[], None] | None = None) -> bool:
    """Wait until a request goes to just these endpoints; ``until``: done before each look, for publishers whose
    subscribers take a moment to come."""

    def look() -> set[str]:
        if until is not None:
            until()
        return destinations(found, 8 if len(wanted) == 1 else 40, lambda: body)

    eventually(look, lambda seen: seen == wanted)
    return True


class TestEvents:
    """Each engine publishes at a port of its own."""

    @pytest.mark.parametrize("maps", [False, True], ids=["arrays", "maps"])
    def test_a_prompt_goes_where_it_is(self, configured: Pickers, pool: Pool, tokens: list[int], maps: bool) -> None:
        """Who has said that it holds the prompt gets it, in either encoding."""
        found = configured(config())
        with caches(pool, maps=maps) as (_, second, _):
            assert goes_to(found, {pool.hostports[1]}, ids(tokens), until=lambda: second.store(tokens))

    def test_who_holds_most_of_it(self, configured: Pickers, pool: Pool, tokens: list[int]) -> None:
        """More blocks from the beginning are better; blocks after a gap count for nothing."""
        found = configured(config())
        with caches(pool) as (first, second, third):
            assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: first.store(tokens[:32]))
            assert goes_to(found, {pool.hostports[2]}, ids(tokens), until=lambda: third.store(tokens))
            assert goes_to(
                found,
                {pool.hostports[1]},
                ids(tokens[:16] + [9] * 16),
                until=lambda: second.store(tokens[:16] + [9] * 16),
            )

    def test_what_was_thrown_away(self, configured: Pickers, pool: Pool, tokens: list[int]) -> None:
        """Blocks that an engine throws away are not there any more."""
        found = configured(config())
        with caches(pool) as (first, second, _):
            assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: first.store(tokens[:48]))
            assert goes_to(found, {pool.hostports[1]}, ids(tokens), until=lambda: second.store(tokens))
            assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: second.remove(tokens, 4))

    def test_all_was_thrown_away(self, configured: Pickers, pool: Pool, tokens: list[int]) -> None:
        """AllBlocksCleared: the engine is like any other."""
        found = configured(config())
        with caches(pool) as (first, _, _):
            assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: first.store(tokens))
            first.clear()
            assert goes_to(found, set(pool.hostports), ids(tokens))

    def test_an_engine_that_begins_again(self, configured: Pickers, pool: Pool, tokens: list[int]) -> None:
        """Numbers that begin again come from an engine with an empty cache."""
        found = configured(config())
        with caches(pool) as (first, _, _):
            assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: first.store(tokens))
            first.begin_again()
            first.store([5] * 16)
            assert goes_to(found, set(pool.hostports), ids(tokens))

    def test_adapters(self, configured: Pickers, pool: Pool, tokens: list[int]) -> None:
        """What was computed for an adapter is of no use to the model, nor the other way round."""
        found = configured(config())
        with caches(pool) as (first, second, _):
            assert goes_to(found, {pool.hostports[0]}, ids(tokens, "tuned"), until=lambda: first.store(tokens, "tuned"))
            assert goes_to(found, {pool.hostports[1]}, ids(tokens), until=lambda: second.store(tokens))
            assert goes_to(found, {pool.hostports[0]}, ids(tokens, "tuned"))

    def test_slower_memory(self, configured: Pickers, pool: Pool, tokens: list[int]) -> None:
        """Blocks in a host's memory are worth less than those in the GPU's, and more than none."""
        found = configured(config())
        with caches(pool) as (first, second, _):
            assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: first.store(tokens, medium="CPU"))
            assert goes_to(found, {pool.hostports[1]}, ids(tokens), until=lambda: second.store(tokens))

    def test_what_was_said_before(self, around: World, tokens: list[int]) -> None:
        """A picker that comes later asks the engines to repeat themselves."""
        events = "{kvEventsConfig: {podDiscoveryConfig: {replaySocketPort: 5558}}}"
        with around.pool("repeat", engines=2) as pool, caches(pool, replay=True) as (first, _):
            for _ in range(3):
                first.store(tokens)
            with around.picker(pool.name, config=HEAD + config(events)) as found:
                # The repeated messages name no model; the next live one does, whatever it says.
                assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: first.remove([1] * 16))

    def test_ranks(self, around: World, tokens: list[int]) -> None:
        """Each data-parallel rank of a pod publishes at the next port."""
        with around.pool("ranks", engines=1, ports=(8000, 8001)) as pool:
            address = pool.engines[0].address
            with (
                cache(address, "kv@x@m", port=5558) as second,
                around.picker(pool.name, config=HEAD + config()) as found,
            ):
                assert goes_to(found, {pool.hostports[1]}, ids(tokens), until=lambda: second.store(tokens))

    def test_figures(self, configured: Pickers, pool: Pool, tokens: list[int]) -> None:
        """How many blocks have come and gone, and how prompts were looked up."""
        found = configured(config())
        with caches(pool) as (first, _, _):
            assert goes_to(found, {pool.hostports[0]}, ids(tokens), until=lambda: first.store(tokens))
            first.clear()
            for name in ("admissions_total", "evictions_total", "lookup_requests_total", "lookup_hits_total"):
                eventually(lambda name=name: found.metrics().value(f"llm_d_epp_kv_cache_index_{name}"))
            assert found.metrics().value("llm_d_epp_precise_prefix_lookups_total", source="events") > 0


HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


class TestOnePlace:
    """Engines connect with the picker, and their topics say who they are."""

    @pytest.mark.parametrize("topic", ["kv@{0.hostport}@m", "kv@{0.address}@m"], ids=["ip:port", "ip"])
    def test_by_topic(self, around: World, main_pool: Pool, tokens: list[int], topic: str) -> None:
        """Pods are known by address and port, or by their address alone."""
        with around.engines(1) as (place,):
            bind = f"tcp://{place.address}:5557"
            events = f"{{kvEventsConfig: {{zmqEndpoint: '{bind}', discoverPods: false}}}}"
            with (
                around.picker(main_pool.name, config=HEAD + config(events)) as found,
                cache("", topic.format(main_pool.engines[2]), connect=bind) as third,
            ):
                assert goes_to(found, {main_pool.hostports[2]}, ids(tokens), until=lambda: third.store(tokens))

    def test_the_older_scorer(self, around: World, main_pool: Pool, tokens: list[int]) -> None:
        """precise-prefix-cache-scorer of llm-d-inference-scheduler 0.4, as its examples configure it."""
        with around.engines(1) as (place,):
            bind = f"tcp://{place.address}:5557"
            text = (
                "plugins:\n- type: precise-prefix-cache-scorer\n  parameters:\n"
                "    tokenProcessorConfig: {blockSize: 16, hashSeed: '42'}\n"
                f"    kvEventsConfig: {{zmqEndpoint: '{bind}', topicFilter: 'kv@'}}\n"
                "    indexerConfig: {kvBlockIndexConfig: {enableMetrics: true}}\n"
            )
            with (
                around.picker(main_pool.name, config=HEAD + text) as found,
                cache("", f"kv@{main_pool.hostports[0]}@m", connect=bind) as first,
            ):
                assert goes_to(found, {main_pool.hostports[0]}, ids(tokens), until=lambda: first.store(tokens))

    def test_a_place_that_is_taken(self, around: World, main_pool: Pool) -> None:
        """A picker that cannot listen where it should does not start."""
        with around.engines(1) as (place,):
            events = f"{{kvEventsConfig: {{zmqEndpoint: 'tcp://{place.hostport}'}}}}"
            said = around.refusal(*around.flags(main_pool.name, HEAD + config(events)))
            assert place.hostport in said


class TestTokens:
    """Prompts in words are turned into token ids by vLLM, so that they can be found among the engines' blocks."""

    @pytest.mark.parametrize("older", [False, True], ids=["render", "tokenize"])
    @pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
    def test_by_a_renderer(self, around: World, pool: Pool, older: bool, chat: bool) -> None:
        """Text goes where its tokens are, whether vLLM renders whole requests or only tokenizes."""
        text = f"{uuid.uuid4()} " * 4
        body, tokens, path = completion(text), [ord(each) for each in text], "/v1/completions"
        if chat:
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
            tokens, path = [ord(each) for each in f"<user>{text}"], "/v1/chat/completions"
        answers = {"/tokenize": tokenized} if older else RENDERER
        with sidecar(around.address(), answers) as renderer, caches(pool) as (_, _, third):
            producer = f"{{type: token-producer, parameters: {{modelName: m, vllm: {{url: '{renderer.url}'}}}}}}"
            with around.picker(pool.name, config=HEAD + config("{}", producer)) as found:

                def look() -> set[str]:
                    third.store(tokens)
                    return {route(found, body, {":path": path}).destination for _ in range(8)}

                eventually(look, lambda seen: seen == {pool.hostports[2]})
                assert len(renderer.bodies("/tokenize" if older else f"{path}/render")) < 8, "it is remembered"

    def test_by_the_engines(self, around: World, tokens: list[int]) -> None:
        """endpointDiscovery: the pool's own engines are asked; here they do not know, and prompts pass all the same."""
        producer = "{type: token-producer, parameters: {vllm: {endpointDiscovery: {}}}}"
        with around.pool("render") as pool, around.picker(pool.name, config=HEAD + config("{}", producer)) as found:
            assert route(found, completion()).destination in pool.hostports
            asked = {seen.path for engine in pool.engines for seen in engine.seen}
            assert "/v1/completions/render" in asked

    def test_a_renderer_that_dawdles(self, around: World, pool: Pool) -> None:
        """Nobody waits long for a renderer; where a prompt was sent before stands in for what is not known."""
        with sidecar(around.address(), RENDERER) as renderer:
            renderer.pause = 60.0
            producer = f"{{type: token-producer, parameters: {{modelName: m, vllm: {{url: '{renderer.url}'}}}}}}"
            with around.picker(pool.name, config=HEAD + config("{}", producer)) as found:
                body = fresh()[:-2] + b"w" * 4000 + b'"}'
                known = served(found, body).destination
                assert goes_to(found, {known}, body)
                assert found.metrics().value("llm_d_epp_precise_prefix_lookups_total", source="estimate") > 0
