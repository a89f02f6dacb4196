# SPDX-License-Identifier: GPL-3.0-or-later
"""The EPP and the real vLLM: its page, its KV cache's events, its tokens, and requests through Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import string
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks import rig
from conformance.kit import pages
from ports import free_port

from engines import vllm
from engines.compare import differences, families, read, read_by_us
from engines.server import answer, post, stream
from engines.vllm import ADAPTERS, BLOCK_TOKENS, BLOCKS, MODEL, SEATS, SLOTS, Place, Vllm, wait
from epp.datalayer import Datastore, ScrapeOptions, Scraper
from epp.datalayer.kvblocks import BlockIndex, block_keys, first_key
from epp.datalayer.kvevents import AllBlocksCleared, Batch, BlockRemoved, BlockStored
from epp.datalayer.kvlisten import Listener, ListenOptions
from epp.datalayer.mapping import ENGINES
from epp.datalayer.render import Renderer
from epp.model import Endpoint, InferenceRequest
from epp.plugins.lora_affinity_scorer import LoraAffinityScorer

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

NETWORK = f"127.{64 + os.getpid() % 128}.77"
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: token-producer
  parameters: {vllm: {endpointDiscovery: {}}}
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSizeTokens: %d}
    kvEventsConfig: {podDiscoveryConfig: {socketPort: %d, replaySocketPort: %d}}
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}
- {type: queue-scorer}
- {type: kv-cache-utilization-scorer}
- {type: max-score-picker}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-scorer, weight: 3}
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: max-score-picker}
"""


def two_ports() -> int:
    """The first of two free ports in a row."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as probe:
            probe.bind(("", first + 1))
            return first


@pytest.fixture(scope="module")
def both() -> Iterator[list[Vllm]]:
    """Two servers: one as it comes, and one that renders prompts."""
    port, events, replay = free_port(), two_ports(), two_ports()
    renders = ("--enable-scale-out", "--enable-prompt-tokens-details")
    places = [
        Place(f"{NETWORK}.{1 + number}", port, events + number, replay + number, flags=flags)
        for number, flags in enumerate(((), renders))
    ]
    with vllm.servers(places) as started:
        yield started


@pytest.fixture(scope="module")
def server(both: list[Vllm]) -> Vllm:
    """The one as it comes."""
    return both[0]


def text(tokens: int) -> str:
    """A text of so many tokens that nobody has sent before."""
    return "".join(random.SystemRandom().choices(string.ascii_letters, k=tokens))


class Background:
    """The EPP's asynchronous parts in a thread, for tests that wait."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def work(self, job: Any) -> None:
        """Begin something that goes on."""
        asyncio.run_coroutine_threadsafe(job, self.loop)

    def run(self, job: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(job, self.loop).result(60)

    def call[T](self, function: Callable[..., T], *values: Any) -> T:
        """The result of a function that must not run beside what goes on."""

        async def job() -> T:
            return function(*values)

        found: T = self.run(job())
        return found

    def close(self) -> None:
        """Cancel everything."""

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background()
    yield made
    made.close()


def endpoint_of(place: Place) -> Endpoint:
    return Endpoint(MODEL, "", MODEL, place.address, place.port)


class Index:
    """What the EPP knows of a server's cache: everything but the plugin that asks."""

    def __init__(
        self, background: Background, place: Place, block_tokens: int = BLOCK_TOKENS, replay: bool = False
    ) -> None:
        self.batches: list[Batch] = []
        self.models: set[str] = set()
        self.endpoint = endpoint_of(place)
        self._background, self._blocks = background, BlockIndex(block_tokens)
        store = Datastore()
        bind = f"tcp://{place.listener}" if place.listener else ""
        options = ListenOptions("kv@", bind, place.events_port, place.replay_port if replay else 0)
        background.call(store.replace, [self.endpoint])
        background.work(Listener(store, options, self).run())

    def heard(self, endpoint: Endpoint, model: str, batch: Batch) -> None:
        """For the listener."""
        assert endpoint is self.endpoint
        self.models.add(model)
        self.batches.append(batch)
        for event in batch.events:
            self._blocks.take(endpoint, model, event)

    def forgotten(self, endpoint: Endpoint) -> None:
        """For the listener."""
        self._blocks.clear(endpoint)

    @property
    def skipped(self) -> int:
        """Blocks that could not be placed."""
        return self._blocks.counts.skipped

    def events(self, kind: type) -> list[Any]:
        """All of a kind."""
        return [event for batch in list(self.batches) for event in batch.events if isinstance(event, kind)]

    def holds(
        self, prompt: str | Sequence[int], model: str = MODEL, extras: Mapping[int, tuple[str, ...]] | None = None
    ) -> int:
        """Blocks from the start of the prompt that the server has."""
        tokens = array("I", list(prompt.encode()) if isinstance(prompt, str) else prompt)
        keys = block_keys(first_key(model), tokens.tobytes(), self._blocks.block_tokens, extras or {})
        return self._background.call(self._blocks.match, keys, [self.endpoint], 1.0)[0].get(self.endpoint, 0)


def cached(server: Vllm, **body: Any) -> int:
    """Blocks of a prompt that the server finds in its cache, as it says itself; the prompt is sent."""
    before = server.hits()
    server.ask(**{"max_tokens": 1, **body})
    return (server.hits() - before) // BLOCK_TOKENS


class TestLives:
    """A server that connects with the EPP, and not the other way round, and begins again. The first test: it is alone
    on the machine then."""

    def test_it_begins_again_with_an_empty_cache(self, background: Background) -> None:
        place = Place(f"{NETWORK}.5", free_port(), listener=f"127.0.0.1:{free_port('127.0.0.1')}")
        index, first, second = Index(background, place), text(5 * BLOCK_TOKENS + 1), text(6 * BLOCK_TOKENS + 1)
        with vllm.servers([place]) as (server,):
            server.ask(prompt=first, max_tokens=1)
            wait(lambda: index.holds(first) == 5, "five blocks")
        with vllm.servers([place]) as (server,):
            # Its first message has the number that the last one before had: there was one.
            server.ask(prompt=second, max_tokens=1)
            wait(lambda: index.holds(second) == 6, "six blocks")
            assert index.holds(first) == 0
            assert (cached(server, prompt=second), cached(server, prompt=first)) == (6, 0)


class TestPage:
    """What we take for vLLM's page is vLLM's page."""

    CACHE = "vllm:cache_config_info"
    """Its labels are the cache's whole configuration, which grows with each version: ours has some of them."""

    def compare(self, ours: str, real: str) -> None:
        assert differences(ours, real, {self.CACHE}) == []
        (some,), (all_of_them,) = (families(page)[self.CACHE].labels for page in (ours, real))
        assert some - all_of_them == set()

    def test_the_kits(self, server: Vllm) -> None:
        self.compare(pages.vllm(pages.Figures()), server.page())

    def test_the_simulators(self, server: Vllm) -> None:
        server.ask(model=ADAPTERS[0], prompt="x", max_tokens=1)
        flags = ("--model=tiny", "--enable-lora", "--max-loras=1", "--lora-modules", "lora-a=x")
        with rig.sims(1, f"{NETWORK}.9", free_port(), *flags) as sims:
            page = rig.fetch(f"http://{sims[0]}/metrics").decode()
        self.compare(page, server.page())

    def test_what_the_epp_reads(self, server: Vllm) -> None:
        server.ask(model=ADAPTERS[0], prompt="x", max_tokens=1)
        page, engine = server.page(), ENGINES["vllm"]
        assert read(page, "vllm") == read_by_us("vllm")
        real = families(page)
        assert {real[name].kind for name in read_by_us("vllm")} == {"gauge"}
        (cache,), (lora,) = real[self.CACHE].labels, real["vllm:lora_requests_info"].labels
        assert {engine.block_size_label, engine.num_blocks_label} <= cache
        assert lora == {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}


class TestScraping:
    """The EPP's own reader."""

    @pytest.fixture
    def endpoint(self, server: Vllm, background: Background) -> Endpoint:
        store = Datastore()
        scraper = Scraper(store, ScrapeOptions(idle_interval=0.1))
        background.work(scraper.run())
        found = endpoint_of(server.place)
        background.call(store.replace, [found])
        wait(lambda: found.metrics.updated_at, "a first reading")
        return found

    def test_load(self, server: Vllm, endpoint: Endpoint) -> None:
        wait(lambda: endpoint.metrics.running == endpoint.metrics.waiting == 0, "idle")
        assert (endpoint.metrics.block_size, endpoint.metrics.num_blocks) == (BLOCK_TOKENS, BLOCKS)
        assert (endpoint.metrics.max_lora, endpoint.unmetered) == (SLOTS, False)
        with server.busy(*[MODEL] * (SEATS + 3)):
            wait(lambda: (endpoint.metrics.running, endpoint.metrics.waiting) == (SEATS, 3), "a queue of three")
            wait(lambda: 0.02 < endpoint.metrics.kv_cache_usage < 1, "blocks in use")
        wait(lambda: (endpoint.metrics.running, endpoint.metrics.waiting) == (0, 0), "no requests")
        wait(lambda: endpoint.metrics.kv_cache_usage == 0, "no blocks in use")

    def test_adapters(self, server: Vllm, endpoint: Endpoint) -> None:
        """There is room for two: a third has to wait, though a seat is free."""

        def active() -> frozenset[str]:
            return endpoint.metrics.running_adapters | endpoint.metrics.waiting_adapters

        with server.busy(ADAPTERS[0]):
            wait(lambda: endpoint.metrics.running_adapters == {ADAPTERS[0]}, "the first runs")
            assert active() == {ADAPTERS[0]}
            assert [affinity(each, endpoint) for each in ADAPTERS[:2]] == [1.0, 0.8]
        wait(lambda: not active(), "no adapters")
        with server.busy(*ADAPTERS):
            wait(lambda: len(active()) == SLOTS, "two run")
            wait(lambda: (endpoint.metrics.running, endpoint.metrics.waiting) == (SLOTS, 1), "one waits")
            # vLLM 0.32 names one that runs in both lists, and one that waits in none (LoRARequestStates there).
            assert endpoint.metrics.running_adapters == endpoint.metrics.waiting_adapters
            assert sorted(affinity(each, endpoint) for each in ADAPTERS) == [0.0, 1.0, 1.0]
        wait(lambda: not active(), "no adapters")


def affinity(adapter: str, endpoint: Endpoint) -> float:
    """What lora-affinity-scorer says of an endpoint."""
    nobody: Any = None
    scorer = LoraAffinityScorer("lora", LoraAffinityScorer.PARAMETERS(), nobody)
    return scorer.score(InferenceRequest("id", {}, model=adapter), [endpoint])[0]


CHAT = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]},
    {"role": "assistant", "content": "Nobody."},
]


@pytest.fixture
def renderer(background: Background) -> Iterator[Renderer]:
    made = Renderer()
    yield made
    background.run(made.close())


class TestTokens:
    """The EPP has vLLM say what a prompt's tokens are: by rendering, or, where that is not allowed, by /tokenize."""

    @pytest.mark.parametrize("number", [0, 1])
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": "Grüße aus Köln 🙂"}),
            ("/v1/completions", {"prompt": "<|begin|>x<|end|>"}),
            ("/v1/completions", {"prompt": "hi", "model": ADAPTERS[0], "stream": False, "n": 2}),
            ("/v1/chat/completions", {"messages": CHAT}),
            ("/v1/chat/completions", {"messages": CHAT[:2], "temperature": 0, "user": "somebody"}),
            (
                "/v1/chat/completions",
                {"messages": CHAT, "add_generation_prompt": False, "continue_final_message": True},
            ),
        ],
    )
    def test_they_are_those_that_are_served(
        self, both: list[Vllm], background: Background, renderer: Renderer, number: int, path: str, body: dict[str, Any]
    ) -> None:
        server = both[number]
        sent = {"model": MODEL, "max_tokens": 1, **body}
        told = server.ask(path, **sent, return_token_ids=True)
        served = told["prompt_token_ids"] if "chat" in path else told["choices"][0]["prompt_token_ids"]
        found = background.run(renderer.render(server.url, path, json.dumps(sent).encode(), 20.0))
        assert found is not None
        assert [list(each) for each in found.prompts] == [served]
        assert found.features == ()

    def test_messages(self, both: list[Vllm], background: Background, renderer: Renderer) -> None:
        body: dict[str, Any] = {
            "model": MODEL,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "Who are you?"}],
        }
        found = background.run(renderer.render(both[1].url, "/v1/messages", json.dumps(body).encode(), 20.0))
        chat = background.run(renderer.render(both[1].url, "/v1/chat/completions", json.dumps(body).encode(), 20.0))
        assert found is not None
        assert found.prompts == chat.prompts
        usage = both[1].ask("/v1/messages", **body)["usage"]
        assert usage["input_tokens"] == found.tokens

    def test_a_batch_is_rendered(self, both: list[Vllm], background: Background, renderer: Renderer) -> None:
        body = json.dumps({"model": MODEL, "prompt": ["ab", "c"]}).encode()
        found = background.run(renderer.render(both[1].url, "/v1/completions", body, 20.0))
        assert [list(each) for each in found.prompts] == [[97, 98], [99]]


@pytest.fixture
def index(server: Vllm, background: Background) -> Index:
    """One that hears everything from now on."""
    found = Index(background, server.place)

    def heard() -> bool:
        server.ask(prompt=text(BLOCK_TOKENS + 1), max_tokens=1)
        return bool(found.batches)

    wait(heard, "an event")
    return found


class TestEvents:
    """What the EPP makes of the KV cache's events is what vLLM has in its cache."""

    def test_a_prompt(self, server: Vllm, index: Index) -> None:
        prompt = text(7 * BLOCK_TOKENS + 5)
        assert index.holds(prompt) == 0
        assert cached(server, prompt=prompt) == 0
        wait(lambda: index.holds(prompt) == 7, "seven blocks")
        assert cached(server, prompt=prompt) == 7
        longer = prompt + text(3 * BLOCK_TOKENS)
        assert index.holds(longer) == 7
        assert cached(server, prompt=longer) == 7
        wait(lambda: index.holds(longer) == 10, "three more, with the others as parents")
        assert index.skipped == 0
        assert index.models == {MODEL}
        stored = index.events(BlockStored)
        assert {event.block_size for event in stored} == {BLOCK_TOKENS}
        assert stored[-1].parent in stored[-2].hashes
        assert {batch.rank for batch in index.batches} == {0}

    def test_the_end_of_a_prompt_is_computed_again(self, server: Vllm, index: Index) -> None:
        """A prompt of whole blocks: vLLM has all of them, and yet needs the last token's result."""
        prompt = text(4 * BLOCK_TOKENS)
        server.ask(prompt=prompt, max_tokens=1)
        wait(lambda: index.holds(prompt) == 4, "four blocks")
        assert cached(server, prompt=prompt) == 3

    def test_answers_are_held_as_well(self, server: Vllm, index: Index) -> None:
        prompt = text(BLOCK_TOKENS)
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": 3 * BLOCK_TOKENS,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        choice = server.ask(**body)["choices"][0]
        tokens = [*choice["prompt_token_ids"], *choice["token_ids"]]
        assert len(tokens) == 4 * BLOCK_TOKENS
        # Of the last token nothing was computed: it was not needed any more.
        wait(lambda: index.holds(tokens) == 3, "a block of the prompt and two of the answer")
        assert cached(server, prompt=[*tokens, 1]) == 3

    def test_adapters_and_salts_are_apart(self, server: Vllm, index: Index) -> None:
        prompt = text(5 * BLOCK_TOKENS + 1)
        server.ask(prompt=prompt, max_tokens=1, model=ADAPTERS[0])
        wait(lambda: index.holds(prompt, ADAPTERS[0]) == 5, "those of the adapter")
        assert (index.holds(prompt), index.holds(prompt, ADAPTERS[1])) == (0, 0)
        assert cached(server, prompt=prompt) == 0
        wait(lambda: index.holds(prompt) == 5, "those of the model")
        salt: dict[int, tuple[str, ...]] = {0: ("secret",)}
        assert index.holds(prompt, extras=salt) == 0
        assert cached(server, prompt=prompt, cache_salt="secret") == 0
        wait(lambda: index.holds(prompt, extras=salt) == 5, "those with the salt")
        assert cached(server, prompt=prompt, cache_salt="secret") == 5
        assert cached(server, prompt=prompt, model=ADAPTERS[0]) == 5

    def test_smaller_blocks_of_the_epp(self, server: Vllm, background: Background, index: Index) -> None:
        smaller = Index(background, server.place, BLOCK_TOKENS // 2)
        prompt = text(3 * BLOCK_TOKENS + 1)

        def held() -> bool:
            server.ask(prompt=prompt + text(BLOCK_TOKENS), max_tokens=1)
            return bool(smaller.batches)

        wait(held, "an event")
        fresh = text(3 * BLOCK_TOKENS + BLOCK_TOKENS // 2)
        server.ask(prompt=fresh, max_tokens=1)
        wait(lambda: index.holds(fresh) == 3, "three blocks")
        wait(lambda: smaller.holds(fresh) == 6, "six halves, and none of the block that is not full")

    def test_what_is_thrown_away(self, server: Vllm, index: Index) -> None:
        """Two at once compute the same blocks, and so does who sends whole blocks again: vLLM has them twice then, and
        it is the last removal that counts."""
        prompt, others = text(9 * BLOCK_TOKENS + 1), [text(3800) for _ in range(4)]
        whole = text(4 * BLOCK_TOKENS)
        for _ in range(3):
            server.ask(prompt=whole, max_tokens=1)
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                thread = threading.Thread(target=server.ask, kwargs={"prompt": prompt, "max_tokens": 1})
                thread.start()
                stack.callback(thread.join)
        wait(lambda: index.holds(prompt) == 9, "nine blocks")
        for other in others:
            server.ask(prompt=other, max_tokens=1)
        wait(lambda: index.holds(others[-1]) == 3800 // BLOCK_TOKENS, "the last prompt")
        assert index.events(BlockRemoved)
        assert (index.holds(prompt), index.holds(whole)) == (0, 0)
        held = index.holds(others[0])
        assert cached(server, prompt=others[0]) == held
        assert index.skipped == 0

    def test_an_empty_cache(self, server: Vllm, index: Index) -> None:
        prompt, other = text(6 * BLOCK_TOKENS + 1), text(2 * BLOCK_TOKENS + 1)
        server.ask(prompt=prompt, max_tokens=1)
        wait(lambda: index.holds(prompt) == 6, "six blocks")
        server.forget()
        server.ask(prompt=other, max_tokens=1)
        wait(lambda: index.holds(other) == 2, "the next prompt")
        assert index.events(AllBlocksCleared)
        assert index.holds(prompt) == 0
        assert cached(server, prompt=prompt) == 0

    def test_who_comes_late_asks_for_what_was(self, server: Vllm, background: Background) -> None:
        prompt = text(8 * BLOCK_TOKENS + 1)
        server.ask(prompt=prompt, max_tokens=1)
        late = Index(background, server.place, replay=True)
        wait(lambda: late.holds(prompt) == 8, "eight blocks, from the server's memory")
        assert cached(server, prompt=prompt) == 8
        assert (late.skipped, late.models) == (0, {MODEL})


class Front:
    """Envoy and the EPP in front of the servers."""

    def __init__(self, url: str, epp: rig.Epp, servers: Sequence[Vllm]) -> None:
        self.url, self.epp, self.servers = url, epp, servers

    def ask(self, path: str = "/v1/completions", **body: Any) -> Any:
        """A good answer."""
        return post(self.url + path, {"model": MODEL, "max_tokens": 4, **body})

    def stream(self, path: str = "/v1/completions", **body: Any) -> list[Any]:
        """The events of a streamed answer, without the mark of the end."""
        data = stream(self.url + path, {"model": MODEL, "max_tokens": 4, "stream": True, **body})
        return [json.loads(each) for each in data if each != "[DONE]"]

    def figure(self, name: str, **labels: str) -> float:
        """Of the EPP's own metrics."""
        return vllm.figure(self.epp.metrics(), name, **labels)

    def served(self) -> list[int]:
        """Requests that each server has ended."""
        return [int(each.figure("request_success_total")) for each in self.servers]


@pytest.fixture(scope="module")
def front(both: list[Vllm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    config, endpoints = folder / "config.yaml", folder / "endpoints.yaml"
    first = both[0].place
    config.write_text(CONFIG % (BLOCK_TOKENS, first.events_port, first.replay_port))
    # As of one pod with two ranks, whose events are at successive ports: both are on one machine here.
    entries = [
        {"name": f"{MODEL}-rank-{number}", "address": each.place.address, "port": each.place.port}
        for number, each in enumerate(both)
    ]
    Path(endpoints).write_text(json.dumps({"endpoints": entries}))
    with rig.epp(f"--config-file={config}", f"--endpoints-file={endpoints}") as epp:
        with rig.envoy(rig.EnvoyOptions(tuple(each.place.hostport for each in both), epp.grpc_port)) as url:
            found = Front(url, epp, both)
            wait(lambda: all(each["metrics"]["blockSize"] for each in epp.endpoints()), "both are read")
            yield found


class TestThroughEnvoy:
    """Clients, Envoy, the EPP as a process, and two servers."""

    def test_the_epp_reads_both(self, front: Front) -> None:
        for each in front.epp.endpoints():
            found = each["metrics"]
            assert (found["blockSize"], found["numBlocks"], found["maxLora"]) == (BLOCK_TOKENS, BLOCKS, SLOTS)
            assert not each["unmetered"]

    @pytest.mark.parametrize("model", [MODEL, ADAPTERS[1]])
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": "Once upon a time"}),
            ("/v1/chat/completions", {"messages": CHAT[:2]}),
            ("/v1/completions", {"prompt": [104, 105]}),
        ],
    )
    def test_completions(self, front: Front, path: str, body: dict[str, Any], model: str) -> None:
        before = [front.figure(f"inference_objective_{each}_tokens_sum") for each in ("input", "output")]
        plain = front.ask(path, model=model, ignore_eos=True, **body)
        options = {"include_usage": True}
        events = front.stream(path, model=model, ignore_eos=True, stream_options=options, **body)
        usage = plain["usage"]
        assert usage["completion_tokens"] == 4
        assert {key: events[-1]["usage"][key] for key in ("prompt_tokens", "completion_tokens")} == {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": 4,
        }
        assert {each["model"] for each in (plain, *events)} == {model}

        def counted() -> bool:
            after = [front.figure(f"inference_objective_{each}_tokens_sum") for each in ("input", "output")]
            return [new - old for new, old in zip(after, before, strict=True)] == [2 * usage["prompt_tokens"], 8]

        wait(counted, "both in the EPP's metrics")

    def test_prompts_go_where_they_are_cached(self, front: Front) -> None:
        blocks, prompts = 20, [text(20 * BLOCK_TOKENS + 5) for _ in range(4)]
        estimated = front.figure("llm_d_epp_precise_prefix_lookups_total", source="estimate")
        looked = front.figure("llm_d_epp_precise_prefix_lookups_total", source="events")
        homes = []
        for prompt in prompts:
            before = [each.asked() for each in front.servers]
            known = front.figure("llm_d_epp_kv_cache_index_admissions_total")
            front.ask(prompt=prompt)
            went = [each.asked() - old for each, old in zip(front.servers, before, strict=True)]
            assert sorted(went) == [0, len(prompt)]
            homes.append(went.index(len(prompt)))
            wait(
                lambda known=known: front.figure("llm_d_epp_kv_cache_index_admissions_total") >= known + blocks,
                "the EPP has heard of the prompt",
            )
        for again in range(2):
            for number, prompt in enumerate(prompts):
                before = [each.hits() for each in front.servers]
                front.ask(prompt=prompt + "abc" * again)
                found = [each.hits() - old for each, old in zip(front.servers, before, strict=True)]
                expected = [0, 0]
                expected[homes[number]] = blocks * BLOCK_TOKENS
                assert found == expected
        # The renderer has a third of a second: on a busy machine it may be late for once.
        assert front.figure("llm_d_epp_precise_prefix_lookups_total", source="estimate") - estimated <= 2
        assert front.figure("llm_d_epp_precise_prefix_lookups_total", source="events") - looked >= 10

    def test_chats_go_where_they_are_cached(self, front: Front) -> None:
        """Each turn finds the turns before it."""
        messages = [{"role": "user", "content": text(10 * BLOCK_TOKENS)}]
        front.ask("/v1/chat/completions", messages=messages)
        for _ in range(3):
            known = front.figure("llm_d_epp_kv_cache_index_admissions_total")
            messages.append({"role": "user", "content": text(2 * BLOCK_TOKENS)})
            before = [each.hits() for each in front.servers]
            front.ask("/v1/chat/completions", messages=messages)
            found = [each.hits() - old for each, old in zip(front.servers, before, strict=True)]
            assert sorted(found)[0] == 0
            assert sorted(found)[1] >= (8 + 2 * (len(messages) - 2)) * BLOCK_TOKENS
            wait(
                lambda known=known: front.figure("llm_d_epp_kv_cache_index_admissions_total") >= known + 2,
                "the EPP has heard of the turn",
            )

    @pytest.mark.parametrize("full", [0, 1])
    def test_a_queue_is_avoided(self, front: Front, full: int) -> None:
        def waiting() -> bool:
            each = front.epp.endpoints()[full]["metrics"]
            return bool(each["waiting"] == 3 and each["running"] == SEATS)

        with front.servers[full].busy(*[MODEL] * (SEATS + 3)):
            wait(waiting, "the EPP sees the queue")
            before = front.served()
            for _ in range(6):
                front.ask(prompt=text(40))
            went = [new - old for new, old in zip(front.served(), before, strict=True)]
        assert went == ([0, 6] if full == 0 else [6, 0])

    def test_errors_pass(self, front: Front) -> None:
        status, said = answer(f"{front.url}/v1/completions", {"model": "nobody", "prompt": "x"})
        assert (status, said["error"]["type"]) == (404, "NotFoundError")
        status, said = answer(f"{front.url}/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 10**6})
        assert (status, said["error"]["code"]) == (400, 400)
        status, _ = answer(f"{front.url}/v1/embeddings", {"model": MODEL, "input": "x"})
        assert status == 404

    def test_responses(self, front: Front) -> None:
        body = {"input": "Who are you?", "instructions": "Be terse.", "max_output_tokens": 4}
        plain = front.ask("/v1/responses", **body)
        assert plain["object"] == "response"
        assert plain["usage"]["output_tokens"] == 4
        events = front.stream("/v1/responses", **body)
        assert events[0]["type"] == "response.created"
        last = events[-1]
        assert last["type"] in ("response.completed", "response.incomplete")
        assert last["response"]["usage"]["input_tokens"] == plain["usage"]["input_tokens"]

    def test_messages(self, front: Front) -> None:
        body = {"messages": [{"role": "user", "content": "Who are you?"}]}
        before = front.figure("inference_objective_input_tokens_sum")
        plain = front.ask("/v1/messages", **body)
        assert (plain["type"], plain["usage"]["output_tokens"]) == ("message", 4)
        events = front.stream("/v1/messages", **body)
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "message_stop"
        wanted = before + 2 * plain["usage"]["input_tokens"]
        wait(lambda: front.figure("inference_objective_input_tokens_sum") == wanted, "both in the EPP's metrics")
        counted = front.ask("/v1/messages/count_tokens", **body)
        assert counted["input_tokens"] == plain["usage"]["input_tokens"]

    def test_tokens_in_and_out(self, front: Front) -> None:
        """vLLM's own interface, which only one of the two offers."""
        options = rig.EnvoyOptions(
            tuple(each.place.hostport for each in front.servers),
            front.epp.grpc_port,
            subset=(front.servers[1].place.hostport,),
        )
        tokens = list(text(2 * BLOCK_TOKENS + 1).encode())
        body = {"model": MODEL, "token_ids": tokens, "sampling_params": {"max_tokens": 4, "ignore_eos": True}}
        with rig.envoy(options) as url:
            status, said = answer(f"{url}/inference/v1/generate", body)
        assert status == 200, said
        assert len(said["choices"][0]["token_ids"]) == 4
