# SPDX-License-Identifier: GPL-3.0-or-later
"""Images, videos and audio in a request's messages, as the OpenAI and Anthropic APIs write them."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

from epp.model import InferenceRequest

MEDIA = "media"
"""Attribute of a request in which the parts that were found are kept."""

_KINDS = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "video_url": "video",
    "input_audio": "audio",
    "audio_url": "audio",
}
_MARKS = (b'"image', b'"input_image', b'"video_url', b'"input_audio', b'"audio_url')
_HEAD = 4096
"""Base64 characters of a picture in which its size is looked for."""


@dataclass(frozen=True, slots=True)
class Media:
    """One image, video or clip; the payload itself is not kept."""

    kind: str
    """image, video or audio."""
    digest: int
    """Hash of its address, or of its data: what tells it from others."""
    size: int
    """Bytes of it in the request's body."""
    pixels: int = 0
    """Of an image that came with the request, 0 if unknown."""


def media(request: InferenceRequest) -> tuple[Media, ...]:
    """All of a request's media, in order. Nearly free for requests that have none."""
    known = request.attributes.get(MEDIA)
    if isinstance(known, tuple):
        return known
    prompt = request.prompt
    found = tuple(_parts(prompt[request.lead :])) if any(mark in prompt for mark in _MARKS) else ()
    request.attributes[MEDIA] = found
    return found


def _parts(prompt: bytes) -> Iterator[Media]:
    try:
        messages = msgspec.json.decode(prompt)
    except (msgspec.DecodeError, RecursionError):
        return
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            found = _media(part) if isinstance(part, dict) else None
            if found is not None:
                yield found


def _media(part: dict[str, Any]) -> Media | None:
    name = part.get("type")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        return None
    payload = next((part[key] for key in (str(name), "image_url", "source") if key in part), None)
    if isinstance(payload, dict):
        texts = (payload.get(key) for key in ("url", "data", "file_id"))
        payload = next((text for text in texts if isinstance(text, str)), None)
    if not isinstance(payload, str):
        return None
    pixels = _pixels(payload) if kind == "image" else 0
    return Media(kind, xxhash.xxh3_64_intdigest(payload.encode()), len(payload), pixels)


def _pixels(payload: str) -> int:
    """Width times height of a PNG, GIF or JPEG in base64 (bare, or as a data URL); 0 for anything else."""
    data = payload.partition(",")[2] if payload.startswith("data:") else payload
    try:
        head = base64.b64decode(data[:_HEAD], validate=True)
    except (binascii.Error, ValueError):
        return 0
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
    elif head.startswith((b"GIF87a", b"GIF89a")) and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    else:
        width, height = _jpeg(head)
    return int(width * height)


def _jpeg(head: bytes) -> tuple[int, int]:
    """Width and height from the first frame header (SOF0 to SOF15, but for DHT, JPG and DAC)."""
    position = 2 if head.startswith(b"\xff\xd8") else len(head)
    while position + 9 <= len(head) and head[position] == 0xFF:
        marker = head[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[position + 5 : position + 9])
            return width, height
        position += 2 + int.from_bytes(head[position + 2 : position + 4])
    return 0, 0
