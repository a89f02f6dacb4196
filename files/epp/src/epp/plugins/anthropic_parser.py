# SPDX-License-Identifier: GPL-3.0-or-later
"""anthropic-parser: understands the Anthropic API: /v1/messages and /v1/messages/count_tokens.

Parameters: none.
Source: llm-d-router parser of the same type.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class AnthropicParser(Parser):
    """Done by the requests room."""

    TYPE = "anthropic-parser"
