# SPDX-License-Identifier: GPL-3.0-or-later
"""A metrics page, read by Prometheus' own parser."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


class Page:
    """One reading of ``/metrics``."""

    def __init__(self, text: str) -> None:
        """Raises ValueError when the text is no metrics page."""
        self.text = text
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            # The parser strips _total from counters, as OpenMetrics has it; people look for the name on the page.
            self.families[family.name + ("_total" if family.type == "counter" else "")] = family

    def family(self, name: str) -> Metric:
        """A metric by its name on the page. Raises AssertionError when it is not there."""
        assert name in self.families, f"{name} is not on the metrics page"
        return self.families[name]

    def value(self, sample: str, **labels: str) -> float:
        """The sum of all samples of this name that carry these labels; 0 when there are none."""
        return sum(
            each.value
            for family in self.families.values()
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items()
        )

    def labels(self, name: str) -> set[frozenset[str]]:
        """The label names of every series of a metric, buckets' ``le`` apart."""
        return {frozenset(each.labels.keys() - {"le"}) for each in self.family(name).samples}

    def bounds(self, name: str) -> list[float]:
        """The upper bounds of a histogram's buckets, the infinite one left out."""
        family = self.family(name)
        assert family.type == "histogram", f"{name} is a {family.type}"
        bounds = {float(each.labels["le"]) for each in family.samples if each.name == f"{name}_bucket"}
        return sorted(bounds - {float("inf")})
