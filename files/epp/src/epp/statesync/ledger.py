# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to peers and what their words come to, without any I/O.

Of each peer the ledger remembers what it has in flight where, so that a peer which falls silent, says goodbye or starts
anew can be taken out of the sums again. Prefixes need no such care: an endpoint does not lose its cache when the picker
dies that filled it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from epp.datalayer import Datastore
from epp.model import Endpoint
from epp.statesync.messages import VERSION, News, PoolNews, pack, unpack

SILENCE_SECONDS = 2.0
"""A peer that has said nothing for so long has nothing in flight any more, as far as anybody can tell."""
SNAPSHOT_HASHES = 50_000
"""Block hashes in one message to a peer that has just come."""

Load = dict[str, tuple[int, int]]


@dataclass
class Peer:
    """What one peer has said."""

    heard: float
    """When it spoke last, monotonic seconds."""
    loads: dict[str, Load] = field(default_factory=lambda: defaultdict(dict))
    """By pool: what it has in flight at each endpoint."""
    serial: int = 0
    """Of the last message that counted."""


class Ledger:
    """All pools of one process."""

    def __init__(self, sender: str, pools: Mapping[str, Datastore]) -> None:
        """``sender`` names this process among all others, also among those that were here before."""
        self.sender = sender
        self.peers: dict[str, Peer] = {}
        self._pools = pools
        self._serial = 0
        for pool, store in pools.items():
            store.journal.active = True
            store.on_added(partial(self._arrived, pool))

    def wake(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when there is something to say."""
        for store in self._pools.values():
            store.journal.wake = callback

    def news(self, whole: bool = False) -> News | None:
        """What has happened here since the last time; ``whole`` repeats all counts. None when there is nothing."""
        pools = {}
        for name, store in self._pools.items():
            page = store.journal.turn()
            touched = [each for each in store.endpoints() if each.own] if whole else page.touched
            load = {each.hostport: (each.own, each.own_tokens) for each in touched}
            prefixes = [(learner, each.hostport, pack(hashes)) for learner, each, hashes in page.prefixes()]
            if whole or load or page.sent or prefixes:
                pools[name] = PoolNews(load, whole, page.sent, prefixes)
        if not pools:
            return None
        self._serial += 1
        return News(VERSION, self.sender, pools, serial=self._serial)

    def goodbye(self) -> News:
        """The last words."""
        return News(VERSION, self.sender, {}, goodbye=True)

    def snapshot(self) -> Iterator[News]:
        """All prefixes that are known here, for a peer that has just come; the oldest first."""
        for pool, store in self._pools.items():
            for name, learner in store.journal.learners.items():
                for endpoint, hashes in learner.known():
                    for start in range(0, len(hashes), SNAPSHOT_HASHES):
                        # The last of what is learned counts as the oldest, as the end of a prompt does.
                        part = pack(hashes[start : start + SNAPSHOT_HASHES][::-1])
                        prefixes = [(name, endpoint.hostport, part)]
                        yield News(VERSION, self.sender, {pool: PoolNews(prefixes=prefixes)})

    def hear(self, news: News, now: float) -> None:
        """Take over what a peer says, at ``now`` (monotonic seconds). Raises ValueError for broken hashes.

        Own words, those that have been heard before, and pools that are not served here are ignored.
        """
        if news.sender == self.sender:
            return
        if news.goodbye:
            self.forget(news.sender)
            return
        peer = self.peers.get(news.sender)
        if peer is None:
            peer = self.peers[news.sender] = Peer(now)
        peer.heard = now
        if news.serial:
            if news.serial <= peer.serial:
                return
            peer.serial = news.serial
        for name, pool in news.pools.items():
            if (store := self._pools.get(name)) is not None:
                self._take_over(store, peer.loads[name], pool)

    def expire(self, now: float) -> list[str]:
        """Forget the peers that have been silent for too long; returns who they were."""
        silent = [name for name, peer in self.peers.items() if now - peer.heard > SILENCE_SECONDS]
        for name in silent:
            self.forget(name)
        return silent

    def forget(self, sender: str) -> None:
        """A peer has gone: nothing of it is in flight."""
        peer = self.peers.pop(sender, None)
        for name, load in peer.loads.items() if peer else ():
            store = self._pools[name]
            for endpoint in store.endpoints():
                if had := load.get(endpoint.hostport):
                    store.elsewhere(endpoint, -had[0], -had[1])

    def _take_over(self, store: Datastore, had: Load, news: PoolNews) -> None:
        if news.whole:
            gone = had.keys() - news.load.keys()
            news.load.update(dict.fromkeys(gone, (0, 0)))
        for where, (requests, tokens) in news.load.items():
            before = had.get(where, (0, 0))
            if requests:
                had[where] = (requests, tokens)
            else:
                had.pop(where, None)
                tokens = 0
            if endpoint := store.at(where):
                store.elsewhere(endpoint, requests - before[0], tokens - before[1])
        for where, tokens in news.sent:
            if endpoint := store.at(where):
                store.sent_elsewhere(endpoint, tokens)
        for where in {where for where, _ in news.sent}:
            if endpoint := store.at(where):
                store.busy(endpoint)
        for name, where, packed in news.prefixes:
            learner, found = store.journal.learners.get(name), store.at(where)
            if learner is not None and found is not None:
                learner.learn(found, unpack(packed))

    def _arrived(self, pool: str, endpoint: Endpoint) -> None:
        """An endpoint is here that peers may have known before us."""
        for peer in self.peers.values():
            if has := peer.loads[pool].get(endpoint.hostport):
                self._pools[pool].elsewhere(endpoint, *has)
