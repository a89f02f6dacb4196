# SPDX-License-Identifier: GPL-3.0-or-later
"""vertexai-parser: understands Vertex AI's gRPC interface, which carries JSON of the OpenAI API.

PredictionService/ChatCompletions, RawPredict and StreamRawPredict. Other paths pass unread.

Parameters: none.
Source: llm-d-router parser of the same type.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class VertexAIParser(Parser):
    """Done by the requests room."""

    TYPE = "vertexai-parser"
