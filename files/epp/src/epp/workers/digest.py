# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parent is told of what workers tell each other.

It decides nothing but how often endpoints are read, so it needs neither prompts nor every request, and not at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from epp.statesync.messages import News, PoolNews

DELAY_SECONDS = 0.03
"""How long news wait for more to come along."""


class Digest:
    """Gathers news, and hands them to ``send`` in one."""

    def __init__(self, send: Callable[[News], None]) -> None:
        self._send = send
        self._last: News | None = None
        self._pools: dict[str, PoolNews] = {}
        self._sent: dict[str, set[str]] = {}
        """By pool: where requests have gone."""

    def add(self, news: News) -> None:
        """Peers are told this."""
        if news.goodbye:
            self._last, self._pools, self._sent = None, {}, {}
            self._send(news)
            return
        if self._last is None:
            asyncio.get_running_loop().call_later(DELAY_SECONDS, self.tell)
        self._last = news
        for name, pool in news.pools.items():
            gathered = self._pools.get(name)
            if gathered is None or pool.whole:
                self._pools[name] = PoolNews(dict(pool.load), pool.whole)
            else:
                gathered.load.update(pool.load)
            if pool.sent:
                self._sent.setdefault(name, set()).update([where for where, _ in pool.sent])

    def tell(self) -> None:
        """Hand over what has come so far."""
        last, pools, sent = self._last, self._pools, self._sent
        self._last, self._pools, self._sent = None, {}, {}
        if last is None:
            return
        for name, places in sent.items():
            pools[name].sent = [(where, 0) for where in places]
        self._send(News(last.version, last.sender, pools, serial=last.serial))
