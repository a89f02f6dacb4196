# SPDX-License-Identifier: GPL-3.0-or-later
"""passthrough-parser: lets pass what no other parser understands.

A request on a path that nobody knows goes on unread when this is the only parser. Beside others its model and prompt
are read if it happens to be a JSON object like theirs. Without this parser such a request is refused (400).

Parameters: none.
Source: llm-d-router parser of the same type; there it never reads anything.
"""

from __future__ import annotations

from epp.scheduling.api import Parser


class PassthroughParser(Parser):
    """Done by the requests room."""

    TYPE = "passthrough-parser"
