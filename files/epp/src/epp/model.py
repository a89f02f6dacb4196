# SPDX-License-Identifier: GPL-3.0-or-later
"""The nouns that every room of the EPP shares: endpoints, requests, decisions.

Plain data and nothing else: this module imports no other part of the EPP but :mod:`epp.refusals`, so that rooms which
must not know each other (the transport and the scheduler, say) can still speak of the same things. It is compiled where
that can be; what is made for every request has an ``__init__`` of its own, because those of dataclasses are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from epp.refusals import BodyError as BodyError
from epp.refusals import Immediate as Immediate
from epp.refusals import Rejection as Rejection
from epp.refusals import Reply as Reply


@dataclass(init=False, slots=True)
class EndpointMetrics:
    """What a model server last said of itself, in its own units.

    ``updated_at`` is a ``time.monotonic()`` reading in seconds; 0.0 means never scraped. ``kv_cache_usage`` is a
    fraction (0..1), the rest are counts. ``block_size`` (tokens) and ``num_blocks`` are 0 while unknown.
    """

    waiting: int
    running: int
    kv_cache_usage: float
    block_size: int
    num_blocks: int
    max_lora: int
    running_adapters: frozenset[str]
    waiting_adapters: frozenset[str]
    custom: Mapping[str, float]
    """Further metrics that the configuration asks for (customMetrics), by attribute key; only those on the page."""
    reports_waiting: bool
    """The engine has a metric of its queue; without one, what is in flight and does not run is taken to wait."""
    reports_running: bool
    """The engine has a metric of its batch; without one, what is in flight and does not wait is taken to run."""
    updated_at: float
    interval: float
    """Seconds until the reading after this one was due: what arrives later than that is late, not idle."""

    def __init__(
        self,
        waiting: int = 0,
        running: int = 0,
        kv_cache_usage: float = 0.0,
        block_size: int = 0,
        num_blocks: int = 0,
        max_lora: int = 0,
        running_adapters: frozenset[str] = frozenset(),
        waiting_adapters: frozenset[str] = frozenset(),
        custom: Mapping[str, float] | None = None,
        reports_waiting: bool = True,
        reports_running: bool = True,
        updated_at: float = 0.0,
        interval: float = 0.0,
    ) -> None:
        self.waiting = waiting
        self.running = running
        self.kv_cache_usage = kv_cache_usage
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_lora = max_lora
        self.running_adapters = running_adapters
        self.waiting_adapters = waiting_adapters
        self.custom = {} if custom is None else custom
        self.reports_waiting = reports_waiting
        self.reports_running = reports_running
        self.updated_at = updated_at
        self.interval = interval

    def copy(self) -> EndpointMetrics:
        """The same figures in a new object; ``dataclasses.replace`` takes ten times as long."""
        return EndpointMetrics(
            self.waiting,
            self.running,
            self.kv_cache_usage,
            self.block_size,
            self.num_blocks,
            self.max_lora,
            self.running_adapters,
            self.waiting_adapters,
            self.custom,
            self.reports_waiting,
            self.reports_running,
            self.updated_at,
            self.interval,
        )


Flow = tuple[str, int]
"""Fairness ID and priority."""
NO_FLOW: Final[Flow] = ("", 0)


@dataclass(slots=True)
class FlowShare:
    """What one flow has in flight at one endpoint, through this process."""

    requests: int = 0
    tokens: int = 0


@dataclass(slots=True, eq=False)
class Endpoint:
    """One place that answers requests: a (pod, port) pair. Compared by identity; ``hostport`` names it on the wire."""

    name: str
    """``<pod>-rank-<i>`` in Kubernetes, the given name in a file."""
    namespace: str
    pod: str
    address: str
    port: int
    labels: Mapping[str, str] = field(default_factory=dict)
    metrics: EndpointMetrics = field(default_factory=EndpointMetrics)
    inflight: int = 0
    """Requests that this EPP, or a peer that shares its state, sent there and whose answers have not ended."""
    inflight_tokens: int = 0
    """Estimated tokens that those requests still cost it: prompts without what its prefix cache is believed to hold,
    until they are computed; and, if an inflight-load-producer is configured so, answers."""
    own: int = 0
    """Those of ``inflight`` that this process sent itself."""
    own_tokens: int = 0
    """Their part of ``inflight_tokens``."""
    flows: dict[Flow, FlowShare] = field(default_factory=dict)
    """The same by flow; a flow that has nothing in flight here is absent."""
    unseen: int = 0
    """Requests sent there since the last reading of its metrics: the engine could not have counted them yet."""
    unseen_tokens: int = 0
    """Prompt tokens (estimated, without those in the prefix cache) of the unseen requests."""
    refused: bool = False
    """Nobody listens there now, though this endpoint or others of the pool have answered: the process is gone, and the
    watch has yet to say so, or it has not begun."""
    models: Mapping[str, bytes] | None = None
    """What its ``/v1/models`` says, by the model's name: the JSON of each entry; None while nobody has asked it."""
    unmetered: bool = False
    """It serves and has no metrics: the requests in flight stand in for them, and nothing of it is ever late."""
    hostport: str = ""

    def __post_init__(self) -> None:
        """Write the wire name once: it is used on every request."""
        self.hostport = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def reachable(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Those of ``endpoints`` that requests may go to: the ones that do not refuse or, if none is left, the ones that
    were never read, because they may serve elsewhere than they show metrics. The very ``endpoints`` if none refuses."""
    for endpoint in endpoints:
        if endpoint.refused:
            return [each for each in endpoints if not each.refused] or unread(endpoints)
    return endpoints


def unread(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Those of ``endpoints`` that have never said anything of themselves, not even that they have no metrics."""
    return [each for each in endpoints if not (each.metrics.updated_at or each.unmetered)]


@dataclass(init=False, slots=True)
class InferenceRequest:
    """One request as the scheduler sees it. ``headers`` have lower-case names; ``prompt`` is what prefixes are hashed
    over: the bytes of the body's prompt or messages, as the client sent them."""

    request_id: str
    headers: Mapping[str, str]
    model: str
    """The model that the client asked for."""
    target_model: str
    """The model that the endpoint is asked for; differs from ``model`` after a rewrite."""
    prompt: bytes
    body: bytes
    """What the endpoint will get, while plugins ask services about it; empty before and after."""
    prepared: bool
    """Those services have answered, and the producers that they depend on need not run again."""
    stream: bool
    size: int
    """Bytes of the body."""
    max_tokens: int
    """Upper bound of output tokens that the client set; 0 when it set none."""
    prompt_tokens: int
    """Tokens of the prompt, estimated or counted; 0 until somebody knows. The scheduler estimates what is left 0."""
    output_tokens: int
    """Estimated tokens of the answer that count as load; 0 unless a producer says otherwise."""
    lead: int
    """Bytes at the beginning of ``prompt`` that are not the prompt itself but what engines render before it (tools, a
    system prompt), as JSON values of their own."""
    parts: int
    """Images, recordings and videos in the prompt."""
    cache_salt: str
    """vLLM's ``cache_salt``: prompts with different salts share no prefix cache."""
    objective: str
    fairness_id: str
    priority: int
    attributes: dict[str, object]
    """What producers found out about this request, by key; lives from the decision to the end of the response."""

    def __init__(
        self,
        request_id: str,
        headers: Mapping[str, str],
        model: str = "",
        target_model: str = "",
        prompt: bytes = b"",
        body: bytes = b"",
        prepared: bool = False,
        stream: bool = False,
        size: int = 0,
        max_tokens: int = 0,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        lead: int = 0,
        parts: int = 0,
        cache_salt: str = "",
        objective: str = "",
        fairness_id: str = "default-flow",
        priority: int = 0,
        attributes: dict[str, object] | None = None,
    ) -> None:
        self.request_id = request_id
        self.headers = headers
        self.model = model
        self.target_model = target_model
        self.prompt = prompt
        self.body = body
        self.prepared = prepared
        self.stream = stream
        self.size = size
        self.max_tokens = max_tokens
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.lead = lead
        self.parts = parts
        self.cache_salt = cache_salt
        self.objective = objective
        self.fairness_id = fairness_id
        self.priority = priority
        self.attributes = {} if attributes is None else attributes


@dataclass(slots=True)
class RawRequest:
    """A request as it came, for whoever understands its body."""

    path: str
    """With its query."""
    headers: Mapping[str, str]
    """Names are lower-case."""
    body: bytes
    """Never empty."""
    truncated: bool = False
    """The body may go on beyond what is here (BUFFERED_PARTIAL)."""


@dataclass(init=False, slots=True)
class ParsedBody:
    """What a request body says. A body that is none of our business gives an empty one."""

    model: str
    prompt: bytes
    """JSON bytes of the prompt, the messages or the input, as the client sent them."""
    stream: bool
    max_tokens: int
    """Upper bound of output tokens that the client set; 0 when it set none."""
    cache_salt: str
    """vLLM's ``cache_salt``: prompts with different salts share no prefix cache."""
    tokens: int
    """Tokens of the prompt where its bytes do not tell: token ids are counted, images and recordings estimated."""
    parts: int
    """Images, recordings and videos in the prompt."""
    lead: int
    """Bytes of ``prompt`` that come from members which engines render before it."""

    def __init__(
        self,
        model: str = "",
        prompt: bytes = b"",
        stream: bool = False,
        max_tokens: int = 0,
        cache_salt: str = "",
        tokens: int = 0,
        parts: int = 0,
        lead: int = 0,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.stream = stream
        self.max_tokens = max_tokens
        self.cache_salt = cache_salt
        self.tokens = tokens
        self.parts = parts
        self.lead = lead


@dataclass(slots=True, frozen=True)
class Usage:
    """Token counts of one finished answer, as the model server reported them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class AnswerReader(Protocol):
    """Follows one answer, and says what it cost."""

    def feed(self, chunk: bytes) -> None:
        """The next piece of the body, cut anywhere."""

    def usage(self) -> Usage | None:
        """The token counts so far; None while nothing is known. Asked for once, at the end."""


@dataclass(init=False, slots=True)
class Charge:
    """What one request costs one endpoint, in estimated tokens, from the decision to the end of the answer."""

    endpoint: Endpoint
    prompt_tokens: int
    """Tokens of the prompt that it must compute: those that its prefix cache is not believed to hold."""
    output_tokens: int

    def __init__(
        self,
        endpoint: Endpoint,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens


@dataclass(init=False, slots=True)
class Decision:
    """Where a request goes: the first endpoint is meant, the others are fallbacks in order of preference."""

    endpoints: tuple[Endpoint, ...]
    scores: Mapping[str, float]
    """``hostport`` to weighted score of the primary profile."""
    profiles: Mapping[str, tuple[Endpoint, ...]]
    """What each profile that ran has picked, the primary one included."""
    cached: bool
    """The first endpoint is believed to hold the beginning of the prompt in its prefix cache."""
    charges: tuple[Charge, ...]
    """Who works on the request: the first endpoint, then those that help it (with the prefill, say)."""
    headers: dict[str, str]
    """More headers to set on the request; plugins add to them until it goes out. An empty one is removed: what is
    written for the proxies behind this EPP must not come from clients."""
    destination: str
    """What the gateway is told in place of the endpoints, where a proxy in between finds the endpoint itself."""

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        scores: Mapping[str, float] | None = None,
        profiles: Mapping[str, tuple[Endpoint, ...]] | None = None,
        cached: bool = False,
        charges: tuple[Charge, ...] = (),
        headers: dict[str, str] | None = None,
        destination: str = "",
    ) -> None:
        self.endpoints = endpoints
        self.scores = {} if scores is None else scores
        self.profiles = {} if profiles is None else profiles
        self.cached = cached
        # Whoever says nothing of charges means the first endpoint.
        self.charges = charges or (Charge(endpoints[0]),)
        self.headers = {} if headers is None else headers
        self.destination = destination
