# SPDX-License-Identifier: GPL-3.0-or-later
"""custom-parser, an example of a parser of one's own: documents to translate, as lines of JSON."""

import json

from epp.scheduling import BodyError, BodyParser, ParsedBody, RawRequest


class CustomParser(BodyParser):
    TYPE = "custom-parser"
    PATHS = ("/v1/translate",)
    NAMES_MODEL = False

    def parse(self, request: RawRequest) -> ParsedBody:
        """The first line says what to do, those after it are the documents."""
        task, _, documents = request.body.partition(b"\n")
        try:
            return ParsedBody(model=json.loads(task)["model"], prompt=documents)
        except (ValueError, KeyError, TypeError) as error:
            raise BodyError(f"the first line has no model: {error}") from None
