# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of plugins that flow control asks, and what it is told by its configuration.

All of them are asked often, some before every dispatch: they must be quick, and must not wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from epp.flowcontrol.queue import Flow, Item
from epp.model import InferenceRequest
from epp.scheduling.api import Plugin

MAX_REQUESTS = 5000
"""Requests that may wait in one band unless said otherwise."""
MAX_BYTES = 1_000_000_000
"""Bytes of bodies that may wait in one band unless said otherwise."""


class OrderingPolicy(Plugin):
    """Orders the requests of one flow."""

    @abstractmethod
    def rank(self, item: Item) -> float:
        """The request's place, asked for once: smaller goes first, equal ones in the order in which they came."""


class Selector(ABC):
    """Which flow of one band goes next. Made by a fairness policy, one per band, so that it may keep state."""

    @abstractmethod
    def changed(self, flow: Flow) -> None:
        """``flow.head`` is another request than before, or None: nobody waits there any more."""

    @abstractmethod
    def pick(self, now: float) -> Flow | None:
        """The flow whose head goes now; None when nobody waits."""


class FairnessPolicy(Plugin):
    """Chooses among the flows of one band."""

    @abstractmethod
    def selector(self) -> Selector:
        """A new one, for a band without flows."""

    def dispatched(self, item: Item, now: float) -> None:
        """A request of one of its bands goes to an endpoint now. Does nothing unless overridden."""


class ScanningPolicy(FairnessPolicy):
    """The simple kind: it looks at all flows each time. Good for hundreds of flows, not for tens of thousands."""

    @abstractmethod
    def choose(self, flows: Sequence[Flow], now: float) -> Flow:
        """One of the flows, each of which has a head, longest waiting ones in no particular order; never empty."""

    def selector(self) -> Selector:
        """One that keeps the flows that wait."""
        return _Scan(self)


class _Scan(Selector):
    def __init__(self, policy: ScanningPolicy) -> None:
        self._policy = policy
        self._waiting: dict[Flow, None] = {}

    def changed(self, flow: Flow) -> None:
        if flow.head is None:
            self._waiting.pop(flow, None)
        else:
            self._waiting[flow] = None

    def pick(self, now: float) -> Flow | None:
        return self._policy.choose(tuple(self._waiting), now) if self._waiting else None


class UsageLimitPolicy(Plugin):
    """Says up to which saturation each band may dispatch."""

    @abstractmethod
    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """One ceiling per priority, which come highest first. A band whose ceiling is not above the saturation waits,
        and so do all below it."""


@dataclass(slots=True, eq=False)
class Victim:
    """A request that was dispatched, has not ended, and may be given up for a more urgent one."""

    request: InferenceRequest
    dispatched: float
    """When (seconds)."""


class EvictionFilter(Plugin):
    """Says which dispatched requests may be given up."""

    @abstractmethod
    def evictable(self, request: InferenceRequest) -> bool:
        """Whether this one may."""


class EvictionOrder(Plugin):
    """Says in which order they are given up."""

    @abstractmethod
    def rank(self, victim: Victim) -> tuple[float, ...]:
        """The victim's place, asked for once: the smallest goes first."""


@dataclass(frozen=True)
class BandOptions:
    """One band."""

    fairness: FairnessPolicy
    ordering: OrderingPolicy
    max_requests: int = MAX_REQUESTS
    """Requests that may wait; 0 for any number."""
    max_bytes: int = MAX_BYTES
    """Bytes of bodies that may wait; 0 for any number."""


@dataclass(frozen=True)
class EvictionOptions:
    """Which requests in flight may be given up, and in which order."""

    filter: EvictionFilter
    order: EvictionOrder


@dataclass(frozen=True)
class Options:
    """Flow control as configured. Durations are seconds."""

    default_band: BandOptions
    """What bands are made of that have no options of their own."""
    usage_limit: UsageLimitPolicy
    negative_band: BandOptions | None = None
    """The same for priorities below 0."""
    bands: Mapping[int, BandOptions] = field(default_factory=dict)
    max_requests: int = 0
    """Requests that may wait in all bands; 0 for any number."""
    max_bytes: int = 0
    """Bytes of bodies that may wait in all bands; 0 for any number."""
    request_ttl: float = 60.0
    """How long a request waits while there are endpoints; 0 for as long as its client does."""
    no_endpoint_ttl: float = 60.0
    """How long it waits while there are none; 0 for as long as its client does."""
    flow_gc: float = 300.0
    """A flow in which nobody waits for this long is forgotten."""
    band_gc: float = 600.0
    """So is a band without flows, unless it is configured."""
    eviction: EvictionOptions | None = None
