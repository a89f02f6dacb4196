# SPDX-License-Identifier: GPL-3.0-or-later
"""endpoint-notification-source: tells extractors of endpoints that come and go. Also: k8s-notification-source.

Parameters: group, version, kind: taken and not needed.
Source: llm-d-router data sources of these types. Here the data layer tells everybody anyway, so that naming one changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.scheduling.api import DataSource, param


@dataclass(frozen=True)
class EndpointNotificationSourceParameters:
    """Parameters of endpoint-notification-source."""

    group: str = param("", doc="not needed")
    version: str = param("", doc="not needed")
    kind: str = param("", doc="not needed")


class EndpointNotificationSource(DataSource):
    """Done by the data layer."""

    TYPE = "endpoint-notification-source"
    ALIASES = ("k8s-notification-source",)
    PARAMETERS = EndpointNotificationSourceParameters
