# SPDX-License-Identifier: GPL-3.0-or-later
"""vllmhttp-parser: understands vLLM's own interfaces, and the OpenAI API as openai-parser does.

Paths that end in /inference/v1/generate, /tokenize, /detokenize, /pooling, /classify, /score and /rerank.

Parameters: none.
Source: llm-d-router parser of the same type; there only the first of these paths.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class VLLMHTTPParser(Parser):
    """Done by the requests room."""

    TYPE = "vllmhttp-parser"
