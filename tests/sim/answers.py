# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI answers as vLLM writes them: whole, or as server-sent events. Bytes only; nothing here sends anything."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from sim.stats import FinishReason

DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Choice:
    """The answer to one prompt so far. Lengths in tokens."""

    prompt_tokens: int
    text: bytearray = field(default_factory=bytearray)
    generated: int = 0
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


def compact(value: object) -> bytes:
    """Return compact JSON, the way pydantic writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def usage(choices: list[Choice], details: bool) -> dict[str, Any]:
    """Return the usage object; with `details`, tokens found in the prefix cache are named if there are any."""
    prompt = sum(choice.prompt_tokens for choice in choices)
    generated = sum(choice.generated for choice in choices)
    cached = sum(choice.cached_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + generated,
        "completion_tokens": generated,
        "prompt_tokens_details": {"cached_tokens": cached} if details and cached else None,
    }


@dataclass(frozen=True, slots=True)
class AnswerWriter:
    """Writes the answer to one request."""

    chat: bool
    request_id: str
    """Without its `cmpl-` or `chatcmpl-` prefix."""
    created: int
    """Seconds since the epoch."""
    model: str

    def _envelope(self, stream: bool) -> dict[str, Any]:
        """Return the members that every object of the answer starts with."""
        if self.chat:
            prefix, kind = "chatcmpl", "chat.completion.chunk" if stream else "chat.completion"
        else:
            prefix, kind = "cmpl", "text_completion"
        return {"id": f"{prefix}-{self.request_id}", "object": kind, "created": self.created, "model": self.model}

    def whole(self, choices: list[Choice], details: bool) -> bytes:
        """Return the JSON of the answer that is sent at once."""
        rendered: list[dict[str, Any]] = []
        for index, choice in enumerate(choices):
            text = choice.text.decode()
            end = {"logprobs": None, "finish_reason": choice.finish_reason, "stop_reason": None}
            if self.chat:
                message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
                rendered.append({"index": index, "message": message, **end})
            else:
                rendered.append({"index": index, "text": text, **end, "prompt_logprobs": None})
        return compact({**self._envelope(False), "choices": rendered, "usage": usage(choices, details)})

    def opening(self) -> bytes:
        """Return the event that opens a chat's stream, before its first token: the role. Completions have none."""
        if not self.chat:
            return b""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return b"data: " + compact({**self._envelope(True), "choices": [choice]}) + b"\n\n"

    def chunk_frame(self, index: int) -> tuple[bytes, bytes]:
        """Return what goes before and after the text of a token that is not the last of choice `index`.

        Tokens are text that needs no escaping, so an event is the concatenation of the three.
        """
        mark = "\0"
        end = {"logprobs": None, "finish_reason": None}
        choice: dict[str, Any] = {"index": index, "delta": {"content": mark}, **end}
        if not self.chat:
            choice = {"index": index, "text": mark, **end, "stop_reason": None}
        event = b"data: " + compact({**self._envelope(True), "choices": [choice]}) + b"\n\n"
        before, _, after = event.partition(b"\\u0000")
        return before, after

    def last_chunk(self, index: int, token: bytes, reason: FinishReason) -> bytes:
        """Return the event of the last token of choice `index`."""
        text = token.decode()
        content: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason, "stop_reason": None}
        return b"data: " + compact({**self._envelope(True), "choices": [choice]}) + b"\n\n"

    def usage_chunk(self, choices: list[Choice], details: bool) -> bytes:
        """Return the event that `stream_options.include_usage` asks for."""
        event = {**self._envelope(True), "choices": [], "usage": usage(choices, details)}
        return b"data: " + compact(event) + b"\n\n"
