# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the workers what the parent knows: endpoints, their metrics and models, objectives and rewrites."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping

from epp.datalayer import Datastore
from epp.datalayer.objectives import Objectives
from epp.datalayer.resources import Object
from epp.model import Endpoint
from epp.workers.messages import Endpoints, Known, Models, Objects, Reading, Readings, frame

DELAY_SECONDS = 0.005
"""How long readings wait for more to come along."""
MODELS_SECONDS = 1.0
"""Between two looks at the models."""


class _Pool:
    """What has been told of one pool."""

    def __init__(self, store: Datastore, numbers: Iterator[int]) -> None:
        self.store, self._numbers = store, numbers
        self.told: dict[Endpoint, Known] = {}
        self.read: dict[Endpoint, float] = {}
        """Endpoints with news, and when they were asked for it; 0 for no new metrics."""
        self._models: dict[Endpoint, Mapping[str, bytes] | None] = {}

    def changes(self) -> Endpoints | None:
        """What is new since the last time."""
        came, here = [], self.store.endpoints()
        for endpoint in here:
            told = self.told.get(endpoint)
            if told is None or told.labels != endpoint.labels:
                number = next(self._numbers) if told is None else told.number
                self.told[endpoint] = known = _known(number, endpoint)
                came.append(known)
                self.read.setdefault(endpoint, 0.0)  # whether it has metrics at all is known from the beginning
        gone = self.told.keys() - set(here)
        numbers = [self.told.pop(endpoint).number for endpoint in gone]
        for endpoint in gone:
            self.read.pop(endpoint, None)
            self._models.pop(endpoint, None)
        return Endpoints(self.store.pool, came, numbers) if came or numbers else None

    def readings(self, read: Mapping[Endpoint, float]) -> Readings:
        """The state of these endpoints."""
        known = [(self.told[endpoint].number, asked, endpoint) for endpoint, asked in read.items()]
        return Readings(
            self.store.pool,
            [Reading(number, asked, each.metrics, each.refused, each.unmetered) for number, asked, each in known],
        )

    def models(self, whole: bool = False) -> Models | None:
        """Models that have changed since the last time, or all."""
        found = {}
        for endpoint, known in self.told.items():
            models = endpoint.models
            if models is not None and (whole or models is not self._models.get(endpoint)):
                self._models[endpoint] = models
                found[known.number] = dict(models)
        return Models(self.store.pool, found) if found else None


class Hub:
    """Everything that workers are told; ``broadcast`` says it to all that are there."""

    def __init__(self, stores: Mapping[str, Datastore], broadcast: Callable[[bytes], None]) -> None:
        self._broadcast = broadcast
        numbers = itertools.count()
        self._pools = {name: _Pool(store, numbers) for name, store in stores.items()}
        self._objects: dict[str, Objects] = {}
        self._timer: asyncio.TimerHandle | None = None
        for pool in self._pools.values():
            self._follow(pool)

    def follow(self, objectives: Objectives) -> None:
        """Tell of these, too."""
        objectives.on_taken(self._taken)

    def failed(self, pool: str, endpoint: Endpoint) -> None:
        """An endpoint's metrics could not be read."""
        self._note(self._pools[pool], endpoint, 0.0)

    async def run(self) -> None:
        """Look after what says nothing when it changes, until cancelled."""
        while True:
            await asyncio.sleep(MODELS_SECONDS)
            for pool in self._pools.values():
                if models := pool.models():
                    self._broadcast(frame(models))

    def snapshot(self) -> bytes:
        """All that is known now, for a worker that has just come."""
        parts: list[bytes] = []
        for pool in self._pools.values():
            parts.append(frame(Endpoints(pool.store.pool, list(pool.told.values()), [])))
            parts.append(frame(pool.readings({each: each.metrics.updated_at for each in pool.told})))
            if models := pool.models(whole=True):
                parts.append(frame(models))
        parts += [frame(objects) for objects in self._objects.values()]
        return b"".join(parts)

    def _follow(self, pool: _Pool) -> None:
        pool.store.on_replaced(lambda: self._replaced(pool))
        pool.store.on_observed(lambda endpoint, asked_at: self._note(pool, endpoint, asked_at))
        self._replaced(pool)

    def _replaced(self, pool: _Pool) -> None:
        if changes := pool.changes():
            self._broadcast(frame(changes))
            self._soon()

    def _note(self, pool: _Pool, endpoint: Endpoint, asked_at: float) -> None:
        if endpoint in pool.told:
            pool.read[endpoint] = max(asked_at, pool.read.get(endpoint, 0.0))
            self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_SECONDS, self._tell)

    def _tell(self) -> None:
        self._timer = None
        for pool in self._pools.values():
            if pool.read:
                read, pool.read = pool.read, {}
                self._broadcast(frame(pool.readings(read)))

    def _taken(self, kind: str, objects: Mapping[str, Object]) -> None:
        message = self._objects[kind] = Objects(kind, dict(objects))
        self._broadcast(frame(message))


def _known(number: int, endpoint: Endpoint) -> Known:
    return Known(
        number,
        endpoint.name,
        endpoint.namespace,
        endpoint.pod,
        endpoint.address,
        endpoint.port,
        dict(endpoint.labels),
    )
