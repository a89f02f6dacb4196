# SPDX-License-Identifier: GPL-3.0-or-later
"""vllmgrpc-parser: understands vLLM's gRPC interface, Generate and Embed of vllm.grpc.engine.VllmEngine.

The prompt is text or token ids; stream, max_tokens and the number of images are read, and token counts in answers.
A request names no model, so that it counts as one for what ``x-gateway-model-name`` says, and a rewrite of the model
changes nothing in it. Compressed messages are refused (400). Other methods, and other paths, pass unread.

Parameters: none.
Source: llm-d-router parser of the same type. There the usage of a streamed answer is that of its last piece; here its
pieces are added up.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class VLLMGRPCParser(Parser):
    """Done by the requests room."""

    TYPE = "vllmgrpc-parser"
