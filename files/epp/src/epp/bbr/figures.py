# SPDX-License-Identifier: GPL-3.0-or-later
"""What body-based routing counts: names of GAIE v1.5, and those of v1.3 that say the same."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric

from epp import __version__
from epp.observe.figures import SHORT
from epp.observe.series import Figure, view


class Figures:
    """All of them; also what a stream service reports to."""

    def __init__(self) -> None:
        self.success = Figure(
            (), (view("bbr_success_total", "Requests whose headers were set from their bodies."),), counter=True
        )
        text = "Requests whose body lacked a member that was to become a header."
        self.not_found = Figure(
            ("field",),
            (view("bbr_body_field_not_found_total", text, "field"), view("bbr_model_not_in_body_total", text)),
            counter=True,
        )
        text = "Requests whose body had an empty member that was to become a header."
        self.empty = Figure(("field",), (view("bbr_body_field_empty_total", text, "field"),), counter=True)
        text = "Requests whose body could not be read."
        self.unreadable = Figure((), (view("bbr_model_not_parsed_total", text),), counter=True)
        by = ("extension_point", "plugin_type", "plugin_name")
        self.plugins = Figure(by, (view("bbr_plugin_duration_seconds", "Seconds per call of a plugin.", *by),), SHORT)
        info = ("commit", "build_ref")
        self.info = Figure(info, (view("bbr_info", "The version of this service.", *info),))
        self.info.value("", __version__).set(1.0)
        for each in (self.success, self.unreadable):
            each.value()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def collect(self) -> Iterator[Metric]:
        """Every figure; prometheus-client calls this."""
        for each in vars(self).values():
            if isinstance(each, Figure):
                yield from each.collect()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def processing(self, phase: str, seconds: float) -> None:
        """Own work on a request or an answer: not shown."""

    def stream_opened(self) -> None:
        """A stream began: not shown."""

    def stream_closed(self, seconds: float, code: str) -> None:
        """A stream ended: not shown."""
