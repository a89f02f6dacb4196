# SPDX-License-Identifier: GPL-3.0-or-later
"""precise-prefix-cache-producer: how much of a prompt each endpoint has in its prefix cache, as the engines say.

Parameters:
    tokenProcessorConfig: blockSizeTokens (16, also blockSize): tokens per block of the index. hashSeed, hashAlgorithm:
    not needed, see below.
    indexerConfig: kvBlockIndexConfig.inMemoryConfig.size bounds the blocks that are remembered (4 million at most);
    kvCacheBackendConfigs gives the weight of media other than the GPU's memory (0.8). Others have no effect.
    kvEventsConfig: topicFilter (kv@), engineType (vllm or sglang, which speak alike); discoverPods (true) with
    podDiscoveryConfig.socketPort (5557) and replaySocketPort (none): connect with each endpoint; zmqEndpoint
    (``tcp://*:5557``, none): listen there for the engines. concurrency and tracing: not needed.
    speculativeIndexing (false), speculativeTTL (2s): count what was sent as cached for so long.
Formula: the engines' events over ZeroMQ (BlockStored, BlockRemoved, AllBlocksCleared) name the tokens of each block.
Of these, and of what comes before them, the index computes keys of its own, with the model (or adapter), pictures and
cache_salt; an endpoint's match is the number of consecutive blocks of the prompt, from its start, whose keys it holds.
In scores a block outside of GPU memory counts as its medium's weight.
The prompt's token ids come from a token-producer that asks vLLM, or from the request itself. Where they are not known,
and until the first engine speaks, prefixes are estimated as approx-prefix-cache-producer does; the log says so once,
and ``precise_prefix_lookups_total`` counts both.
Source: llm-d-router producer of the same type. Two things differ: it refuses a configuration without exact tokens, and
blocks of another size than the engine's are found by their greatest common divisor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epp.datalayer.kvblocks import MAX_ENTRIES, BlockIndex, block_keys, first_key
from epp.datalayer.kvevents import Batch
from epp.datalayer.kvlisten import Listener, ListenOptions
from epp.datalayer.prompts import BYTES_PER_TOKEN, PrefixMatch
from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins.approx_prefix_cache_producer import (
    PREFILL_PROFILE,
    ApproxPrefixCacheProducer,
    ApproxPrefixCacheProducerParameters,
)
from epp.plugins.token_producer import TokenProducer
from epp.plugins.tokens import extras_of, tokens_of
from epp.scheduling.api import Background, Context, TokenizedPrompt, param

log = logging.getLogger(__name__)

ELSEWHERE = 0.8
"""What a block counts that is not in GPU memory."""
TIDY_SECONDS = 0.25
"""Between two looks at what is expected no longer."""
NO_TOKENS = "its tokens are not known: configure a token-producer with vllm, or send token ids"
NO_EVENTS = "no engine has published KV cache events yet"


@dataclass(frozen=True)
class TokenProcessorConfig:
    """How prompts are cut into blocks."""

    block_size_tokens: int = param(16, minimum=1, doc="tokens per block")
    block_size: int | None = param(None, minimum=1, doc="the same")
    hash_seed: str = param("", doc="not needed: the engines' hashes are only names")
    hash_algorithm: str = param("", doc="not needed")


@dataclass(frozen=True)
class PodDiscoveryConfig:
    """Where each engine publishes."""

    socket_port: int = param(5557, minimum=1, maximum=65535, doc="port of an engine's events, plus its rank in the pod")
    replay_socket_port: int = param(0, minimum=0, maximum=65535, doc="port for earlier events, plus the rank; 0: none")
    pod_label_selector: str = param("", doc="not needed: the pool's endpoints are known")
    pod_namespace: str = param("", doc="not needed")


@dataclass(frozen=True)
class KvEventsConfig:
    """How engines are heard."""

    zmq_endpoint: str = param("", doc="where engines connect with this process; empty: they do not")
    topic_filter: str = param("kv@", doc="what topics begin with")
    concurrency: int = param(4, minimum=1, doc="not needed")
    engine_type: str = param("vllm", choices=("vllm", "sglang"), doc="both speak alike")
    tracing: bool = param(False, doc="no effect")
    discover_pods: bool = param(True, doc="connect with each endpoint")
    pod_discovery_config: PodDiscoveryConfig = param(PodDiscoveryConfig)

    def listening(self) -> ListenOptions:
        """The same for the data layer."""
        found = self.pod_discovery_config
        port, replay = (found.socket_port, found.replay_socket_port) if self.discover_pods else (0, 0)
        return ListenOptions(self.topic_filter, self.zmq_endpoint, port, replay)


@dataclass(frozen=True)
class PrecisePrefixCacheProducerParameters:
    """Parameters of precise-prefix-cache-producer."""

    token_processor_config: TokenProcessorConfig = param(TokenProcessorConfig)
    indexer_config: dict[str, Any] = param(dict, doc="how much is remembered, and the weights of media")
    kv_events_config: KvEventsConfig = param(KvEventsConfig)
    speculative_indexing: bool = param(False, doc="what was sent counts as cached at once")
    speculative_ttl: float = param(2.0, minimum=0, duration=True, key="speculativeTTL", doc="for so long")

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        cut = self.token_processor_config
        return cut.block_size or cut.block_size_tokens

    def limit(self) -> int:
        """Blocks that are remembered."""
        size = _at(self.indexer_config, "kvBlockIndexConfig", "inMemoryConfig").get("size")
        return min(size, MAX_ENTRIES) if isinstance(size, int) and size > 0 else MAX_ENTRIES

    def elsewhere(self) -> float:
        """Weight of blocks outside of GPU memory."""
        backends = self.indexer_config.get("kvCacheBackendConfigs")
        for each in backends if isinstance(backends, list) else ():
            if isinstance(each, dict) and each.get("name") != "gpu" and isinstance(each.get("weight"), int | float):
                return min(1.0, max(0.0, float(each["weight"])))
        return ELSEWHERE


class PrecisePrefixCacheProducer(ApproxPrefixCacheProducer, Background):
    """Knows, where the other one estimates."""

    TYPE = "precise-prefix-cache-producer"
    PARAMETERS = PrecisePrefixCacheProducerParameters

    def __init__(self, name: str, parameters: PrecisePrefixCacheProducerParameters, context: Context) -> None:
        estimate = ApproxPrefixCacheProducerParameters(block_size_tokens=parameters.block_tokens)
        super().__init__(name, estimate, context)
        context.first(TokenProducer)  # which is to come first
        self._blocks = BlockIndex(parameters.block_tokens, parameters.limit())
        self._elsewhere = parameters.elsewhere()
        self._listener = Listener(context.datastore, parameters.kv_events_config.listening(), self)
        self._ttl = parameters.speculative_ttl if parameters.speculative_indexing else 0.0
        self._expected: deque[tuple[float, Endpoint, Sequence[int]]] = deque()
        self._told: set[str] = set()
        """Reasons for estimates that the log has named."""
        context.datastore.on_added(self._listener.changed)
        context.datastore.on_removed(self._left)

    async def run(self) -> None:
        """Listen to the engines."""
        tidying = asyncio.create_task(self._tidy())
        try:
            await self._listener.run()
        finally:
            tidying.cancel()

    def heard(self, endpoint: Endpoint, model: str, batch: Batch) -> None:
        """An engine has said something of its cache; for the listener. Raises ValueError for what makes no sense."""
        before, wrong = self._blocks.block_tokens, ""
        for event in batch.events:
            try:
                self._blocks.take(endpoint, model, event)
            except ValueError as error:
                wrong = str(error)
        if self._blocks.block_tokens != before:
            message = (
                "%s: %s has other blocks than of %d tokens: they are cut into %d; set blockSizeTokens to the engines'"
            )
            log.warning(message, self.name, endpoint.name, before, self._blocks.block_tokens)
        if wrong:
            raise ValueError(wrong)

    def forgotten(self, endpoint: Endpoint) -> None:
        """An engine's cache is empty; for the listener."""
        self._blocks.clear(endpoint)

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Look the prompt up among what engines hold, or estimate."""
        tokenized = tokens_of(request)
        if tokenized is None:
            self._estimate(request, endpoints, NO_TOKENS)
        elif not any(map(self._blocks.knows, endpoints)):
            self._estimate(request, endpoints, NO_EVENTS)
        else:
            self._context.recorder.prefix_source(self.name, "events")
            request.attributes[self._key] = self._look_up(request, tokenized, endpoints)

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """Expect the chosen endpoints to hold the prompt soon, if told so."""
        match = self.match(request)
        if match is None or match.weights is None:  # an estimate
            super().pre_request(request, decision)
            return
        if not match.hashes:
            return
        chosen, size = decision.endpoints[0], match.block_tokens * BYTES_PER_TOKEN
        for endpoint in (chosen, *decision.profiles.get(PREFILL_PROFILE, ())[:1]) if self._ttl else ():
            fresh = self._blocks.expect(endpoint, match.hashes)
            self._expected.append((time.monotonic() + self._ttl, endpoint, fresh))
        self._context.recorder.prefix_match(self.name, match.blocks.get(chosen, 0) * size, len(match.hashes) * size)
        match.hashes = ()  # an answer may take minutes, and nobody needs them any more

    def _estimate(self, request: InferenceRequest, endpoints: list[Endpoint], why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            log.warning("%s estimates the prefix of a prompt (said once): %s", self.name, why)
        self._context.recorder.prefix_source(self.name, "estimate")
        super().produce(request, endpoints)

    def _look_up(self, request: InferenceRequest, tokenized: TokenizedPrompt, endpoints: list[Endpoint]) -> PrefixMatch:
        started, size = time.perf_counter(), self._blocks.block_tokens
        before = first_key(request.target_model or request.model)
        extras = extras_of(tokenized, size, request.cache_salt)
        salt = {0: (request.cache_salt,)} if request.cache_salt else {}
        keys: list[int] = []
        depths: dict[Endpoint, int] = {}
        weights: dict[Endpoint, float] = {}
        for number, prompt in enumerate(tokenized.prompts):
            found = block_keys(before, prompt.tobytes(), size, salt if number else extras)
            held, weighed = self._blocks.match(found, endpoints, self._elsewhere)
            keys += found
            for endpoint, count in held.items():
                depths[endpoint] = depths.get(endpoint, 0) + count
                weights[endpoint] = weights.get(endpoint, 0.0) + weighed[endpoint]
        best = max(depths.values(), default=0)
        self._context.recorder.kv_lookup(self.name, time.perf_counter() - started, len(keys), best, best)
        return PrefixMatch(keys, size, depths, weights)

    async def _tidy(self) -> None:
        """Expect nothing for longer than was said, and tell the metrics what has become of the index."""
        while True:
            now = time.monotonic()
            while self._expected and self._expected[0][0] <= now:
                _, endpoint, keys = self._expected.popleft()
                self._blocks.give_up(endpoint, keys)
            counts = self._blocks.counts
            self._context.recorder.kv_blocks(
                self.name, len(self._blocks), counts.admitted, counts.evicted, counts.skipped
            )
            await asyncio.sleep(TIDY_SECONDS)

    def _left(self, endpoint: Endpoint) -> None:
        self._blocks.drop(endpoint)
        self._listener.changed(endpoint)


def _at(where: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The map below these names; empty where there is none."""
    for name in names:
        found = where.get(name)
        where = found if isinstance(found, dict) else {}
    return where
