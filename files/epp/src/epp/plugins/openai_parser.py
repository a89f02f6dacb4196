# SPDX-License-Identifier: GPL-3.0-or-later
"""openai-parser: understands the OpenAI API.

Paths that end in /chat/completions and /completions (also with /render behind), /embeddings, /responses,
/conversations, /images/generations and edits, /audio/transcriptions, translations (multipart forms) and speech.

Parameters: none.
Source: GAIE v1.5 and llm-d-router parser of the same type; audio, forms and edits are additions.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class OpenAIParser(Parser):
    """Done by the requests room."""

    TYPE = "openai-parser"
