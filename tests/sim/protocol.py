# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI requests as vLLM reads them: JSON bytes in, a checked `GenerationRequest` out, or an `ApiError` in vLLM's
shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sim import tokens

DEFAULT_COMPLETION_TOKENS: Final = 16
"""`max_tokens` of a completion that gives none, as in OpenAI's API. A chat has no such limit."""


class ApiError(Exception):
    """An error answer: HTTP status, and the members of vLLM's `error` object."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return json.dumps({"error": error}).encode()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A completion or a chat. Lengths in tokens."""

    chat: bool
    model: str | None
    prompts: Sequence[bytes]
    """Token bytes; more than one only for completions."""
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    cache_salt: str | None


def parse_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the JSON object in `body`. Raises ApiError 400 for another content type or anything but an object."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "Unsupported Media Type: Only 'application/json' is allowed", "Bad Request")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"JSON decode error: {error}", "Bad Request") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"the request must be a JSON object, not {_kind(value)}", "Bad Request")
    return value


def parse_generation(payload: Mapping[str, Any], chat: bool) -> GenerationRequest:
    """Return the request in `payload`. Raises ApiError 400 naming the field that is missing, mistyped or not
    supported.
    """
    if _integer(payload, "n", 1) != 1:
        raise ApiError(400, "n must be 1: this server returns one choice per prompt", param="n")
    options = payload.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, f"stream_options must be an object, not {_kind(options)}", param="stream_options")
    stream = _boolean(payload, "stream")
    if options and not stream:
        raise ApiError(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    limit = _integer(payload, "max_tokens", None)
    if chat:
        limit = _integer(payload, "max_completion_tokens", limit)
    elif limit is None:
        limit = DEFAULT_COMPLETION_TOKENS
    if limit is not None and limit < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
    return GenerationRequest(
        chat=chat,
        model=_string(payload, "model"),
        prompts=[parse_messages(payload)] if chat else parse_prompts(payload),
        max_tokens=limit,
        min_tokens=_integer(payload, "min_tokens", 0) or 0,
        ignore_eos=_boolean(payload, "ignore_eos"),
        stream=stream,
        include_usage=_boolean(options, "include_usage"),
        cache_salt=_string(payload, "cache_salt"),
    )


def parse_prompts(payload: Mapping[str, Any]) -> list[bytes]:
    """Return the prompts of a completion: a text, a list of texts, a list of token ids, or a list of such lists."""
    prompt = payload.get("prompt")
    if isinstance(prompt, str):
        prompts = [tokens.encode_text(prompt)]
    elif isinstance(prompt, list) and prompt and all(isinstance(part, str) for part in prompt):
        prompts = [tokens.encode_text(part) for part in prompt]
    elif isinstance(prompt, list) and prompt and all(isinstance(part, list) for part in prompt):
        prompts = [_token_ids(part) for part in prompt]
    elif isinstance(prompt, list) and prompt:
        prompts = [_token_ids(prompt)]
    else:
        raise ApiError(400, "prompt must be a non-empty text, list of texts, or list of token ids", param="prompt")
    if not all(prompts):
        raise ApiError(400, "The decoder prompt cannot be empty", param="prompt")
    return prompts


def parse_messages(payload: Mapping[str, Any], add_generation_prompt: bool = True) -> bytes:
    """Return the token bytes of the conversation in `messages`."""
    messages = payload.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a non-empty list", param="messages")
    turns: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"{where} must be an object with a role", param="messages")
        turns.append((message["role"], _content(message.get("content"), where)))
    return tokens.encode_chat(turns, add_generation_prompt)


def _content(content: object, where: str) -> str:
    """Return the text of a message: a string, null (an assistant's tool call), or parts of which those of type text
    count.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(
            400, f"{where}.content must be a text or a list of parts, not {_kind(content)}", param="messages"
        )
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where}.content: only parts of type text are supported", param="messages")
        texts.append(part["text"])
    return "\n".join(texts)


def _token_ids(ids: list[object]) -> bytes:
    """Return the token bytes of a list of ids. Raises ApiError 400 unless all are integers in range."""
    if not all(type(value) is int for value in ids):
        raise ApiError(400, "a prompt of token ids must hold integers only", param="prompt")
    try:
        return tokens.encode_ids([value for value in ids if isinstance(value, int)])
    except ValueError as error:
        raise ApiError(400, str(error), param="prompt") from error


def _integer(payload: Mapping[str, Any], name: str, default: int | None) -> int | None:
    """Return an optional integer field."""
    value = payload.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise ApiError(400, f"{name} must be an integer, not {_kind(value)}", param=name)
    return value


def _boolean(payload: Mapping[str, Any], name: str) -> bool:
    """Return an optional boolean field; absent and null mean false."""
    value = payload.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false, not {_kind(value)}", param=name)
    return bool(value)


def _string(payload: Mapping[str, Any], name: str) -> str | None:
    """Return an optional text field."""
    value = payload.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"{name} must be a text, not {_kind(value)}", param=name)
    return value


def _kind(value: object) -> str:
    """Return JSON's name for the type of a value."""
    names = {
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")
