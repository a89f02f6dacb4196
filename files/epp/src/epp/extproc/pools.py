# SPDX-License-Identifier: GPL-3.0-or-later
"""Several pools behind one ext_proc service: which of them a request is for.

The first of these that names a pool decides:

1. what the gateway says and no client can touch: the metadata ``x-gateway-inference-pool`` of the gRPC call (Envoy's
   ``grpc_service.initial_metadata``), then the attributes of the request (Envoy Gateway's ``processingMode``), whose
   parts between slashes may be a pool's name, or its Service's, which ends in ``-epp``;
2. the request header ``x-gateway-inference-pool``;
3. the request header ``x-gateway-model-name``, as pools are commonly named after their model.

A request that names none is refused with 404, so that it never reaches somebody else's endpoints.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from epp.extproc import messages as m
from epp.extproc.director import Recorder, Ticket
from epp.extproc.exchange import Router
from epp.extproc.machine import NeedDecision
from epp.model import Rejection


class PoolRouter:
    """Hands each request to the router of its pool."""

    def __init__(self, pools: Mapping[str, Router], recorder: Recorder) -> None:
        """``pools`` are the routers by the pools' names."""
        self._pools = dict(pools)
        self._recorder = recorder

    def decide(self, need: NeedDecision) -> Ticket | Awaitable[Ticket]:
        """Route one request. Raises Rejection."""
        name = self._find(need)
        if name is None:
            self._recorder.rejected("NotFound")
            known = ", ".join(sorted(self._pools))
            raise Rejection(404, "NotFound", f"the request names no pool that is served here; served are {known}")
        return self._pools[name].decide(need)

    def response_received(self, served: str) -> dict[str, str]:
        """An answer has begun whose request was not seen: nothing says which pool's plugins should look at it."""
        return {}

    def _find(self, need: NeedDecision) -> str | None:
        for hint in (*need.hints, need.headers.get(m.POOL, ""), need.headers.get(m.MODEL_NAME, "")):
            for name in (hint, hint.removesuffix("-epp")):
                if name in self._pools:
                    return name
        return None
