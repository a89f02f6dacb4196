# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes over in a worker what the parent knows: it stands in the place of the watches and the scraper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from epp.datalayer import Datastore
from epp.datalayer.objectives import Objectives
from epp.model import Endpoint
from epp.workers.messages import Endpoints, Known, Models, Objects, Readings


@dataclass
class _Pool:
    store: Datastore
    described: dict[int, Endpoint] = field(default_factory=dict)
    """By number: each endpoint as it was described last, which need not be the datastore's own object."""
    here: dict[int, Endpoint] = field(default_factory=dict)
    """By number: the datastore's objects."""


class Feed:
    """What the parent has said so far."""

    def __init__(self, stores: Mapping[str, Datastore], objectives: Objectives | None) -> None:
        self._pools = {name: _Pool(store) for name, store in stores.items()}
        self._objectives = objectives

    def take(self, message: Endpoints | Readings | Models | Objects) -> None:
        """Take over what the parent says."""
        match message:
            case Endpoints():
                _replace(self._pools[message.pool], message)
            case Readings():
                _observe(self._pools[message.pool], message)
            case Models():
                here = self._pools[message.pool].here
                for number, models in message.models.items():
                    if endpoint := here.get(number):
                        endpoint.models = models
            case Objects():
                if self._objectives is not None:
                    self._objectives.take(message.kind, message.objects)


def _replace(pool: _Pool, message: Endpoints) -> None:
    for known in message.came:
        pool.described[known.number] = _endpoint(known)
    for number in message.gone:
        pool.described.pop(number, None)
    pool.store.replace(pool.described.values())
    # The datastore keeps their order.
    pool.here = dict(zip(pool.described, pool.store.endpoints(), strict=True))


def _observe(pool: _Pool, message: Readings) -> None:
    for reading in message.readings:
        endpoint = pool.here.get(reading.number)
        if endpoint is None:
            continue
        endpoint.refused, endpoint.unmetered = reading.refused, reading.unmetered
        pool.store.changed(endpoint)
        if reading.asked_at:
            pool.store.observed(endpoint, reading.metrics, reading.asked_at)


def _endpoint(known: Known) -> Endpoint:
    return Endpoint(known.name, known.namespace, known.pod, known.address, known.port, known.labels)
