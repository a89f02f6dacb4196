# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads Envoy's ProcessingRequest as far as anybody asks, and no further.

Envoy writes its messages in one form: the fields in the order of their numbers, each once. In that form a message is
read by looking at a few bytes, and a body is one copy of its bytes; protobuf needs several times as long for objects
that are thrown away at once. A message in any other form is handed to protobuf, which so decides what is right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest

SUBSET: Final = "x-gateway-destination-endpoint-subset"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
LB_NAMESPACE: Final = "envoy.lb"
SERVED: Final = "x-gateway-destination-endpoint-served"

NOTHING: Final = 0
REQUEST_HEADERS: Final = 2
RESPONSE_HEADERS: Final = 3
REQUEST_BODY: Final = 4
RESPONSE_BODY: Final = 5
REQUEST_TRAILERS: Final = 6
RESPONSE_TRAILERS: Final = 7
"""What a message is about, by the numbers of ProcessingRequest's fields."""

_BODIES: Final = (RESPONSE_BODY, REQUEST_BODY)
_KINDS: Final = tuple(
    tag >> 3 if tag & 7 == 2 and REQUEST_HEADERS <= tag >> 3 <= RESPONSE_TRAILERS else NOTHING for tag in range(256)
)
_REST_TAGS: Final = frozenset((8 << 3 | 2, 9 << 3 | 2, 11 << 3 | 2))
"""metadata_context, attributes, protocol_config."""
_KEPT_BYTES: Final = 4096
"""Longer contexts are not remembered."""
_KEPT_ENTRY: Final = 96
"""Longer header entries are not, either."""
_MAX_ENTRIES: Final = 1024
_NOT_KEPT: Final = re.compile(
    "^(proxy-)?authorization|cookie|key|token|secret|^(x-request-id|content-length|traceparent|date)$"
)
"""Headers that say who somebody is are not kept in memory; those that never come twice would push others out."""


@dataclass(frozen=True, slots=True)
class Context:
    """What Envoy says beside the request or response itself."""

    modes: tuple[int, int] | None = None
    """Body modes of request and response, by the numbers of Envoy's enumeration; None when it announces none."""
    subset: frozenset[str] | None = None
    """The endpoints (``ip`` or ``ip:port``) that the gateway allows; None when it does not restrict."""
    served: str = ""
    """The endpoint that answered, by the gateway's word (``ip:port``); empty when it does not say."""
    hints: tuple[str, ...] = ()
    """The parts of all attributes that Envoy was configured to send (``xds.route_name``, ``xds.cluster_name`` ...).

    Gateways write the names of the objects that a route was made from into its name, separated by slashes.
    """


_NO_CONTEXT: Final = Context()


class Incoming:
    """One message."""

    __slots__ = ("_rest", "body", "end_of_stream", "kind")

    def __init__(self, kind: int, rest: bytes, body: bytes = b"", end_of_stream: bool = False) -> None:
        """``rest`` is the context, serialised; ``body`` is empty but in messages about bodies."""
        self.kind = kind
        self.body = body
        self.end_of_stream = end_of_stream
        self._rest = rest

    def headers(self) -> dict[str, str]:
        """Header names (Envoy sends them in lower case) to values; of a repeated header the values with commas.

        Raises google.protobuf.message.DecodeError, as :meth:`context`.
        """
        return {}

    def context(self) -> Context:
        """What comes along. Equal contexts are read once: most of them are."""
        rest = self._rest
        if not rest:
            return _NO_CONTEXT
        return _context(rest) if len(rest) <= _KEPT_BYTES else _context.__wrapped__(rest)


class _Headers(Incoming):
    """A message about headers."""

    __slots__ = ("_at", "_data", "_stop")

    def __init__(self, kind: int, data: bytes, rest: bytes, at: int, stop: int, end_of_stream: bool) -> None:
        """The header map stands between two offsets of ``data``, the whole message."""
        self.kind = kind
        self.body = b""
        self.end_of_stream = end_of_stream
        self._rest = rest
        self._data = data
        self._at = at
        self._stop = stop

    def headers(self) -> dict[str, str]:
        """See the base."""
        try:
            found = _headers(self._data, self._at, self._stop)
        except (IndexError, UnicodeDecodeError):
            found = None
        return _any_headers(ProcessingRequest.FromString(self._data)) if found is None else found


class _AnyHeaders(Incoming):
    """The same of a message that is not in Envoy's form."""

    __slots__ = ("_found",)

    def __init__(self, kind: int, rest: bytes, end_of_stream: bool, found: dict[str, str]) -> None:
        super().__init__(kind, rest, end_of_stream=end_of_stream)
        self._found = found

    def headers(self) -> dict[str, str]:
        """See the base."""
        return self._found


def read(data: bytes) -> Incoming:
    """Read one serialised ProcessingRequest. Raises google.protobuf.message.DecodeError, perhaps only when the part is
    asked for that cannot be read."""
    try:
        return _read(data) or _read_any(data)
    except IndexError:
        return _read_any(data)


def _read(data: bytes) -> Incoming | None:
    """A message in Envoy's form; None, or an IndexError, for any other."""
    size, at = data[1], 2
    if size >= 0x80:
        high = data[2]
        if high < 0x80:  # most lengths have two digits
            size, at = size + (high << 7) - 0x80, 3
        else:
            size, at = _varint(data, 1)
    stop = at + size
    rest = data[stop:]
    if rest:
        if rest not in _contexts and not _is_context(rest):
            return None
    elif stop > len(data):
        return None
    kind = _KINDS[data[0]]
    if kind in _BODIES:  # HttpBody: the bytes (1), and whether they are the last (2)
        if at < stop and data[at] == 0x0A:
            size = data[at + 1]
            at += 2
            if size >= 0x80:
                high = data[at]
                if high < 0x80:
                    size, at = size + (high << 7) - 0x80, at + 1
                else:
                    size, at = _varint(data, at - 1)
            end = at + size
            if end == stop:
                return Incoming(kind, rest, data[at:end])
        else:
            end = at
            if end == stop:
                return Incoming(kind, rest)
        if end + 2 == stop and data[end] == 0x10 and data[end + 1] == 1:
            return Incoming(kind, rest, data[at:end], True)
        return None
    if not kind:
        return None
    if kind <= RESPONSE_HEADERS:  # HttpHeaders: the map (1), and whether nothing follows (3)
        start = at
        if at < stop and data[at] == 0x0A:
            size, start = _varint(data, at + 1)
            at = start + size
        if at == stop:
            return _Headers(kind, data, rest, start, at, False)
        if at + 2 == stop and data[at] == 0x18 and data[at + 1] == 1:
            return _Headers(kind, data, rest, start, at, True)
        return None
    return Incoming(kind, rest)


def _headers(data: bytes, at: int, stop: int) -> dict[str, str] | None:
    """The entries of a HeaderMap between two offsets; None if they are not in Envoy's form."""
    pairs: list[tuple[str, str]] = []
    add, known = pairs.append, _entries.get
    while at < stop:
        end = at + 2 + data[at + 1]
        pair = known(data[at:end])  # lengths of two digits are in no entry that is known
        if pair is None:
            if end >= at + 130:
                size, end = _varint(data, at + 1)
                end += size
            pair = _entry(data[at:end])
            if pair is None:
                return None
        add(pair)
        at = end
    if at != stop:
        return None
    found = dict(pairs)
    if len(found) < len(pairs):
        found = {}
        for key, value in pairs:
            found[key] = f"{found[key]},{value}" if key in found else value
    return found


_entries: Final[dict[bytes, tuple[str, str]]] = {}
"""Entries of header maps as they stand there: most come with every request."""


def _entry(entry: bytes) -> tuple[str, str] | None:
    """Name and value of one entry of a HeaderMap, its own tag and length included; None if it is not in Envoy's form.

    May raise IndexError or UnicodeDecodeError instead.
    """
    end = len(entry)
    size, at = entry[1], 2
    if size >= 0x80:
        size, at = _varint(entry, 1)
    length = entry[at + 1]
    if at + size != end or entry[0] != 0x0A or entry[at] != 0x0A or length >= 0x80:
        return None
    at += 2 + length
    key, kept = _name(entry[at - length : at])
    value = ""
    if at != end:
        tag, length = entry[at], entry[at + 1]
        at += 2
        if length >= 0x80:
            length, at = _varint(entry, at - 1)
        if at + length != end or (tag != 0x1A and tag != 0x12):  # raw_value, value
            return None
        value = entry[at:].decode("utf-8", "replace")
    if kept and end <= _KEPT_ENTRY:
        if len(_entries) >= _MAX_ENTRIES:
            _entries.clear()
        _entries[entry] = (key, value)
    return key, value


@lru_cache(maxsize=256)
def _name(raw: bytes) -> tuple[str, bool]:
    """A header's name, and whether its entries may be kept. Raises UnicodeDecodeError."""
    name = raw.decode()
    return name, not _NOT_KEPT.search(name)


_contexts: Final[set[bytes]] = set()
"""Contexts as they stand in messages: a gateway has few."""


def _is_context(rest: bytes) -> bool:
    """Whether this is context, and nothing else."""
    at, end = 0, len(rest)
    while at < end:
        if rest[at] not in _REST_TAGS:
            return False
        size, at = _varint(rest, at + 1)
        at += size
    if at == end <= _KEPT_BYTES:
        if len(_contexts) >= _MAX_ENTRIES:
            _contexts.clear()
        _contexts.add(rest)
    return at == end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that stands at an offset, and the offset behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise IndexError("a length beyond any message's")


def _read_any(data: bytes) -> Incoming:
    """A message in whatever form, by way of protobuf."""
    message = ProcessingRequest.FromString(data)
    kind = message.WhichOneof("request")
    if kind is None:
        return Incoming(NOTHING, b"")
    context = ProcessingRequest(
        metadata_context=message.metadata_context if message.HasField("metadata_context") else None,
        attributes=message.attributes,
        protocol_config=message.protocol_config if message.HasField("protocol_config") else None,
    )
    number = ProcessingRequest.DESCRIPTOR.fields_by_name[kind].number
    part = getattr(message, kind)
    rest, end = context.SerializeToString(), getattr(part, "end_of_stream", False)
    if number in (REQUEST_BODY, RESPONSE_BODY):
        return Incoming(number, rest, part.body, end)
    if number <= RESPONSE_HEADERS:
        return _AnyHeaders(number, rest, end, _any_headers(message))
    return Incoming(number, rest)


def _any_headers(message: ProcessingRequest) -> dict[str, str]:
    kind = message.WhichOneof("request")
    found: dict[str, str] = {}
    for header in getattr(message, kind).headers.headers:
        raw = header.raw_value
        value = raw.decode("utf-8", "replace") if raw else header.value
        found[header.key] = f"{found[header.key]},{value}" if header.key in found else value
    return found


@lru_cache(maxsize=256)
def _context(rest: bytes) -> Context:
    message = ProcessingRequest.FromString(rest)
    modes = None
    if message.HasField("protocol_config"):
        modes = (message.protocol_config.request_body_mode, message.protocol_config.response_body_mode)
    return Context(modes, _subset(message), _served(message), _hints(message))


def _subset(message: ProcessingRequest) -> frozenset[str] | None:
    """The hint is a list of strings, or one string with commas. An empty hint allows nothing."""
    if SUBSET_NAMESPACE not in message.metadata_context.filter_metadata:
        return None
    fields = message.metadata_context.filter_metadata[SUBSET_NAMESPACE].fields
    if SUBSET not in fields:
        return None
    value = fields[SUBSET]
    if value.WhichOneof("kind") == "list_value":
        texts = [item.string_value for item in value.list_value.values]
    else:
        texts = [value.string_value]
    return frozenset(part for text in texts for part in re.split(r"[,\s]+", text) if part)


def _served(message: ProcessingRequest) -> str:
    metadata = message.metadata_context.filter_metadata
    if LB_NAMESPACE not in metadata or SERVED not in metadata[LB_NAMESPACE].fields:
        return ""
    served: str = metadata[LB_NAMESPACE].fields[SERVED].string_value
    return served.strip()


def _hints(message: ProcessingRequest) -> tuple[str, ...]:
    texts = [value.string_value for group in message.attributes.values() for value in group.fields.values()]
    return tuple(part for text in texts for part in text.split("/") if part)
