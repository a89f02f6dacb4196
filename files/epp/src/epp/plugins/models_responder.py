# SPDX-License-Identifier: GPL-3.0-or-later
"""models-responder: answers ``GET /v1/models`` in the picker, with the models of all endpoints.

An endpoint knows its own models only, so that whoever asks one of them misses the adapters of the others. The entries
are the endpoints' own, each id once, sorted; of the endpoints that the gateway's subset allows. 503 until one endpoint
has been asked. What asks them (models-data-source and models-data-extractor) is added if it is not configured.

Parameters: none.
Source: llm-d-router responder of the same type, which shows id and parent only.
"""

from __future__ import annotations

from collections.abc import Sequence

from epp.datalayer.models import merged_models
from epp.model import Endpoint, Rejection, Reply
from epp.scheduling.api import Responder

PATH = "/v1/models"


class ModelsResponder(Responder):
    """See the module."""

    TYPE = "models-responder"

    def respond(self, method: str, path: str, endpoints: Sequence[Endpoint]) -> Reply | None:
        """See the module. Raises Rejection."""
        if method != "GET" or path.partition("?")[0].rstrip("/") != PATH:
            return None
        found = merged_models(endpoints)
        if found is None:
            raise Rejection(503, "ServiceUnavailable", "the models of the endpoints are not known yet")
        return Reply(found)
