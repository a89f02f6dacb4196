# SPDX-License-Identifier: GPL-3.0-or-later
"""What this process does that its peers want to know, and who here wants to know what they did.

The exact state of endpoints comes from the endpoints themselves. What only the picker knows (requests on their way, and
prompts that it believes to be cached) is lost on other pickers of the same pool unless it is told them. A datastore
writes it down here; ``epp.statesync`` takes it from here to the peers, and brings theirs. Without peers, nothing is
written.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from epp.model import Endpoint


class Learner(Protocol):
    """Something that believes to know what endpoints hold in their prefix caches."""

    def learn(self, endpoint: Endpoint, hashes: Sequence[int]) -> None:
        """A peer has sent a prompt with these block hashes to the endpoint."""

    def known(self) -> Iterator[tuple[Endpoint, Sequence[int]]]:
        """All that it knows: the block hashes of each endpoint, the oldest first."""


AGAIN_SECONDS = 0.25
"""Between two times at which peers are told all blocks of a prompt that is used all the time."""


@dataclass(slots=True)
class Page:
    """What has happened since the last page."""

    touched: set[Endpoint] = field(default_factory=set)
    """Endpoints whose count of requests in flight has changed."""
    sent: list[tuple[str, int]] = field(default_factory=list)
    """Requests that went out: ``hostport`` and uncached prompt tokens."""
    prefixes: list[tuple[str, str, Sequence[int]]] = field(default_factory=list)
    """Prompts that went out: name of the learner, ``hostport``, block hashes."""


class Told:
    """Which prompts peers were told in full a moment ago: of those that go on where such a one ended, or that have the
    same beginning, only what is new needs to be said.

    Peers must see a prompt's beginning used again and again, or they forget it before its end; so it is said in full
    every AGAIN_SECONDS, which is little beside the time for which anything is remembered.
    """

    def __init__(self) -> None:
        self._new: dict[tuple[Endpoint, int], float] = {}
        """When the prompt that ends with this block there was told in full."""
        self._old: dict[tuple[Endpoint, int], float] = {}
        """The same, of the time before ``_turned``."""
        self._turned = 0.0

    def __len__(self) -> int:
        """Prompts that are remembered."""
        return len(self._new) + len(self._old)

    def news(self, endpoint: Endpoint, hashes: Sequence[int], known: int, now: float) -> Sequence[int]:
        """The part of a prompt's block hashes that peers are to be told, at ``now`` (monotonic seconds); the first
        ``known`` of them had been sent there before."""
        if now - self._turned >= AGAIN_SECONDS:
            self._old, self._new, self._turned = self._new, {}, now
        new, last = self._new, (endpoint, hashes[-1])
        if known:
            joint = (endpoint, hashes[known - 1])
            told = new.get(joint) or self._old.get(joint, 0.0)
            if now - told < AGAIN_SECONDS:
                new[last] = told
                return hashes[known:]
            new[joint] = now
        new[last] = now
        return hashes


class Journal:
    """The open page, and the learners. Everything happens in one event loop."""

    def __init__(self) -> None:
        self.active = False
        """Whether there may be peers; without them nothing is written."""
        self.wake: Callable[[], None] = lambda: None
        """Called when something is written on an empty page."""
        self.learners: dict[str, Learner] = {}
        self._page = Page()
        self._empty = True
        self._told: defaultdict[str, Told] = defaultdict(Told)

    def teach(self, name: str, learner: Learner) -> None:
        """Let a learner, known to peers by this name, hear of their prompts."""
        self.learners[name] = learner

    def touch(self, endpoint: Endpoint) -> None:
        """The endpoint's count of requests in flight has changed."""
        self._page.touched.add(endpoint)
        self._written()

    def sent(self, endpoint: Endpoint, tokens: int) -> None:
        """A request with ``tokens`` uncached prompt tokens went there."""
        self._page.sent.append((endpoint.hostport, tokens))
        self._written()

    def prefix(self, learner: str, endpoint: Endpoint, hashes: Sequence[int], known: int = 0) -> None:
        """A prompt with these block hashes (one at least) went there; the first ``known`` of them not for the first
        time."""
        news = self._told[learner].news(endpoint, hashes, known, time.monotonic())
        if news:
            self._page.prefixes.append((learner, endpoint.hostport, news))
            self._written()

    def turn(self) -> Page:
        """The page so far; a new one begins."""
        page, self._page, self._empty = self._page, Page(), True
        return page

    def _written(self) -> None:
        if self._empty:
            self._empty = False
            self.wake()
