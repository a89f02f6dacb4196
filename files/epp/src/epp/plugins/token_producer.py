# SPDX-License-Identifier: GPL-3.0-or-later
"""token-producer: how many tokens a request's prompt has, pictures, videos and audio included. Also: tokenizer.

Parameters:
    estimate.image: mode (dynamic), defaultResolution {width 640, height 360}, dynamic.factor (1024 pixels per token),
    static.staticToken (0).
    estimate.video: tokensPerFrame {mode dynamic, dynamic.factor 1024, static.numTokensPerFrame 0}, frames {mode
    sampled, minFrames 0, maxFrames 0, sampled {sampleFPS 1, temporalPatchSize 0}, strided {defaultSourceFPS 24,
    frameStride 1}}, defaultResolution, defaultDuration (10 s), maxVideoTokens (0).
    estimate.audio: tokensPerSecond (25), bytesPerSecond (16000), defaultDuration (10 s), maxAudioTokens (0).
    backend, modelName, vllm, udsTokenizerConfig: taken; see ``LIMITS``.
Formula: text: bytes / 4. Image: pixels / factor, by the data that came along, else by defaultResolution.
Video: min(frames * tokens per frame, max), frames = duration * fps within bounds; request headers
``x-llm-d-video-duration-seconds``, ``-resolution`` (WIDTHxHEIGHT) and ``-fps`` win over parameters.
Audio: min(seconds * tokensPerSecond, max), seconds by the size of the data that came along. 0 bounds nothing.
Source: llm-d-router producer of the same type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epp.model import Endpoint, InferenceRequest
from epp.plugins.media import Media, media
from epp.scheduling.api import BYTES_PER_TOKEN, Context, Producer, param

HEADER = "x-llm-d-video-"


@dataclass(frozen=True)
class Resolution:
    """Of a picture."""

    width: int = param(640, minimum=1)
    height: int = param(360, minimum=1)


@dataclass(frozen=True)
class PixelsPerToken:
    """Mode dynamic."""

    factor: int = param(1024, minimum=1)


@dataclass(frozen=True)
class StaticImage:
    """Mode static."""

    static_token: int = param(0, minimum=0)


@dataclass(frozen=True)
class ImageEstimate:
    """Tokens of an image."""

    mode: str = param("dynamic", choices=("dynamic", "static"))
    default_resolution: Resolution = param(Resolution)
    dynamic: PixelsPerToken = param(PixelsPerToken)
    static: StaticImage = param(StaticImage)

    def tokens(self, pixels: int) -> int:
        """Of an image with so many pixels, 0 if nobody knows."""
        if self.mode == "static":
            return self.static.static_token
        size = self.default_resolution
        return (pixels or size.width * size.height) // self.dynamic.factor


@dataclass(frozen=True)
class StaticFrame:
    """Mode static."""

    num_tokens_per_frame: int = param(0, minimum=0)


@dataclass(frozen=True)
class FrameTokens:
    """Tokens of one frame."""

    mode: str = param("dynamic", choices=("dynamic", "static"))
    dynamic: PixelsPerToken = param(PixelsPerToken)
    static: StaticFrame = param(StaticFrame)


@dataclass(frozen=True)
class SampledFrames:
    """Mode sampled."""

    sample_fps: float = param(1.0, above=0, key="sampleFPS")
    temporal_patch_size: int = param(0, minimum=0)


@dataclass(frozen=True)
class StridedFrames:
    """Mode strided."""

    default_source_fps: float = param(24.0, above=0, key="defaultSourceFPS")
    frame_stride: int = param(1, minimum=1)


@dataclass(frozen=True)
class Frames:
    """How many frames are looked at."""

    mode: str = param("sampled", choices=("sampled", "strided"))
    min_frames: int = param(0, minimum=0)
    max_frames: int = param(0, minimum=0)
    sampled: SampledFrames = param(SampledFrames)
    strided: StridedFrames = param(StridedFrames)

    def count(self, seconds: float, source_fps: float) -> int:
        """Of a video of so many seconds."""
        if self.mode == "strided":
            fps = (source_fps or self.strided.default_source_fps) / self.strided.frame_stride
        else:
            fps = self.sampled.sample_fps
        frames = max(math.ceil(seconds * fps), self.min_frames)
        if self.max_frames:
            frames = min(frames, self.max_frames)
        merged = self.sampled.temporal_patch_size if self.mode == "sampled" else 0
        return math.ceil(frames / merged) if merged > 1 else frames


@dataclass(frozen=True)
class VideoEstimate:
    """Tokens of a video."""

    tokens_per_frame: FrameTokens = param(FrameTokens)
    frames: Frames = param(Frames)
    default_resolution: Resolution = param(Resolution)
    default_duration: float = param(10.0, above=0)
    max_video_tokens: int = param(0, minimum=0)

    def tokens(self, headers: Mapping[str, str]) -> int:
        """Of a video, by what the request's headers say of it."""
        seconds = _number(headers, f"{HEADER}duration-seconds") or self.default_duration
        frames = self.frames.count(seconds, _number(headers, f"{HEADER}fps"))
        each = self.tokens_per_frame.static.num_tokens_per_frame
        if self.tokens_per_frame.mode == "dynamic":
            size = self.default_resolution
            stated = re.fullmatch(r"(\d{1,5})x(\d{1,5})", headers.get(f"{HEADER}resolution", "").strip())
            pixels = int(stated[1]) * int(stated[2]) if stated else size.width * size.height
            each = pixels // self.tokens_per_frame.dynamic.factor
        return _at_most(frames * each, self.max_video_tokens)


@dataclass(frozen=True)
class AudioEstimate:
    """Tokens of a clip."""

    tokens_per_second: float = param(25.0, above=0)
    bytes_per_second: int = param(16000, minimum=1)
    default_duration: float = param(10.0, above=0)
    max_audio_tokens: int = param(0, minimum=0)

    def tokens(self, size: int) -> int:
        """Of a clip of so many base64 characters; an address has nearly none."""
        data = size * 3 / 4
        seconds = data / self.bytes_per_second if data > 4096 else self.default_duration
        return _at_most(int(seconds * self.tokens_per_second), self.max_audio_tokens)


@dataclass(frozen=True)
class Estimate:
    """How what is not text is estimated."""

    image: ImageEstimate = param(ImageEstimate)
    video: VideoEstimate = param(VideoEstimate)
    audio: AudioEstimate = param(AudioEstimate)


@dataclass(frozen=True)
class TokenProducerParameters:
    """Parameters of token-producer."""

    estimate: Estimate = param(Estimate, doc="how what is not text is estimated")
    backend: str = param("", doc="taken; tokens are estimated")
    model_name: str = param("", doc="taken; tokens are estimated")
    vllm: dict[str, Any] = param(dict, doc="taken; tokens are estimated")
    uds_tokenizer_config: dict[str, Any] = param(dict, doc="taken; tokens are estimated")


class TokenProducer(Producer):
    """Estimates prompts."""

    TYPE = "token-producer"
    ALIASES = ("tokenizer",)
    PARAMETERS = TokenProducerParameters
    LIMITS = "prompts are not sent to vLLM or to a tokenizer service: tokens are estimated"

    def __init__(self, name: str, parameters: TokenProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._estimate = parameters.estimate

    @classmethod
    def warnings(cls, parameters: TokenProducerParameters) -> tuple[str, ...]:
        """Whoever asks for exact tokens does not get them."""
        asked = parameters.vllm or parameters.uds_tokenizer_config or parameters.backend not in ("", "estimate")
        return (cls.LIMITS,) if asked else ()

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """See the module."""
        found = media(request)
        if not found:
            return
        text = len(request.prompt) - sum(each.size for each in found)
        tokens = max(0, text) // BYTES_PER_TOKEN
        request.prompt_tokens = tokens + sum(self._tokens(each, request.headers) for each in found)

    def _tokens(self, item: Media, headers: Mapping[str, str]) -> int:
        if item.kind == "image":
            return self._estimate.image.tokens(item.pixels)
        if item.kind == "video":
            return self._estimate.video.tokens(headers)
        return self._estimate.audio.tokens(item.size)


def _number(headers: Mapping[str, str], name: str) -> float:
    """The number in a header; 0 for none, or one that makes no sense."""
    try:
        value = float(headers.get(name, ""))
    except ValueError:
        return 0.0
    return value if 0 < value < 1e6 else 0.0


def _at_most(tokens: int, limit: int) -> int:
    return min(tokens, limit) if limit else tokens
