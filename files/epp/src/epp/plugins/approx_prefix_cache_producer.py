# SPDX-License-Identifier: GPL-3.0-or-later
"""approx-prefix-cache-producer: estimates how much of a prompt each endpoint has in its prefix cache.

Parameters:
    autoTune (true): take block size and capacity from what the model servers report, where they do.
    blockSizeTokens (16): tokens per block; at least 64 while tokens are estimated at 4 bytes each.
    maxPrefixBlocksToMatch (2048), maxPrefixTokensToMatch (131072): how much of a prompt is looked at.
    lruCapacityPerServer (31250): blocks remembered per endpoint.
Formula: a prompt is cut into blocks, each block's hash includes those before it; an endpoint's match is the number of
consecutive blocks, from the start, that went to it before and that newer ones have not pushed out. The first 32 blocks
of a prompt are looked at one by one, the next 64 two at a time, the next 128 four, all others eight at a time.
Source: GAIE v1.5 and llm-d-router producer of the same type. Three things differ: blocks that lie deep
in a prompt are joined as said (the reference looks at each), the tuned capacity counts tokens (so
larger blocks make fewer entries), and a prompt's end is forgotten before its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from epp.datalayer.prompts import BYTES_PER_TOKEN, Geometry, PrefixMatch, Prompts
from epp.model import Decision, Endpoint, InferenceRequest
from epp.scheduling.api import PREFIX_MATCH, Context, Producer, RequestHook, param

MIN_BLOCK_TOKENS = 64
PREFILL_PROFILE = "prefill"


@dataclass(frozen=True)
class ApproxPrefixCacheProducerParameters:
    """Parameters of approx-prefix-cache-producer."""

    auto_tune: bool = param(True, doc="block size and capacity from the model servers' metrics")
    block_size_tokens: int = param(16, minimum=1, doc="tokens per block")
    max_prefix_blocks_to_match: int = param(2048, minimum=1, doc="blocks of a prompt that are looked at")
    max_prefix_tokens_to_match: int = param(131072, minimum=0, doc="tokens of a prompt that are looked at; 0 is all")
    lru_capacity_per_server: int = param(31250, minimum=1, doc="blocks remembered per endpoint")

    def geometry(self) -> Geometry:
        """The same in bytes."""
        return Geometry(
            auto_tune=self.auto_tune,
            block_bytes=self.block_size_tokens * BYTES_PER_TOKEN,
            min_block_bytes=MIN_BLOCK_TOKENS * BYTES_PER_TOKEN,
            max_blocks=self.max_prefix_blocks_to_match,
            max_bytes=self.max_prefix_tokens_to_match * BYTES_PER_TOKEN,
            capacity=self.lru_capacity_per_server,
        )


class ApproxPrefixCacheProducer(Producer, RequestHook):
    """Remembers what was sent where."""

    TYPE = "approx-prefix-cache-producer"
    PARAMETERS: ClassVar[type[Any]] = ApproxPrefixCacheProducerParameters

    def __init__(
        self,
        name: str,
        parameters: ApproxPrefixCacheProducerParameters,
        context: Context,
        geometry: Geometry | None = None,
    ) -> None:
        """``geometry`` is that of a scorer which brings its own parameters (v1.3)."""
        super().__init__(name, parameters, context)
        self._context = context
        self._prompts = Prompts(name, geometry or parameters.geometry(), context.datastore)
        self._key = f"{PREFIX_MATCH}/{name}"
        context.datastore.on_removed(self._drop)
        context.datastore.journal.teach(name, self)

    def match(self, request: InferenceRequest) -> PrefixMatch | None:
        """What :meth:`produce` found for a request."""
        found = request.attributes.get(self._key)
        return found if isinstance(found, PrefixMatch) else None

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Hash the prompt, and look it up."""
        request.attributes[self._key] = self._prompts.match(request, endpoints)

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """The chosen endpoints will hold this prompt."""
        match = self.match(request)
        if match is None or not match.hashes:
            return
        chosen = (decision.endpoints[0], *decision.profiles.get(PREFILL_PROFILE, ())[:1])
        hit, total = self._prompts.sent(request, match, chosen)
        self._context.recorder.prefix_match(self.name, hit, total)
        self._context.recorder.prefix_index_size(self.name, len(self._prompts))

    def learn(self, endpoint: Endpoint, hashes: Sequence[int]) -> None:
        """Peers have sent prompts with these block hashes to the endpoint."""
        self._prompts.learn(endpoint, hashes)

    def known(self) -> Iterator[tuple[Endpoint, Sequence[int]]]:
        """All that is remembered: the block hashes of each endpoint, the oldest first."""
        return self._prompts.known()

    def _drop(self, endpoint: Endpoint) -> None:
        self._prompts.drop(endpoint)
        self._context.recorder.prefix_index_size(self.name, len(self._prompts))
