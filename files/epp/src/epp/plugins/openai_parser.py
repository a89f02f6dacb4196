# SPDX-License-Identifier: GPL-3.0-or-later
"""openai-parser: understands the OpenAI API (completions, chat completions, embeddings, responses).

Parameters: none.
Source: GAIE v1.5 and llm-d-router parser of the same type. It is always there; naming it changes nothing.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class OpenAIParser(Parser):
    """Done by the requests room."""

    TYPE = "openai-parser"
