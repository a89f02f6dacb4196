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

from envoy.service.ext_proc.v3.external_processor_pb2 import HttpHeaders, ProcessingRequest

SUBSET = "x-gateway-destination-endpoint-subset"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
LB_NAMESPACE = "envoy.lb"
SERVED = "x-gateway-destination-endpoint-served"

NOTHING = 0
REQUEST_HEADERS, RESPONSE_HEADERS, REQUEST_BODY, RESPONSE_BODY, REQUEST_TRAILERS, RESPONSE_TRAILERS = range(2, 8)
"""What a message is about, by the numbers of ProcessingRequest's fields."""

_TAGS = {number << 3 | 2: number for number in range(REQUEST_HEADERS, RESPONSE_TRAILERS + 1)}
_REST_TAGS = frozenset((8 << 3 | 2, 9 << 3 | 2, 11 << 3 | 2))
"""metadata_context, attributes, protocol_config."""
_BY_PROTOBUF = -1
_KEPT_BYTES = 4096
"""Longer contexts are not remembered."""


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


_NO_CONTEXT = Context()


class Incoming:
    """One message. Slots that a kind has no use for are empty."""

    __slots__ = ("_data", "_headers", "_rest", "_stop", "body", "end_of_stream", "kind")

    def __init__(self, kind: int, data: bytes, body: bytes = b"", end_of_stream: bool = False) -> None:
        self.kind = kind
        self.body = body
        self.end_of_stream = end_of_stream
        self._data = data
        self._headers = 0
        """Where the header map begins; 0 when there is none, :data:`_BY_PROTOBUF` when its form is not Envoy's."""
        self._stop = 0
        self._rest = len(data)
        """Where the context begins."""

    def headers(self, wanted: frozenset[bytes] | None = None) -> dict[str, str]:
        """Header names (Envoy sends them in lower case) to values; of a repeated header the values with commas.

        Names that are not ``wanted`` may be left out. Raises google.protobuf.message.DecodeError, as :meth:`context`.
        """
        if not self._headers:
            return {}
        found = None
        if self._headers != _BY_PROTOBUF:
            try:
                found = _headers(self._data, self._headers, self._stop, wanted)
            except (IndexError, UnicodeDecodeError):
                found = None
        return _any_headers(ProcessingRequest.FromString(self._data)) if found is None else found

    def context(self) -> Context:
        """What comes along. Equal contexts are read once: most of them are."""
        rest = self._data[self._rest :]
        if not rest:
            return _NO_CONTEXT
        return _context(rest) if len(rest) <= _KEPT_BYTES else _context.__wrapped__(rest)


def read(data: bytes) -> Incoming:
    """Read one serialised ProcessingRequest. Raises google.protobuf.message.DecodeError, perhaps only when the part is
    asked for that cannot be read."""
    try:
        return _read(data) or _read_any(data)
    except IndexError:
        return _read_any(data)


def _read(data: bytes) -> Incoming | None:
    """A message in Envoy's form; None, or an IndexError, for any other."""
    kind = _TAGS.get(data[0])
    if kind is None:
        return None
    size, at = data[1], 2
    if size >= 0x80:
        size, at = _varint(data, 1)
    stop = at + size
    if stop < len(data):
        if not _is_context(data, stop):
            return None
    elif stop > len(data):
        return None
    if kind in (RESPONSE_BODY, REQUEST_BODY):
        message = _body(kind, data, at, stop)
    elif kind <= RESPONSE_HEADERS:
        message = _http_headers(kind, data, at, stop)
    else:
        message = Incoming(kind, data)
    if message is not None:
        message._rest = stop
    return message


def _body(kind: int, data: bytes, at: int, stop: int) -> Incoming | None:
    """HttpBody: the bytes (1), and whether they are the last (2)."""
    body = b""
    if at < stop and data[at] == 0x0A:
        size = data[at + 1]
        at += 2
        if size >= 0x80:
            size, at = _varint(data, at - 1)
        body = data[at : at + size]
        at += size
    if at == stop:
        return Incoming(kind, data, body)
    if at + 2 == stop and data[at] == 0x10 and data[at + 1] == 1:
        return Incoming(kind, data, body, True)
    return None


def _http_headers(kind: int, data: bytes, at: int, stop: int) -> Incoming | None:
    """HttpHeaders: the map (1), and whether nothing follows (3)."""
    message = Incoming(kind, data)
    if at < stop and data[at] == 0x0A:
        size, at = _varint(data, at + 1)
        message._headers, message._stop = at, at + size
        at += size
    if at + 2 == stop and data[at] == 0x18 and data[at + 1] == 1:
        message.end_of_stream = True
    elif at != stop:
        return None
    return message


def _headers(data: bytes, at: int, stop: int, wanted: frozenset[bytes] | None) -> dict[str, str] | None:
    """The entries of a HeaderMap between two offsets; None if they are not in Envoy's form."""
    found: dict[str, str] = {}
    while at < stop:
        if data[at] != 0x0A:
            return None
        size = data[at + 1]
        at += 2
        if size >= 0x80:
            size, at = _varint(data, at - 1)
        end = at + size
        length = data[at + 1]
        if end > stop or data[at] != 0x0A or length >= 0x80:
            return None
        at += 2
        name = data[at : at + length]
        if wanted is not None and name not in wanted:
            at = end
            continue
        key = name.decode()
        at += length
        value = ""
        if at < end:
            tag, length = data[at], data[at + 1]
            at += 2
            if length >= 0x80:
                length, at = _varint(data, at - 1)
            if at + length != end or (tag != 0x1A and tag != 0x12):  # raw_value, value
                return None
            value = data[at:end].decode("utf-8", "replace")
            at = end
        if at != end:
            return None
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def _is_context(data: bytes, at: int) -> bool:
    """Whether only context follows, up to the end."""
    while at < len(data):
        if data[at] not in _REST_TAGS:
            return False
        size, at = _varint(data, at + 1)
        at += size
    return at == len(data)


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
    """A message in whatever form, by way of protobuf, which writes it in Envoy's."""
    message = ProcessingRequest.FromString(data)
    message.DiscardUnknownFields()
    kind = message.WhichOneof("request")
    if kind is None:
        return Incoming(NOTHING, b"")
    rest = ProcessingRequest(
        metadata_context=message.metadata_context if message.HasField("metadata_context") else None,
        attributes=message.attributes,
        protocol_config=message.protocol_config if message.HasField("protocol_config") else None,
    )
    number = ProcessingRequest.DESCRIPTOR.fields_by_name[kind].number
    part = getattr(message, kind)
    found = Incoming(number, data, end_of_stream=getattr(part, "end_of_stream", False))
    if number in (REQUEST_BODY, RESPONSE_BODY):
        found.body = part.body
    elif number <= RESPONSE_HEADERS:
        found._headers = _BY_PROTOBUF
        found._data = ProcessingRequest(**{kind: HttpHeaders(headers=part.headers)}).SerializeToString()
    found._rest = len(found._data)
    found._data += rest.SerializeToString()
    return found


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
