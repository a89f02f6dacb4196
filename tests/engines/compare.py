# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a page that is ours says what an engine's own page says: names, types and labels of its metrics."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, fields

from prometheus_client.parser import text_string_to_metric_families

from epp.datalayer.exposition import MetricSpec
from epp.datalayer.mapping import ENGINES


@dataclass(frozen=True)
class Family:
    """A metric: its type, and the names of labels that its series have."""

    kind: str
    labels: frozenset[frozenset[str]]


def families(page: str) -> dict[str, Family]:
    """The metrics of a page, by name. Raises ValueError for what is no page."""
    return {
        each.name: Family(each.type, frozenset(frozenset(sample.labels) - {"le"} for sample in each.samples))
        for each in text_string_to_metric_families(page)
    }


def read_by_us(engine: str) -> set[str]:
    """Names of the metrics that the EPP takes from an engine's page."""
    found = ENGINES[engine]
    values = (getattr(found, field.name) for field in fields(found))
    return {value.name for value in values if isinstance(value, MetricSpec)}


def differences(ours: str, real: str, without: Container[str] = ()) -> list[str]:
    """What our page has otherwise than the real one, a line each; `without` are metrics that it cannot have here."""
    theirs, wrong = families(real), []
    for name, own in families(ours).items():
        if name in without:
            continue
        if name not in theirs:
            wrong.append(f"{name} is not on the engine's page")
        elif theirs[name] != own:
            wrong.append(f"{name} is {own} with us, and {theirs[name]} there")
    return wrong


def read(page: str, engine: str) -> set[str]:
    """Of the metrics that the EPP looks for, those that the page has."""
    return read_by_us(engine) & families(page).keys()
