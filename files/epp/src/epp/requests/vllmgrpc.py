# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's gRPC interface: ``vllm.grpc.engine.VllmEngine``, methods ``Generate`` and ``Embed``.

Of the messages only what routing needs is read; the numbers of the fields are those of ``vllm_engine.proto``, also of
its first edition, in which answers begin with the request's id. No request names a model: a server has one.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from google.protobuf.descriptor_pb2 import SourceCodeInfo
from google.protobuf.message import DecodeError

from epp.model import BodyError, ParsedBody, RawRequest, Usage
from epp.requests.protobuf import (
    FRAME,
    LENGTH_DELIMITED,
    VARINT,
    Field,
    WireError,
    fields,
    framed,
    last,
    number_at,
    varint,
)

SERVICE = "/vllm.grpc.engine.VllmEngine/"
MAX_MESSAGE = 4 * 2**20
"""Bytes of one message of an answer that are held until it is whole; larger ones pass unread."""

# Requests. GenerateRequest: the prompt is one of two.
_TOKENIZED, _TEXT, _SAMPLING, _STREAM, _MULTIMODAL = 2, 3, 4, 5, 7
_INPUT_IDS, _MAX_TOKENS, _PLACEHOLDERS = 2, 8, 5
# Answers: where GenerateStreamChunk and GenerateComplete have what.
_CHUNK = {2: "prompt", 3: "output", 4: "cached", 7: "index"}
_COMPLETE = {3: "prompt", 4: "output", 5: "cached", 8: "index"}
_IDS = 1
_UINT32 = 0xFFFF_FFFF
_HIGH = bytes(range(128, 256))
"""Bytes of a number that are not its last."""


class Generate:
    """Text or token ids in, token ids out."""

    PATHS = (SERVICE + "Generate",)
    NAMES_MODEL = False

    def parse(self, request: RawRequest) -> ParsedBody:
        """Raises BodyError for what is no GenerateRequest with a prompt."""
        if request.truncated:
            return ParsedBody()
        try:
            return self._read(request.body)
        except (WireError, DecodeError) as error:
            raise BodyError(f"failed to parse request body: {error}") from None

    def _read(self, body: bytes) -> ParsedBody:
        parsed = ParsedBody()
        prompt: Field | None = None
        for field in fields(body, *framed(body)):
            if field.kind == LENGTH_DELIMITED:
                if field.number in (_TOKENIZED, _TEXT):
                    prompt = field
                elif field.number == _SAMPLING:
                    parsed.max_tokens = _number(body, field, _MAX_TOKENS)
                elif field.number == _MULTIMODAL:
                    found = fields(body, field.start, field.end)
                    parsed.parts = sum(1 for each in found if each.number == _PLACEHOLDERS)
            elif field.number == _STREAM:
                parsed.stream = number_at(body, field.start, field.end)[0] != 0
        if prompt is None:
            raise WireError("the message has neither text nor tokens")
        if prompt.number == _TEXT:
            parsed.prompt = msgspec.json.encode(body[prompt.start : prompt.end].decode("utf-8", "replace"))
        else:
            _tokenized(body, prompt, parsed)
        return parsed

    def answer(self) -> GenerateAnswer:
        """Follows one answer."""
        return GenerateAnswer()


class Embed:
    """Token ids in, a vector out."""

    PATHS = (SERVICE + "Embed",)
    NAMES_MODEL = False

    def parse(self, request: RawRequest) -> ParsedBody:
        """Raises BodyError for what is no EmbedRequest with tokens."""
        if request.truncated:
            return ParsedBody()
        parsed = ParsedBody()
        try:
            found = last(request.body, *framed(request.body), _TOKENIZED)
            if found is None:
                raise WireError("the message has no tokens")
            _tokenized(request.body, found, parsed)
        except (WireError, DecodeError) as error:
            raise BodyError(f"failed to parse request body: {error}") from None
        return parsed

    def answer(self) -> EmbedAnswer:
        """Follows one answer."""
        return EmbedAnswer()


def _tokenized(body: bytes, field: Field, parsed: ParsedBody) -> None:
    """The token ids as the JSON list that they would be over HTTP, so that all who look at prompts find the same."""
    packed = b"".join(
        body[each.start : each.end]
        for each in fields(body, field.start, field.end)
        if each.number == _INPUT_IDS and each.kind in (VARINT, LENGTH_DELIMITED)
    )
    # A message of protobuf's own that is a list of numbers, decoded in C: prompts have up to a million of them.
    ids = SourceCodeInfo.Location.FromString(b"\x0a" + varint(len(packed)) + packed).path
    parsed.tokens = len(ids)
    parsed.prompt = msgspec.json.encode(list(ids))


def _number(data: bytes, field: Field, number: int) -> int:
    """A number in a message inside of ``data``; 0 when it is not there."""
    value = 0
    for each in fields(data, field.start, field.end):
        if each.number == number and each.kind == VARINT:
            value = number_at(data, each.start, each.end)[0] & _UINT32
    return value


class _Messages:
    """The gRPC messages of one answer, put together from pieces that are cut anywhere."""

    __slots__ = ("_held", "_skip")

    def __init__(self) -> None:
        self._held = b""
        self._skip = 0
        """Bytes of a message that is passed over."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The messages that are whole now, without their frames."""
        data = self._held + chunk if self._held else chunk
        at = min(self._skip, len(data))
        self._skip -= at
        while len(data) - at >= FRAME:
            size = int.from_bytes(data[at + 1 : at + FRAME], "big")
            start, end = at + FRAME, at + FRAME + size
            if size > MAX_MESSAGE:
                self._skip = max(0, end - len(data))
            elif end > len(data):
                break
            elif data[at] == 0:
                yield data[start:end]
            at = min(end, len(data))
        self._held = data[at:]


class GenerateAnswer:
    """Token counts of one answer, which may have several outputs (``n``).

    A streamed chunk counts its own tokens, and the last message repeats the last of them; one that is not streamed
    counts all. Some servers count from the beginning in each chunk. So of each output the larger one of two figures is
    right: the token ids that have come in chunks, and the largest count.
    """

    __slots__ = ("_cached", "_counted", "_ids", "_messages", "_prompt")

    def __init__(self) -> None:
        self._messages = _Messages()
        self._ids: dict[int, int] = {}
        self._counted: dict[int, int] = {}
        self._prompt = self._cached = 0

    def feed(self, chunk: bytes) -> None:
        """The next piece of the answer."""
        for message in self._messages.feed(chunk):
            try:
                self._message(message)
            except WireError:
                continue

    def _message(self, message: bytes) -> None:
        """A GenerateResponse: a chunk (1) or the end (2); in the first edition an id (1) before a chunk (2) or the end
        (3)."""
        found = {each.number: each for each in fields(message, 0, len(message)) if each.kind == LENGTH_DELIMITED}
        chunk, end = (2, 3) if len(found) > 1 or 3 in found else (1, 2)
        if end in found:
            self._count(message, found[end], _COMPLETE, streamed=False)
        elif chunk in found:
            self._count(message, found[chunk], _CHUNK, streamed=True)

    def _count(self, message: bytes, field: Field, names: dict[int, str], streamed: bool) -> None:
        values = dict.fromkeys(names.values(), 0)
        ids = 0
        for each in fields(message, field.start, field.end):
            if each.number == _IDS:
                ids += len(message[each.start : each.end].translate(None, _HIGH))
            elif each.kind == VARINT and each.number in names:
                values[names[each.number]] = number_at(message, each.start, each.end)[0] & _UINT32
        index = values["index"]
        if streamed:
            self._ids[index] = self._ids.get(index, 0) + ids
        self._counted[index] = max(self._counted.get(index, 0), values["output"])
        self._prompt = values["prompt"] or self._prompt
        self._cached = values["cached"] or self._cached

    def usage(self) -> Usage | None:
        """The counts so far; None while no message had any."""
        output = sum(max(count, self._ids.get(index, 0)) for index, count in self._counted.items())
        if not (self._prompt or output):
            return None
        return Usage(self._prompt, output, self._cached)


class EmbedAnswer:
    """Token count of one EmbedResponse."""

    __slots__ = ("_messages", "_prompt")

    def __init__(self) -> None:
        self._messages = _Messages()
        self._prompt = 0

    def feed(self, chunk: bytes) -> None:
        """The next piece of the answer."""
        for message in self._messages.feed(chunk):
            try:
                self._message(message)
            except WireError:
                continue

    def _message(self, message: bytes) -> None:
        """The count is field 2; in the first edition a message stands there, and the count is its field 2."""
        for each in fields(message, 0, len(message)):
            if each.number != 2:
                continue
            if each.kind == VARINT:
                self._prompt = number_at(message, each.start, each.end)[0] & _UINT32
            elif each.kind == LENGTH_DELIMITED:
                self._prompt = _number(message, each, 2)

    def usage(self) -> Usage | None:
        """The count; None without one."""
        return Usage(self._prompt) if self._prompt else None
