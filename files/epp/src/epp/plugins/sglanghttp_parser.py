# SPDX-License-Identifier: GPL-3.0-or-later
"""sglanghttp-parser: understands SGLang's own interface: /generate, with input_ids or text.

Parameters: none.
Source: llm-d-router parser of the same type; there only input_ids.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class SGLangHTTPParser(Parser):
    """Done by the requests room."""

    TYPE = "sglanghttp-parser"
