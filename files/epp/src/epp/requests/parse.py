# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads from a request body the few things that routing needs.

The body is validated as JSON, but only ``model`` and a few scalars are decoded. The prompt stays what the client sent:
the JSON bytes of ``prompt``, ``messages`` or ``input``. Equal prefixes of a conversation are equal bytes, and prefix
hashing asks for no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from epp.requests.scan import members, text

_ABSENT = msgspec.Raw(b"")

# Which member holds the prompt, by the end of the path. The first that is present counts.
_PROMPT_MEMBERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("/chat/completions", ("messages", "prompt", "input")),
    ("/completions", ("prompt", "messages", "input")),
    ("/embeddings", ("input", "messages", "prompt")),
    ("/responses", ("input", "messages", "prompt")),
)
_ANY_PATH = ("messages", "prompt", "input")


class BodyError(ValueError):
    """A body that cannot be routed; the text is for the client."""


@dataclass(slots=True)
class ParsedBody:
    """What a request body says. A body that is none of our business (multipart, say) gives an empty one."""

    model: str = ""
    prompt: bytes = b""
    """JSON bytes of the prompt, the messages or the input, as the client sent them."""
    stream: bool = False
    max_tokens: int = 0
    """Upper bound of output tokens that the client set; 0 when it set none."""
    cache_salt: str = ""
    """vLLM's ``cache_salt``: prompts with different salts share no prefix cache."""


class _Body(msgspec.Struct):
    """Members that matter, checked for syntax and not decoded: a wrong type is the engine's to refuse."""

    model: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    max_tokens: msgspec.Raw = _ABSENT
    max_completion_tokens: msgspec.Raw = _ABSENT
    max_output_tokens: msgspec.Raw = _ABSENT
    cache_salt: msgspec.Raw = _ABSENT


_decoder = msgspec.json.Decoder(_Body)


def parse_body(path: str, content_type: str, body: bytes) -> ParsedBody:
    """Parse a whole body that came to ``path`` (with or without a query).

    Raises BodyError for what is not a JSON object although it should be, and for inference paths without a model.
    A body of another content type (multipart audio, say), and an empty one, is not looked into.
    """
    if not body or not _is_json(content_type):
        return ParsedBody()
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BodyError(f"failed to parse request body: {error}") from None
    return _parsed(path, fields)


def parse_partial(path: str, content_type: str, body: bytes) -> ParsedBody:
    """Parse the beginning of a body of which Envoy kept the rest (BUFFERED_PARTIAL).

    The prompt may be cut short. Raises BodyError only for what no end could mend.
    """
    if not body or not _is_json(content_type):
        return ParsedBody()
    if not body.lstrip().startswith(b"{"):
        raise BodyError("failed to parse request body: expected an object")
    fields = _Body()
    for member in members(body):
        is_prompt = member.key in _ANY_PATH
        if member.key in _Body.__struct_fields__ and (member.complete or is_prompt):
            setattr(fields, member.key, msgspec.Raw(body[member.start : member.end]))
    if not bytes(fields.model):
        fields.model = msgspec.Raw(b'""')  # it may stand in the part that is not here
    return _parsed(path, fields)


def _parsed(path: str, fields: _Body) -> ParsedBody:
    path = path.partition("?")[0]
    model = _string(fields.model)
    if model is None and (not path or path.endswith(tuple(end for end, _ in _PROMPT_MEMBERS))):
        raise BodyError("model not found in request body")
    return ParsedBody(
        model=model or "",
        prompt=_prompt(path, fields),
        stream=bytes(fields.stream) == b"true",
        max_tokens=_first_number(fields.max_completion_tokens, fields.max_tokens, fields.max_output_tokens),
        cache_salt=_string(fields.cache_salt) or "",
    )


def _prompt(path: str, fields: _Body) -> bytes:
    names = next((names for end, names in _PROMPT_MEMBERS if path.endswith(end)), _ANY_PATH)
    for name in names:
        value = bytes(getattr(fields, name))
        if value and value != b"null":
            # The Responses API renders its instructions before the input, so they are part of the prefix.
            return bytes(fields.instructions) + value if name == "input" else value
    return b""


def _is_json(content_type: str) -> bool:
    """No content type at all counts as JSON: that is what the paths of this API take."""
    kind = content_type.partition(";")[0].strip().lower()
    return not kind or kind == "application/json" or kind.endswith("+json")


def _string(raw: msgspec.Raw) -> str | None:
    """The text of a JSON string, None for anything else."""
    data = bytes(raw)
    return text(data) if data.startswith(b'"') else None


def _first_number(*raws: msgspec.Raw) -> int:
    """The first JSON integer above 0, 0 if there is none."""
    for raw in raws:
        data = bytes(raw)
        if data.isdigit() and len(data) < 19 and int(data):
            return int(data)
    return 0
