# SPDX-License-Identifier: GPL-3.0-or-later
"""What images, recordings and videos are taken to cost."""

from __future__ import annotations

import base64
import json
import struct

import pytest

from epp.requests import Parsers
from epp.requests.media import estimate, image_size, parts

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1024, 768)
GIF = b"GIF89a" + struct.pack("<HH", 320, 200)
JPEG = b"\xff\xd8\xff\xe0\x00\x10" + b"\0" * 14 + b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 480, 640)
VP8X = b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + (799).to_bytes(3, "little") + (599).to_bytes(3, "little")
VP8 = b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 10 + struct.pack("<HH", 176, 144)
VP8L = b"RIFF\0\0\0\0WEBPVP8L" + b"\0" * 5 + (99 | 49 << 14).to_bytes(4, "little") + b"\0" * 5
WAV = b"RIFF\0\0\0\0WAVEfmt " + b"\0" * 12 + (32_000).to_bytes(4, "little") + b"\0" * 63_968
IMAGE_ELSEWHERE = 640 * 360 // 1024


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(where: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": where}}


def tokens(*content: object, **headers: str) -> int:
    """Tokens of a chat with these parts, without those of the text around them."""
    prompt = json.dumps([{"role": "user", "content": content}]).encode()
    named = {f"x-llm-d-{name.replace('_', '-')}": value for name, value in headers.items()}
    found = estimate(prompt, named)
    assert found is not None
    assert found.parts == len(content)
    return found.tokens - (len(prompt) - sum(part.size for part in parts(prompt))) // 4


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (PNG, (1024, 768)),
        (GIF, (320, 200)),
        (JPEG, (640, 480)),
        (VP8X, (800, 600)),
        (VP8, (176, 144)),
        (VP8L, (100, 50)),
    ],
)
def test_sizes(head: bytes, size: tuple[int, int]) -> None:
    assert image_size(head) == size
    for cut in range(len(head) - 1):
        assert image_size(head[:cut]) in (None, size)


@pytest.mark.parametrize(
    "head", [b"", b"BM", PNG[:16] + b"\0" * 8, b"RIFF\0\0\0\0WEBPVP9 " + b"\0" * 20, b"\xff\xd8\0"]
)
def test_no_size(head: bytes) -> None:
    assert image_size(head) is None


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (image(url(PNG)), 768),
        (image(url(JPEG, "image/jpeg")), 300),
        (image("https://example.com/cat.png"), IMAGE_ELSEWHERE),
        (image(url(b"BM")), IMAGE_ELSEWHERE),
        ({"type": "image_url", "image_url": url(GIF)}, 62),
        ({"type": "input_image", "image_url": url(PNG), "detail": "low"}, 768),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": url(PNG)[22:]}}, 768),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}}, IMAGE_ELSEWHERE),
        ({"type": "input_audio", "input_audio": {"format": "wav", "data": base64.b64encode(WAV).decode()}}, 50),
        ({"type": "input_audio", "input_audio": {"format": "mp3", "data": "A" * 64_000}}, 75),
        ({"type": "audio_url", "audio_url": {"url": "https://example.com/a.mp3"}}, 250),
        ({"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}}, 10 * IMAGE_ELSEWHERE),
        ({"type": "video_url", "video_url": {"url": url(b"x", "audio/mp3")}}, 0),
    ],
)
def test_parts(part: object, expected: int) -> None:
    assert tokens(part) == expected


def test_several() -> None:
    assert tokens(image(url(PNG)), image(url(GIF)), image("https://x")) == 768 + 62 + IMAGE_ELSEWHERE


def test_headers_overrule() -> None:
    audio = {"type": "audio_url", "audio_url": {"url": "https://example.com/a.mp3"}}
    video = {"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}}
    assert tokens(audio, audio_duration_seconds="2.5") == 62
    assert tokens(video, video_duration_seconds="2", video_resolution="1024x1024") == 2048
    assert tokens(audio, audio_duration_seconds="never") == 250
    assert tokens(video, video_duration_seconds="-1", video_resolution="big") == 10 * IMAGE_ELSEWHERE


def test_escaped_slashes() -> None:
    prompt = json.dumps([image(url(PNG))]).replace("/", "\\/").encode()
    found = estimate(prompt, {})
    assert found is not None
    assert found.parts == 1


def test_text_is_not_looked_at() -> None:
    assert estimate(b'"what is image_url?"', {}) is None
    assert estimate(json.dumps('say "image_url": "x"').encode(), {}) is None
    assert estimate(b'[{"source":"web"},{"image_url":7}]', {}) is None


def test_in_a_request() -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [image(url(PNG + b"x" * 300_000))]}]})
    parsed = Parsers().parse("/v1/chat/completions", "application/json", body.encode())
    assert parsed.parts == 1
    assert 768 <= parsed.tokens < 800, "not 100 000"
