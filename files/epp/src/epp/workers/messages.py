# SPDX-License-Identifier: GPL-3.0-or-later
"""What parent and workers say to each other, as MessagePack behind its length. Both are always of one version.

Times are readings of ``time.monotonic()``, a clock that all processes of a machine share.
"""

from __future__ import annotations

from typing import Any

import msgspec

from epp.model import EndpointMetrics
from epp.statesync.messages import News

LENGTH_BYTES = 4


class Known(msgspec.Struct):
    """One endpoint. Its number is never used again for another one."""

    number: int
    name: str
    namespace: str
    pod: str
    address: str
    port: int
    labels: dict[str, str]


class Endpoints(msgspec.Struct, tag=True):
    """To workers: endpoints that are new, or have other labels, and those that are gone."""

    pool: str
    came: list[Known]
    gone: list[int]


class Reading(msgspec.Struct):
    """What is known of an endpoint's state; ``asked_at`` is 0 when only the flags have changed."""

    number: int
    asked_at: float
    metrics: EndpointMetrics
    refused: bool
    unmetered: bool


class Readings(msgspec.Struct, tag=True):
    """To workers: endpoints whose metrics were read, or could not be."""

    pool: str
    readings: list[Reading]


class Models(msgspec.Struct, tag=True):
    """To workers: the models of endpoints, by their numbers."""

    pool: str
    models: dict[int, dict[str, bytes]]


class Objects(msgspec.Struct, tag=True):
    """To workers: all objects of one of the resources that objectives and rewrites come from."""

    kind: str
    objects: dict[str, Any]


class Ended(msgspec.Struct, tag=True):
    """To workers: another one has ended, and nothing of it is in flight."""

    sender: str


class Shed(msgspec.Struct, tag=True):
    """To workers: ask so many gateways to connect anew."""

    connections: int


class Ask(msgspec.Struct, tag=True):
    """To workers: a question; see ``worker`` for what can be asked."""

    number: int
    what: str
    arguments: list[Any] = []


class Welcome(msgspec.Struct, tag=True):
    """To workers, before all else: the self-signed certificate that all serve with (PEM), if they are to."""

    key: bytes = b""
    chain: bytes = b""


class Begin(msgspec.Struct, tag=True):
    """To workers: this was all for a start; serve."""


class Ready(msgspec.Struct, tag=True):
    """To the parent: connections may come."""


class Status(msgspec.Struct, tag=True):
    """To the parent, several times a second."""

    gone: int
    """Connections that have been handed over and no longer count: ended, or asked to end."""
    streams: int
    """Streams that are open now."""


class Heard(msgspec.Struct, tag=True):
    """To the parent: what it wants to know of what the worker has told its peers."""

    news: News


class Answer(msgspec.Struct, tag=True):
    """To the parent: the answer to a question."""

    number: int
    data: bytes


ToWorker = Welcome | Begin | Endpoints | Readings | Models | Objects | Ended | Shed | Ask
ToParent = Ready | Status | Heard | Answer

_encoder = msgspec.msgpack.Encoder()
to_worker = msgspec.msgpack.Decoder(ToWorker)
to_parent = msgspec.msgpack.Decoder(ToParent)


def frame(message: ToWorker | ToParent) -> bytes:
    """As it travels."""
    data = _encoder.encode(message)
    return len(data).to_bytes(LENGTH_BYTES) + data


def pack(value: Any) -> bytes:
    """An answer's content."""
    return _encoder.encode(value)
