# SPDX-License-Identifier: GPL-3.0-or-later
"""One request in the in-flight counts of the endpoints that work on it.

However a request ends, and in whatever order its events come, what it added is taken away exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from epp.model import Charge, Endpoint, Flow

if TYPE_CHECKING:
    from epp.datalayer.store import Datastore


class Hold:
    """Made by :meth:`Datastore.hold`; given back with :meth:`release`."""

    __slots__ = ("_flow", "_held", "_store")

    def __init__(self, store: Datastore, charges: Sequence[Charge], flow: Flow) -> None:
        self._store, self._flow = store, flow
        self._held: list[tuple[Endpoint, int, int]] = []
        for charge in charges:
            store.acquire(charge.endpoint, charge.prompt_tokens + charge.output_tokens, flow)
            self._held.append((charge.endpoint, charge.prompt_tokens, charge.output_tokens))

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint in whose count the answer is; None once released."""
        return self._held[0][0] if self._held else None

    def begun(self) -> None:
        """The answer has begun: the helpers are done. Of the prompt that says nothing: an engine sends the headers of a
        stream at once."""
        while len(self._held) > 1:
            self._release(*self._held.pop())

    def computed(self) -> None:
        """The first token is here, so the prompt is computed."""
        if self._held:
            endpoint, prompt, output = self._held[0]
            self._store.computed(endpoint, prompt, self._flow)
            self._held[0] = (endpoint, 0, output)

    def moved(self, hostport: str) -> None:
        """The request is served at ``hostport``: count it there. What is not of this pool changes nothing."""
        if not self._held or self._held[0][0].hostport == hostport:
            return
        found = self._store.at(hostport)
        if found is not None:
            old, prompt, output = self._held[0]
            self._release(old, prompt, output)
            self._store.acquire(found, prompt + output, self._flow)
            self._held[0] = (found, prompt, output)

    def release(self) -> None:
        """The request is over. More than once is as good as once."""
        while self._held:
            self._release(*self._held.pop())

    def _release(self, endpoint: Endpoint, prompt: int, output: int) -> None:
        self._store.release(endpoint, prompt + output, self._flow)
