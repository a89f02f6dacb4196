# SPDX-License-Identifier: GPL-3.0-or-later
"""What bodies say: a request's model and prompt, an answer's token counts; and how to change the model's name in both.

Nothing is decoded that is not needed, and nothing is encoded again: a rewrite replaces the bytes of one JSON string.
This room knows neither Envoy nor endpoints.
"""

from __future__ import annotations

from epp.model import AnswerReader, BodyError, ParsedBody
from epp.requests.parse import Parsers, is_json
from epp.requests.readers import BodyReader, Guarded
from epp.requests.rewrite import ModelRenamer, replace_model
from epp.requests.usage import UsageTail

__all__ = [
    "AnswerReader",
    "BodyError",
    "BodyReader",
    "Guarded",
    "ModelRenamer",
    "ParsedBody",
    "Parsers",
    "UsageTail",
    "is_json",
    "replace_model",
]
