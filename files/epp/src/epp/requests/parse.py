# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads from a request body the few things that routing needs.

The body is validated as JSON, but only ``model`` and a few scalars are decoded. The prompt stays what the client sent:
the JSON bytes of ``prompt``, ``messages`` or ``input``. Equal prefixes of a conversation are equal bytes, and prefix
hashing asks for no more. Of a multipart form the fields are read and the files are not. Interfaces that are neither
have readers of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from epp.model import BodyError, ParsedBody, RawRequest
from epp.requests import form, media
from epp.requests.apis import APIS, DEFAULT, FALLBACKS, LENIENT, READERS, UNKNOWN_PATH, Api
from epp.requests.fields import ABSENT, Body, Sampling
from epp.requests.protobuf import WireError
from epp.requests.readers import BodyReader
from epp.requests.scan import members, text
from epp.requests.wrapped import unwrap

_NO_HEADERS: Final[Mapping[str, str]] = {}
GRPC: Final = "application/grpc"
MAX_PATHS: Final = 1024
"""Different paths of which the interface is remembered."""


_decoder: Final = msgspec.json.Decoder(Body)
_sampling: Final = msgspec.json.Decoder(Sampling)
_MEMBERS: Final = frozenset(Body.__struct_fields__)
_PROMPTS: Final = frozenset(name for apis in (*APIS.values(), (LENIENT,)) for api in apis for name in api.prompt)


class Parsers:
    """Understands the bodies of the interfaces that the configuration names."""

    def __init__(self, names: Sequence[str] = DEFAULT, own: Mapping[str, BodyReader] | None = None) -> None:
        """``names`` are types of parsers, or keys of ``own``, which has parsers that somebody else wrote.

        Raises KeyError for one that does not exist.
        """
        self._names = tuple(names)
        readers = {**READERS, **{name: (reader,) for name, reader in (own or {}).items()}}
        found: dict[str, Api | BodyReader] = {}
        for name in names:
            for reader in readers.get(name, ()):
                for end in reader.PATHS:
                    found.setdefault(end, reader)
            if name not in readers:
                for api in APIS[name]:
                    found.setdefault(api.end, api)
        # Nothing is read of what nobody understands if nothing at all is to be read.
        plain = any(isinstance(each, Api) and not each.wrapped for each in found.values())
        self._fallback: Api | None = LENIENT if plain else None
        self._falls_back = bool(FALLBACKS & set(names) - set(own or ()))
        self._ends = sorted(found.items(), key=lambda pair: -len(pair[0]))
        self._paths: dict[str, Api | BodyReader | None] = {}

    def parse(
        self,
        path: str,
        content_type: str,
        body: bytes,
        *,
        truncated: bool = False,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> ParsedBody:
        """Parse a body that came to ``path`` (with or without a query); ``headers`` may say how long a recording is.

        ``truncated``: Envoy kept the rest (BUFFERED_PARTIAL), so that the prompt may be cut short, and only what no end
        could mend is an error. Raises BodyError for what is not a JSON object although it should be, for interfaces
        that need a model and bodies without one, and for paths that nobody understands. An empty body, and one of
        another content type, is not looked into.
        """
        if not body:
            return ParsedBody()
        api = self._api(path)
        if api is None:
            return ParsedBody()
        if not isinstance(api, Api):
            return api.parse(RawRequest(path, headers, body, truncated))
        if api.wrapped and content_type.startswith(GRPC):
            return _parse_json(api, _unwrapped(body), False, headers) if not truncated else ParsedBody()
        if is_json(content_type):
            return _parse_json(api, body, truncated, headers)
        edge = form.boundary(content_type)
        return _parse_form(body, edge, headers) if edge is not None else ParsedBody()

    def reader(self, path: str) -> BodyReader | None:
        """What reads the answers to requests at a path, if they are not read as the OpenAI API's."""
        try:
            found = self._api(path)
        except BodyError:
            return None
        return None if found is None or isinstance(found, Api) else found

    def _api(self, path: str) -> Api | BodyReader | None:
        """The interface at a path; None where nothing is to be read. Raises BodyError where nothing is understood."""
        try:
            return self._paths[path]
        except KeyError:
            pass
        plain = path.partition("?")[0].rstrip("/")
        found = next((each for end, each in self._ends if plain.endswith(end)), None)
        if found is None and not path:
            found = UNKNOWN_PATH
        if found is None and not self._falls_back:
            known = ", ".join(self._names)
            raise BodyError(f"no parser understands the path {plain!r}; configured are {known}")
        if len(self._paths) < MAX_PATHS:
            self._paths[path] = found or self._fallback
        return found or self._fallback


def _parse_json(api: Api, body: bytes, truncated: bool, headers: Mapping[str, str]) -> ParsedBody:
    try:
        fields = _partial(body) if truncated else _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        if api is LENIENT:
            return ParsedBody()
        raise BodyError(f"failed to parse request body: {error}") from None
    model = _string(fields.model)
    if model is None and api.needs_model:
        raise BodyError("model not found in request body")
    lead, prompt = _prompt(api, fields)
    parsed = ParsedBody(
        model=model or "",
        prompt=lead + prompt if lead else prompt,
        lead=len(lead),
        stream=fields.stream is not ABSENT and bytes(fields.stream) == b"true",
        max_tokens=_max_tokens(fields),
        cache_salt=_string(fields.cache_salt) or _string(fields.extra_key) or "",
    )
    if prompt[:1] == b"[":
        _count(parsed, headers)
    return parsed


def _partial(body: bytes) -> Body:
    """What is whole in the beginning of a body, and the beginning of its prompt."""
    if not body.lstrip().startswith(b"{"):
        raise msgspec.DecodeError("expected an object")
    fields = Body()
    for member in members(body):
        if member.key in _MEMBERS and (member.complete or member.key in _PROMPTS):
            setattr(fields, member.key, msgspec.Raw(body[member.start : member.end]))
    if not bytes(fields.model):
        fields.model = msgspec.Raw(b'""')  # it may stand in the part that is not here
    return fields


def _parse_form(body: bytes, edge: bytes, headers: Mapping[str, str]) -> ParsedBody:
    """A form of text fields and files; the length of a recording is what it costs."""
    parsed = ParsedBody()
    for field in form.fields(body, edge):
        if field.is_file:
            parsed.parts += 1
            if field.name == "file":
                head = body[field.start : field.start + 64]
                parsed.tokens += media.audio_tokens(head, field.end - field.start, headers)
            continue
        value = body[field.start : field.end].decode("utf-8", "replace") if field.complete else ""
        if field.name == "model":
            parsed.model = value
        elif field.name == "stream":
            parsed.stream = value.strip().lower() in ("true", "1")
    return parsed


def _unwrapped(body: bytes) -> bytes:
    try:
        data = unwrap(body).data
    except WireError as error:
        raise BodyError(f"failed to parse request body: {error}") from None
    return body[data.start : data.end]


def _prompt(api: Api, fields: Body) -> tuple[bytes, bytes]:
    """What stands before the prompt, and the prompt."""
    for name in api.prompt:
        raw = getattr(fields, name)
        if raw is ABSENT:
            continue
        value = bytes(raw)
        if value and value != b"null":
            if not api.lead:
                return b"", value
            lead = [bytes(getattr(fields, each)) for each in api.lead]
            return b"".join([part for part in lead if part and part != b"null"]), value
    return b"", b""


def _count(parsed: ParsedBody, headers: Mapping[str, str]) -> None:
    """Tokens of a prompt that is more, or less, than text."""
    prompt = parsed.prompt
    if prompt[:1] == b"[" and prompt[1:16].lstrip()[:1].isdigit():
        parsed.tokens = prompt.count(b",") + 1
        return
    found = media.estimate(prompt, headers, parsed.lead)
    if found is not None:
        parsed.tokens, parsed.parts = found


def is_json(content_type: str) -> bool:
    """No content type at all counts as JSON: that is what the paths of this API take."""
    if content_type == "application/json":
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return not kind or kind == "application/json" or kind.endswith("+json")


def _string(raw: msgspec.Raw) -> str | None:
    """The text of a JSON string, None for anything else."""
    if raw is ABSENT:
        return None
    data = bytes(raw)
    return text(data) if data.startswith(b'"') else None


def _max_tokens(fields: Body) -> int:
    found = _first_number(fields.max_completion_tokens, fields.max_tokens, fields.max_output_tokens)
    if found or fields.sampling_params is ABSENT or not bytes(fields.sampling_params).startswith(b"{"):
        return found
    try:
        sampling = _sampling.decode(fields.sampling_params)
    except (msgspec.DecodeError, RecursionError):
        return 0  # cut short
    return _first_number(sampling.max_tokens, sampling.max_new_tokens)


def _first_number(*raws: msgspec.Raw) -> int:
    """The first JSON integer above 0, 0 if there is none."""
    for raw in raws:
        if raw is ABSENT:
            continue
        data = bytes(raw)
        if data.isdigit() and len(data) < 19 and int(data):
            return int(data)
    return 0
