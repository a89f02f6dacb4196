# SPDX-License-Identifier: GPL-3.0-or-later
"""From a request's body to its headers."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from typing import Final

from epp.bbr.figures import Figures
from epp.bbr.plugins import Plugin
from epp.extproc import NeedDecision, Route, Tracing
from epp.extproc.director import Report, Ticket
from epp.model import Rejection, Usage
from epp.requests import BodyError
from epp.requests.members import MemberReader

log: Final = logging.getLogger(__name__)

_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f]")
"""What a header cannot hold, and a JSON string can."""


class Passed(Ticket):
    """A request that went on. It holds nothing, and nothing follows its answer."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.open = False
        self.evicted = self.on_evict = None

    def finish(self, response_bytes: int, usage: Usage | None) -> Report:
        """Nothing to do, and nothing to tell."""
        return {}

    def fail(self, code: str) -> None:
        """Nothing to do."""

    def response_received(self, served: str) -> dict[str, str]:
        """No headers."""
        return {}

    def served(self, hostport: str) -> None:
        """Nothing to do."""


class BodyRouter:
    """Sets headers; synchronous, one event loop."""

    def __init__(self, plugins: Sequence[Plugin], figures: Figures, tracing: Tracing | None = None) -> None:
        self._plugins, self._figures, self._tracing = tuple(plugins), figures, tracing
        self._members = MemberReader([plugin.member for plugin in plugins])

    def decide(self, need: NeedDecision) -> Ticket:
        """What becomes of a request. Raises Rejection for a body that cannot be read."""
        route = Route("")
        if self._tracing is not None:
            route.headers.update(self._tracing.headers(need.headers))
        if not need.body:
            # None at all, or one that Envoy sends on before it is seen: headers cannot be set afterwards.
            return Passed(route)
        try:
            members = self._members.read(need.headers.get("content-type", ""), need.body, need.truncated)
        except BodyError as error:
            self._figures.unreadable.value().add()
            raise Rejection(400, "BadRequest", str(error)) from None
        self._apply(members, need, route)
        return Passed(route)

    def _apply(self, members: dict[str, str], need: NeedDecision, route: Route) -> None:
        done = False
        for plugin in self._plugins:
            started = time.perf_counter()
            value = plugin.value(members, self._figures)
            self._figures.plugins.histogram("request", plugin.TYPE, plugin.name).observe(time.perf_counter() - started)
            if value is None:
                continue
            if not value:
                if plugin.header.lower() in need.headers:
                    route.removed += (plugin.header.lower(),)
                continue
            if _UNFIT.search(value):
                self._figures.unreadable.value().add()
                told = f"{plugin.member!r} has control characters, and is to become a header"
                raise Rejection(400, "BadRequest", f"failed to parse request body: {told}")
            route.headers[plugin.header] = value
            done = True
        if done:
            self._figures.success.value().add()
        log.debug("%s: set %s", need.headers.get(":path", ""), route.headers)

    def response_received(self, served: str) -> dict[str, str]:
        """No headers for answers."""
        return {}
