# SPDX-License-Identifier: GPL-3.0-or-later
"""What this process does that its peers want to know, and who here wants to know what they did.

The exact state of endpoints comes from the endpoints themselves. What only the picker knows (requests on their way, and
prompts that it believes to be cached) is lost on other pickers of the same pool unless it is told them. A datastore
writes it down here; ``epp.statesync`` takes it from here to the peers, and brings theirs. Without peers, nothing is
written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from epp.model import Endpoint


class Learner(Protocol):
    """Something that believes to know what endpoints hold in their prefix caches."""

    def learn(self, endpoint: Endpoint, hashes: Sequence[int]) -> None:
        """A peer has sent prompts with these blocks to the endpoint; the last hashes count as the oldest."""

    def known(self) -> Iterator[tuple[Endpoint, Sequence[int]]]:
        """All that it knows: the block hashes of each endpoint, the oldest first."""


@dataclass
class Page:
    """What has happened since the last page."""

    touched: set[Endpoint] = field(default_factory=set)
    """Endpoints whose count of requests in flight has changed."""
    sent: list[tuple[str, int]] = field(default_factory=list)
    """Requests that went out: ``hostport`` and uncached prompt tokens."""
    prompts: dict[str, dict[Endpoint, list[Sequence[int]]]] = field(default_factory=dict)
    """Block hashes of prompts that went out, by the learner's name and endpoint, in the order of time."""

    def prefixes(self) -> Iterator[tuple[str, Endpoint, dict[int, None]]]:
        """The blocks of these prompts, each of them once: what comes first is what was used last."""
        for learner, places in self.prompts.items():
            for endpoint, prompts in places.items():
                prompts.reverse()
                yield learner, endpoint, dict.fromkeys(chain.from_iterable(prompts))


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

    def prefix(self, learner: str, endpoint: Endpoint, hashes: Sequence[int]) -> None:
        """A prompt with these block hashes went there."""
        places = self._page.prompts.get(learner)
        if places is None:
            places = self._page.prompts[learner] = {}
        prompts = places.get(endpoint)
        if prompts is None:
            places[endpoint] = [hashes]
        else:
            prompts.append(hashes)
        self._written()

    def turn(self) -> Page:
        """The page so far; a new one begins."""
        page, self._page, self._empty = self._page, Page(), True
        return page

    def _written(self) -> None:
        if self._empty:
            self._empty = False
            self.wake()
