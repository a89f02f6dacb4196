# SPDX-License-Identifier: GPL-3.0-or-later
"""Has vLLM turn a request into token ids, exactly as it will when the request is served.

vLLM's render endpoints take the request's own body and apply the model's chat template and tokenizer. An older vLLM has
none; its ``/tokenize`` takes the members that matter. Whichever is there is asked, and remembered for a while.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import xxhash

from epp.datalayer.http import ClientTls
from epp.datalayer.service import Service, ServiceError

RENDERED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
"""Interfaces that vLLM renders, by the end of a path; the first one that fits counts."""
TOKENIZED = {
    "/v1/chat/completions": ("messages", "tools", "add_generation_prompt", "continue_final_message"),
    "/v1/completions": ("prompt",),
}
"""The members that ``/tokenize`` needs of each."""
TEMPLATE = ("model", "add_special_tokens", "chat_template", "chat_template_kwargs")
ABSENT = (404, 405, 501)
FORBIDDEN, UNLESS = 403, "--enable-scale-out"
"""What vLLM 0.32 answers, and names, where it has been started without its render endpoints."""
LOOK_AGAIN_SECONDS = 600.0
"""How long it is remembered that there is no render endpoint."""
CONNECTIONS = 64
CACHED_TOKENS = 4_000_000
"""Token ids that are remembered, at 4 bytes each."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of one prompt or of a batch, and what stands in the first one besides text."""

    prompts: Sequence[array[int]]
    features: Sequence[tuple[str, int, int]] = ()
    """Identifier, first token, tokens; by first token."""

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(map(len, self.prompts))


class _Place(msgspec.Struct):
    offset: int
    length: int


class _Features(msgspec.Struct):
    mm_hashes: dict[str, list[str]] = {}
    mm_placeholders: dict[str, list[_Place]] = {}


class _Prompt(msgspec.Struct):
    token_ids: list[int]
    features: _Features | None = None


class _Tokenized(msgspec.Struct):
    tokens: list[int]


_prompt, _prompts = msgspec.json.Decoder(_Prompt), msgspec.json.Decoder(list[_Prompt])
_tokenized = msgspec.json.Decoder(_Tokenized)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(slots=True)
class _Cache:
    """Prompts that were rendered before, the longest unused first."""

    found: OrderedDict[int, Rendered] = field(default_factory=OrderedDict)
    tokens: int = 0

    def get(self, key: int) -> Rendered | None:
        rendered = self.found.get(key)
        if rendered is not None:
            self.found.move_to_end(key)
        return rendered

    def put(self, key: int, rendered: Rendered) -> None:
        if rendered.tokens > CACHED_TOKENS // 16 or key in self.found:
            return
        self.found[key] = rendered
        self.tokens += rendered.tokens + 64  # an empty prompt costs something, too
        while self.tokens > CACHED_TOKENS:
            self.tokens -= self.found.popitem(last=False)[1].tokens + 64


class Renderer:
    """Asks a renderer, or each endpoint in turn. Belongs to one event loop."""

    def __init__(self, tls: ClientTls | None = None) -> None:
        """Raises OSError for certificates that cannot be read."""
        context = tls.context() if tls is not None else None
        self._service = Service("the renderer of prompts", CONNECTIONS, context)
        self._cache = _Cache()
        self._absent_until: dict[str, float] = {}
        """Interfaces that are not rendered, and until when that is believed."""

    def resting(self, base: str) -> bool:
        """The renderer at this base URL has just failed."""
        return self._service.resting(base)

    async def render(
        self, base: str, path: str, body: bytes, seconds: float, authorization: str = ""
    ) -> Rendered | None:
        """Token ids of a request to ``path`` with this body, by the service at ``base``; None if they cannot be had:
        an interface that is not rendered, or a service that rests. Raises ServiceError."""
        kind = next((each for each in RENDERED if path.partition("?")[0].endswith(each)), None)
        if kind is None:
            return None
        key = xxhash.xxh3_128_intdigest(kind.encode() + b"\0" + body)
        known = self._cache.get(key)
        if known is not None:
            return known
        if self._service.resting(base):
            return None
        rendered = await self._ask(base, kind, body, seconds, authorization)
        if rendered is not None:
            self._cache.put(key, rendered)
        return rendered

    async def close(self) -> None:
        """Give the connections back."""
        await self._service.close()

    async def _ask(self, base: str, kind: str, body: bytes, seconds: float, authorization: str) -> Rendered | None:
        deadline = time.monotonic() + seconds
        if time.monotonic() >= self._absent_until.get(kind, 0.0):
            try:
                path = f"{kind}/render"
                return _rendered(await self._service.post(base, path, body, seconds, authorization=authorization))
            except ServiceError as error:
                if error.status not in ABSENT and not (error.status == FORBIDDEN and UNLESS in str(error)):
                    raise
                self._absent_until[kind] = time.monotonic() + LOOK_AGAIN_SECONDS
        if kind not in TOKENIZED:
            return None
        asked = _members_of(body, kind)
        left = max(0.001, deadline - time.monotonic())
        answer = await self._service.post(base, "/tokenize", asked, left, authorization=authorization)
        try:
            return Rendered([array("I", _tokenized.decode(answer).tokens)])
        except (msgspec.DecodeError, OverflowError) as error:
            raise ServiceError(f"the tokens are not understood: {error}") from None


def _rendered(answer: bytes) -> Rendered:
    try:
        found = _prompts.decode(answer) if answer.lstrip()[:1] == b"[" else [_prompt.decode(answer)]
        prompts = [array("I", each.token_ids) for each in found]
    except (msgspec.DecodeError, OverflowError) as error:
        raise ServiceError(f"the rendered prompt is not understood: {error}") from None
    return Rendered(prompts, _features(found[0].features) if found else ())


def _features(given: _Features | None) -> Sequence[tuple[str, int, int]]:
    if given is None:
        return ()
    found = []
    for kind, places in given.mm_placeholders.items():
        for name, place in zip(given.mm_hashes.get(kind, ()), places, strict=False):
            found.append((name, place.offset, place.length))
    return sorted(found, key=lambda each: each[1])


def _members_of(body: bytes, kind: str) -> bytes:
    """The members of a body that ``/tokenize`` takes."""
    try:
        given = _members.decode(body)
    except msgspec.DecodeError as error:
        raise ServiceError(f"the body cannot be read: {error}") from None
    return msgspec.json.encode({name: given[name] for name in (*TEMPLATE, *TOKENIZED[kind]) if name in given})
