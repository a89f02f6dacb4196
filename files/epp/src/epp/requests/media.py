# SPDX-License-Identifier: GPL-3.0-or-later
"""How many tokens the images, recordings and videos of a prompt come to, without decoding any of them.

A picture in base64 is as long as a novel and costs as much as a page, so bytes say nothing of it. What counts:

* an image: width times height / 1024, read from the first bytes of PNG, JPEG, GIF or WebP; 640x360 where that is not
  possible (a URL, another format);
* a recording: 25 tokens a second; its length is that of the WAV header, else its bytes / 16 000 (128 kbit/s), else
  10 s;
* a video: 10 s at one frame a second, each counted like an image of 640x360;
* all else: a token per 4 bytes.

The headers ``x-llm-d-audio-duration-seconds``, ``x-llm-d-video-duration-seconds`` and ``x-llm-d-video-resolution``
overrule. Source: the defaults of llm-d-router's token-producer.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from epp.requests.fields import ABSENT
from epp.requests.scan import text, value_end

BYTES_PER_TOKEN = 4
PIXELS_PER_TOKEN = 1024
AUDIO_TOKENS_PER_SECOND = 25
AUDIO_BYTES_PER_SECOND = 16_000
FRAMES_PER_SECOND = 1
SECONDS = 10.0
"""Length of a recording or a video of which nothing is known."""
RESOLUTION = (640, 360)

AUDIO_SECONDS = "x-llm-d-audio-duration-seconds"
VIDEO_SECONDS = "x-llm-d-video-duration-seconds"
VIDEO_RESOLUTION = "x-llm-d-video-resolution"

_DATA = re.compile(rb'"(?:url|data)"\s*:\s*(?=")')
_TYPE = re.compile(rb'"media_type"\s*:\s*"(\w+)/')
_URL = re.compile(rb"data:([^;,]*)[^,]*,")
_SIZE = re.compile(r"(\d{1,5})\s*[xX]\s*(\d{1,5})")
_HEAD = 96 * 1024
"""Bytes of base64 in which the size of an image is looked for: cameras put a preview before it."""
_MAX_SECONDS = 86_400.0
_JPEG_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


class Part(NamedTuple):
    """An image, a recording or a video in a prompt."""

    kind: str
    """``image``, ``audio`` or ``video``."""
    size: int
    """Bytes of the JSON value that holds it."""
    data: bytes
    """Base64; empty when it is somewhere else."""


class Estimate(NamedTuple):
    """What a prompt comes to."""

    tokens: int
    parts: int
    """Images, recordings and videos in it."""


class _Item(msgspec.Struct):
    """A message, or a part of one; what holds no media is passed over and not looked at."""

    content: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    input_audio: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT
    audio_url: msgspec.Raw = ABSENT


_items = msgspec.json.Decoder(list[_Item])
_KEYS = ("image_url", "input_audio", "source", "video_url", "audio_url")
_DEPTH = 4
"""How deep parts stand in parts: a message, the result of a tool in it, an image in that."""


def estimate(prompt: bytes, headers: Mapping[str, str], lead: int = 0) -> Estimate | None:
    """Tokens of a prompt (JSON) that has more than text; None for one that has not.

    ``lead``: bytes before the messages. A list of messages whose contents are texts costs a search for a bracket.
    """
    if prompt[lead : lead + 1] != b"[" or (prompt.find(b"[", lead + 1) < 0 and prompt.find(b"_", lead) < 0):
        return None
    found = list(parts(prompt[lead:] if lead else prompt))
    if not found:
        return None
    tokens = (len(prompt) - sum(part.size for part in found)) // BYTES_PER_TOKEN
    return Estimate(tokens + sum(_tokens(part, headers) for part in found), len(found))


def parts(items: bytes, depth: int = 0) -> Iterator[Part]:
    """What is not text in a list of messages of the OpenAI or the Anthropic API, in its order."""
    try:
        decoded = _items.decode(items)
    except (msgspec.DecodeError, RecursionError):
        return  # a list of texts, or one that is cut short
    for item in decoded:
        for key in _KEYS:
            value = bytes(getattr(item, key))
            if value[:1] in (b"{", b'"') and (part := _part(key.encode(), value)) is not None:
                yield part
        if depth < _DEPTH and bytes(memoryview(item.content)[:1]) == b"[":
            yield from parts(bytes(item.content), depth + 1)


def _part(key: bytes, value: bytes) -> Part | None:
    kind = {b"image_url": "image", b"video_url": "video"}.get(key, "audio")
    data = value
    if value.startswith(b"{"):
        inner = _DATA.search(value)
        data = value[inner.end() : value_end(value, inner.end())[0]] if inner else b""
    if key == b"source":  # Anthropic's: documents and images
        media = _TYPE.search(value)
        if media is None and b'"url"' not in value:
            return None
        kind = "audio" if media is not None and media[1] == b"audio" else "image"
    data = data.strip(b'"')
    url = _URL.match(data)
    if url is not None:
        named = url[1].partition(b"/")[0].decode("latin-1")
        return Part(named if named in ("image", "audio", "video") else kind, len(value), data[url.end() :])
    inline = key in (b"input_audio", b"source") and not data.startswith(b"http")
    return Part(kind, len(value), data if inline else b"")


def _tokens(part: Part, headers: Mapping[str, str]) -> int:
    if part.kind == "image":
        width, height = image_size(_decoded(part.data[:_HEAD])) or RESOLUTION
        return _image_tokens(width, height)
    if part.kind == "audio":
        return audio_tokens(_decoded(part.data[:_HEAD]), len(part.data) * 3 // 4, headers)
    width, height = _resolution(headers.get(VIDEO_RESOLUTION, "")) or RESOLUTION
    seconds = _seconds(headers.get(VIDEO_SECONDS, "")) or SECONDS
    return int(seconds * FRAMES_PER_SECOND) * _image_tokens(width, height)


def _image_tokens(width: int, height: int) -> int:
    return max(1, width * height // PIXELS_PER_TOKEN)


def audio_tokens(head: bytes, size: int, headers: Mapping[str, str]) -> int:
    """Tokens of a recording of ``size`` bytes that begins with ``head``; ``size`` 0 is one that is elsewhere."""
    seconds = _seconds(headers.get(AUDIO_SECONDS, "")) or _length(head, size)
    return int(seconds * AUDIO_TOKENS_PER_SECOND)


def _length(head: bytes, size: int) -> float:
    """Seconds of a recording."""
    if size == 0:
        return SECONDS
    rate = AUDIO_BYTES_PER_SECOND
    if head.startswith(b"RIFF") and head[8:16] == b"WAVEfmt " and len(head) >= 32:
        rate = int.from_bytes(head[28:32], "little") or rate
    return min(size / rate, _MAX_SECONDS)


def _seconds(header: str) -> float:
    """A header's number of seconds; 0 for none, and for nonsense."""
    try:
        seconds = float(header)
    except ValueError:
        return 0.0
    return seconds if 0.0 < seconds <= _MAX_SECONDS else 0.0


def _resolution(header: str) -> tuple[int, int] | None:
    match = _SIZE.fullmatch(header.strip())
    return (int(match[1]), int(match[2])) if match else None


def _decoded(data: bytes) -> bytes:
    """The bytes that some base64 begins with; what cannot be decoded is left out."""
    if b"\\" in data:
        data = text(b'"' + data.rstrip(b"\\") + b'"').encode()  # some encoders escape the slash
    try:
        return binascii.a2b_base64(data[: len(data) // 4 * 4])
    except binascii.Error:
        return b""


def image_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in pixels, from the first bytes of an image; None if they do not say."""
    size: tuple[int, int] | None = None
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        size = (_big(head, 16, 4), _big(head, 20, 4))
    elif head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        size = (_little(head, 6, 2), _little(head, 8, 2))
    elif head.startswith(b"\xff\xd8"):
        size = _jpeg_size(head)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP" and len(head) >= 30:
        size = _webp_size(head)
    return size if size and 0 < size[0] < 100_000 and 0 < size[1] < 100_000 else None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in _JPEG_SIZES:
            return _big(head, at + 7, 2), _big(head, at + 5, 2)
        at += 2 + max(2, _big(head, at + 2, 2))
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return _little(head, 24, 3) + 1, _little(head, 27, 3) + 1
    if kind == b"VP8 ":
        return _little(head, 26, 2) & 0x3FFF, _little(head, 28, 2) & 0x3FFF
    if kind == b"VP8L":
        bits = _little(head, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _big(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _little(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
