# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interfaces of model servers are understood: the ends of their paths, what their bodies have, whose they are.

A parser (a plugin type of the configuration) is a list of these, or of readers for what is no JSON. Of several that
match, the longest end of the path counts, then the parser that is configured first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epp.requests.readers import BodyReader
from epp.requests.vllmgrpc import Embed, Generate


@dataclass(frozen=True, slots=True)
class Api:
    """One interface whose bodies are JSON objects."""

    end: str
    """How its paths end."""
    prompt: tuple[str, ...]
    """Members that may hold the prompt; the first that is present counts."""
    lead: tuple[str, ...] = ()
    """Members that engines render before the prompt, in this order: they are part of what a prefix cache holds."""
    needs_model: bool = True
    """A JSON body without a model is refused."""
    wrapped: bool = False
    """The JSON stands inside of a gRPC message."""


ANY_PROMPT = ("messages", "prompt", "input")

_OPENAI = (
    Api("/chat/completions", ANY_PROMPT, lead=("tools",)),
    Api("/chat/completions/render", ANY_PROMPT, lead=("tools",)),
    Api("/completions", ("prompt", "messages", "input")),
    Api("/completions/render", ("prompt", "messages", "input")),
    Api("/embeddings", ("input", "messages", "prompt")),
    Api("/responses", ("input", "messages", "prompt"), lead=("tools", "instructions")),
    Api("/conversations", ("items",), needs_model=False),
    Api("/images/generations", ("prompt",), needs_model=False),
    Api("/images/edits", ("prompt",), needs_model=False),
    Api("/audio/transcriptions", ("prompt",), needs_model=False),
    Api("/audio/translations", ("prompt",), needs_model=False),
    Api("/audio/speech", ("input",), needs_model=False),
)
_ANTHROPIC = (
    Api("/v1/messages", ("messages",), lead=("tools", "system")),
    Api("/v1/messages/count_tokens", ("messages",), lead=("tools", "system")),
)
_VLLM = (
    Api("/inference/v1/generate", ("token_ids",), needs_model=False),
    *(
        Api(end, (*ANY_PROMPT, "text_1", "query"), needs_model=False)
        for end in ("/tokenize", "/detokenize", "/pooling", "/classify", "/score", "/rerank")
    ),
)
_SGLANG = (Api("/generate", ("input_ids", "text"), needs_model=False),)
_VERTEX_AI = (
    Api("PredictionService/ChatCompletions", ANY_PROMPT, lead=("tools",), wrapped=True),
    Api("PredictionService/RawPredict", ("input", "messages", "prompt"), lead=("tools", "instructions"), wrapped=True),
    Api(
        "PredictionService/StreamRawPredict",
        ("input", "messages", "prompt"),
        lead=("tools", "instructions"),
        wrapped=True,
    ),
)

OPENAI, ANTHROPIC, VLLM = "openai-parser", "anthropic-parser", "vllmhttp-parser"
SGLANG, VERTEX_AI, PASSTHROUGH = "sglanghttp-parser", "vertexai-parser", "passthrough-parser"
VLLM_GRPC = "vllmgrpc-parser"

APIS: Mapping[str, tuple[Api, ...]] = {
    OPENAI: _OPENAI,
    ANTHROPIC: _ANTHROPIC,
    VLLM: (*_VLLM, *_OPENAI),
    SGLANG: _SGLANG,
    VERTEX_AI: _VERTEX_AI,
    PASSTHROUGH: (),
}
"""Interfaces of JSON by the type of the parser that understands them."""

READERS: Mapping[str, tuple[BodyReader, ...]] = {VLLM_GRPC: (Generate(), Embed())}
"""Other interfaces, likewise."""

DEFAULT = (OPENAI, ANTHROPIC, VLLM, PASSTHROUGH)
"""Parsers that are there when nobody configures any."""

FALLBACKS = frozenset({PASSTHROUGH, VERTEX_AI, VLLM_GRPC})
"""Parsers that let pass what nobody understands."""

LENIENT = Api("", ANY_PROMPT, needs_model=False)
"""What is tried on a path that nobody knows."""

UNKNOWN_PATH = Api("", ANY_PROMPT)
"""A request without a path (only a test has one) is taken for one of the OpenAI API."""
