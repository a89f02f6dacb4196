# SPDX-License-Identifier: GPL-3.0-or-later
"""The members of bodies and answers that are decoded. They have a file of their own because msgspec's structs cannot be
compiled, and what reads them is.
"""

from __future__ import annotations

import msgspec

ABSENT = msgspec.Raw(b"")
"""In place of a member that is not there."""


class Body(msgspec.Struct):
    """Members that matter, checked for syntax and not decoded: a wrong type is the engine's to refuse."""

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    instructions: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    items: msgspec.Raw = ABSENT
    token_ids: msgspec.Raw = ABSENT
    input_ids: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT
    text_1: msgspec.Raw = ABSENT
    query: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    sampling_params: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT
    extra_key: msgspec.Raw = ABSENT


class Sampling(msgspec.Struct):
    """What vLLM's and SGLang's own interfaces put below ``sampling_params``."""

    max_tokens: msgspec.Raw = ABSENT
    max_new_tokens: msgspec.Raw = ABSENT


class Details(msgspec.Struct):
    """What ``prompt_tokens_details`` says of a prompt."""

    cached_tokens: int | None = None


class Counts(msgspec.Struct):
    """The names of the completion API, of the Responses API (input, output), of Anthropic's (cache_*), of SGLang's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
