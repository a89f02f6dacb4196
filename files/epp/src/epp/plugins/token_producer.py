# SPDX-License-Identifier: GPL-3.0-or-later
"""token-producer: a prompt's token ids, by vLLM, or how many tokens it has, pictures and recordings included.
Also: tokenizer.

Parameters:
    vllm: url (``http://localhost:8000``, also http): a vLLM that renders prompts; endpointDiscovery: the pool's own
    endpoints do so, in turn, at their own ports or those of portRules [{basePort, selector}]; timeout (5s) and
    mmTimeout (30s): how long it may take, 350 ms at most, because a decision waits for it; caCertPath, clientCertPath,
    clientKeyPath, insecureSkipVerify (false) for ``https``. A request's own Authorization goes along.
    modelName, backend (vllm): ask the vLLM at the default URL, if vllm is not there.
    estimate.image: mode (dynamic), defaultResolution {width 640, height 360}, dynamic.factor (1024 pixels per token),
    static.staticToken (0).
    estimate.video: tokensPerFrame {mode dynamic, dynamic.factor 1024, static.numTokensPerFrame 0}, frames {mode
    sampled, minFrames 0, maxFrames 0, sampled {sampleFPS 1, temporalPatchSize 0}, strided {defaultSourceFPS 24,
    frameStride 1}}, defaultResolution, defaultDuration (10 s), maxVideoTokens (0).
    estimate.audio: tokensPerSecond (25), bytesPerSecond (16000), defaultDuration (10 s), maxAudioTokens (0).
    udsTokenizerConfig: taken; see ``LIMITS``.
Formula: with vllm the token ids are those of ``<path>/render`` for completions, chat completions, messages and
responses, or of ``/tokenize`` (one prompt, or a chat) where vLLM has no render endpoint, or was started without it
(0.32 and later have it with ``--enable-scale-out``); a prompt that is written as token ids has these. The body is sent
as the endpoint will get it, and what was rendered is remembered by the body. A renderer that fails rests for a second.
Without vllm, for other interfaces, and where the renderer does not help, tokens are estimated:
Text: bytes / 4. Image: pixels / factor, by the data that came along, else by defaultResolution.
Video: min(frames * tokens per frame, max), frames = duration * fps within bounds; request headers
``x-llm-d-video-duration-seconds``, ``-resolution`` (WIDTHxHEIGHT) and ``-fps`` win over parameters.
Audio: min(seconds * tokensPerSecond, max), seconds by the size of the data that came along. 0 bounds nothing.
Source: llm-d-router producer of the same type.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from epp.datalayer.http import ClientTls
from epp.datalayer.kvlisten import rank_of
from epp.datalayer.render import Renderer
from epp.datalayer.service import ServiceError
from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins.label_selector_filter import LabelSelectorFilterParameters
from epp.plugins.media import Media, media
from epp.plugins.tokens import sent_tokens
from epp.scheduling.api import (
    BYTES_PER_TOKEN,
    TOKENS,
    AsyncProducer,
    Background,
    Context,
    RequestHook,
    TokenizedPrompt,
    param,
)

log = logging.getLogger(__name__)

HEADER = "x-llm-d-video-"
ASK_SECONDS = 0.35
"""What the renderer may take of a decision, whatever its timeouts say."""
URL = "http://localhost:8000"


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
class PortRule:
    """Where some of the endpoints render."""

    base_port: int = param(MISSING, minimum=1, maximum=65535, doc="the port, plus the endpoint's rank in its pod")
    selector: LabelSelectorFilterParameters = param(LabelSelectorFilterParameters)


@dataclass(frozen=True)
class EndpointDiscovery:
    """The endpoints themselves render."""

    load_balancer: dict[str, Any] = param(dict, doc="no effect: they are asked in turn")
    port_rules: tuple[PortRule, ...] = param((), doc="their ports, by the first rule that fits; none: their own")
    attempt_timeout: float | None = param(None, above=0, duration=True, doc="how long one may take")
    discover_model_limits: bool = param(False, doc="no effect")
    min_model_len: int = param(0, minimum=0, doc="no effect")
    context_limit_label: str = param("", doc="no effect")


@dataclass(frozen=True)
class VllmRenderer:
    """Who renders prompts."""

    url: str = param("", doc="base URL of a vLLM")
    http: str = param("", doc="the same")
    endpoint_discovery: EndpointDiscovery | None = param(None, doc="ask the pool's endpoints instead")
    timeout: float = param(5.0, above=0, duration=True, doc="how long it may take")
    mm_timeout: float = param(30.0, above=0, duration=True, doc="the same for chats")
    messages_render_mode: str = param("auto", choices=("auto", "native", "legacy"), doc="no effect: native")
    prefill_only: bool = param(False, doc="no effect")
    ca_cert_path: str = param("", doc="certificates that sign the renderer's, in PEM")
    client_cert_path: str = param("", doc="certificate to present, in PEM")
    client_key_path: str = param("", doc="its key")
    insecure_skip_verify: bool = param(False, doc="trust any certificate")

    def __post_init__(self) -> None:
        """One of them."""
        if self.endpoint_discovery is not None and (self.url or self.http):
            raise ValueError("url and endpointDiscovery exclude each other; remove one")

    @property
    def base(self) -> str:
        """Its URL; empty when the endpoints are asked."""
        return "" if self.endpoint_discovery is not None else (self.url or self.http or URL).rstrip("/")

    def tls(self) -> ClientTls | None:
        """How it is met; None for plain HTTP."""
        if not self.base.startswith("https:"):
            return None
        files = (self.ca_cert_path, self.client_cert_path, self.client_key_path)
        return ClientTls("https", self.insecure_skip_verify, *files)

    def place(self, endpoint: Endpoint) -> str:
        """The base URL at which an endpoint renders; empty if it does not."""
        rules = self.endpoint_discovery.port_rules if self.endpoint_discovery else ()
        if not rules:
            return f"http://{endpoint.hostport}"
        for rule in rules:
            if rule.selector.matches(endpoint.labels):
                host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
                return f"http://{host}:{rule.base_port + rank_of(endpoint)}"
        return ""

    def seconds(self, chat: bool) -> float:
        """How long it may take."""
        attempt = self.endpoint_discovery.attempt_timeout if self.endpoint_discovery else None
        limit = max(self.timeout, self.mm_timeout) if chat else self.timeout
        return min(ASK_SECONDS, attempt or limit, limit)


@dataclass(frozen=True)
class TokenProducerParameters:
    """Parameters of token-producer."""

    estimate: Estimate = param(Estimate, doc="how what is not text is estimated")
    backend: str = param("", doc="vllm asks the vLLM at the default URL; others estimate")
    model_name: str = param("", doc="asks the vLLM at the default URL, if vllm is not there")
    vllm: VllmRenderer | None = param(None, doc="who renders prompts")
    uds_tokenizer_config: dict[str, Any] = param(dict, doc="taken, without effect")

    def renderer(self) -> VllmRenderer | None:
        """Who renders prompts; None if nobody does."""
        if self.vllm is not None:
            return self.vllm
        return VllmRenderer() if self.model_name or self.backend == "vllm" else None


class TokenProducer(AsyncProducer, Background, RequestHook):
    """Counts tokens, or has them counted."""

    TYPE = "token-producer"
    ALIASES = ("tokenizer",)
    PARAMETERS = TokenProducerParameters
    LIMITS = "tokenizers behind a Unix socket (udsTokenizerConfig) are not asked"

    def __init__(self, name: str, parameters: TokenProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._estimate = parameters.estimate
        self._options = parameters.renderer()
        self._renderer = Renderer(self._options.tls() if self._options is not None else None)
        self._turn = itertools.count()

    @classmethod
    def warnings(cls, parameters: TokenProducerParameters) -> tuple[str, ...]:
        """Whoever asks for exact tokens should get them."""
        return (cls.LIMITS,) if parameters.uds_tokenizer_config and parameters.renderer() is None else ()

    @property
    def asks(self) -> bool:
        """With vllm."""
        return self._options is not None

    async def run(self) -> None:
        """Give the connections back at the end."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._renderer.close()

    async def prepare(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Have the prompt rendered."""
        assert self._options is not None
        if TOKENS in request.attributes or not request.body or sent_tokens(request.prompt) is not None:
            return
        path = request.headers.get(":path", "")
        base = self._options.base or self._next(endpoints)
        if not base:
            return
        seconds = self._options.seconds("/completions" not in path or "/chat/" in path)
        try:
            authorization = request.headers.get("authorization", "")
            found = await self._renderer.render(base, path, request.body, seconds, authorization)
        except ServiceError as error:
            log.debug("the prompt of request %s is not rendered: %s", request.request_id, error)
            return
        if found is not None:
            request.attributes[TOKENS] = TokenizedPrompt(found.prompts, found.features)
            request.prompt_tokens = found.tokens

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Estimate what nobody has counted."""
        if TOKENS in request.attributes:
            return
        found = media(request)
        if not found:
            return
        text = len(request.prompt) - sum(each.size for each in found)
        tokens = max(0, text) // BYTES_PER_TOKEN
        request.prompt_tokens = tokens + sum(self._tokens(each, request.headers) for each in found)

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """An answer may take minutes, and nobody needs the ids any more."""
        request.attributes.pop(TOKENS, None)

    def _next(self, endpoints: list[Endpoint]) -> str:
        """The next endpoint's renderer that has not just failed; empty if there is none."""
        assert self._options is not None
        start = next(self._turn)
        for number in range(len(endpoints)):
            base = self._options.place(endpoints[(start + number) % len(endpoints)])
            if base and not self._renderer.resting(base):
                return base
        return ""

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
