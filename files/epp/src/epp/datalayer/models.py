# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks every endpoint now and then which models it serves (``/v1/models``), adapters included."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from epp.datalayer.http import ClientTls, GetClient, HttpError
from epp.datalayer.store import Datastore
from epp.model import Endpoint

log = logging.getLogger(__name__)

AT_ONCE = 32
"""Endpoints that are asked at the same time."""


@dataclass(frozen=True)
class ModelsOptions:
    """How endpoints are asked. Times are seconds."""

    interval: float = 10.0
    timeout: float = 2.0
    path: str = "/v1/models"
    port: int = 0
    """0 is the endpoint's own."""
    tls: ClientTls = field(default_factory=ClientTls)


class _Entry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


_list = msgspec.json.Decoder(_List)
_entry = msgspec.json.Decoder(_Entry)


def read_models(page: bytes) -> dict[str, bytes]:
    """An answer's entries by their id. Raises ValueError for what is no list of models."""
    try:
        return {_entry.decode(raw).id: bytes(raw) for raw in _list.decode(page).data}
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is no list of models: {error}") from None


def merged_models(endpoints: Sequence[Endpoint]) -> str | None:
    """The models of all these endpoints as one list (JSON), each once, sorted by id; None while none is known.

    Of an entry that several endpoints have, the one of the endpoint whose name comes first is taken.
    """
    known = [endpoint for endpoint in endpoints if endpoint.models is not None]
    if not known:
        return None
    found: dict[str, bytes] = {}
    for endpoint in sorted(known, key=lambda each: each.name, reverse=True):
        found.update(endpoint.models or {})
    entries = ",".join(found[name].decode() for name in sorted(found))
    return f'{{"object":"list","data":[{entries}]}}'


class ModelsReader:
    """Keeps the lists of models of a datastore's endpoints."""

    def __init__(self, datastore: Datastore, options: ModelsOptions) -> None:
        self._datastore, self._options = datastore, options
        self._tls = options.tls.context()
        self._new = asyncio.Event()
        self._failing: dict[Endpoint, str] = {}
        datastore.on_added(self._added)
        datastore.on_removed(self._removed)

    async def run(self) -> None:
        """Ask until cancelled: everybody every ``interval``, new endpoints at once."""
        while True:
            self._new.clear()
            await self._ask(self._datastore.endpoints())
            try:
                async with asyncio.timeout(self._options.interval):
                    while True:
                        await self._new.wait()
                        self._new.clear()
                        await self._ask([each for each in self._datastore.endpoints() if each.models is None])
            except TimeoutError:
                continue

    async def _ask(self, endpoints: Sequence[Endpoint]) -> None:
        for start in range(0, len(endpoints), AT_ONCE):
            await asyncio.gather(*(self._read(endpoint) for endpoint in endpoints[start : start + AT_ONCE]))

    async def _read(self, endpoint: Endpoint) -> None:
        options = self._options
        port = options.port or endpoint.port
        client = GetClient(endpoint.address, port, options.path, self._tls, accept="application/json")
        try:
            endpoint.models = read_models(await client.get(options.timeout))
        except (HttpError, ValueError) as error:
            if self._failing.get(endpoint) != str(error):
                log.warning("the models of %s (%s) are not known: %s", endpoint.name, endpoint.hostport, error)
            self._failing[endpoint] = str(error)
        else:
            self._failing.pop(endpoint, None)
        finally:
            client.close()

    def _added(self, endpoint: Endpoint) -> None:
        self._new.set()

    def _removed(self, endpoint: Endpoint) -> None:
        self._failing.pop(endpoint, None)
