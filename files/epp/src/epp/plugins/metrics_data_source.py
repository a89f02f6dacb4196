# SPDX-License-Identifier: GPL-3.0-or-later
"""metrics-data-source: where the endpoints' metrics are read.

Parameters: scheme (http), path (/metrics), port (0: the endpoint's own), insecureSkipVerify (true), caCertPath,
clientCertPath, clientKeyPath (none), interval (that of the flag refresh-metrics-interval).
Source: GAIE v1.5 and llm-d-router source of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.scheduling.api import DataSource, param


@dataclass(frozen=True)
class MetricsDataSourceParameters:
    """Parameters of metrics-data-source; None is what the flags say."""

    scheme: str | None = param(None, choices=("http", "https"), doc="http or https")
    path: str | None = param(None, doc="path of the metrics page")
    port: int | None = param(None, minimum=0, maximum=65535, doc="0 is the endpoint's own")
    insecure_skip_verify: bool | None = param(None, doc="accept any certificate")
    ca_cert_path: str = param("", doc="CA bundle (PEM) to verify servers with")
    client_cert_path: str = param("", doc="client certificate (PEM)")
    client_key_path: str = param("", doc="key of the client certificate (PEM)")
    interval: float | None = param(None, minimum=0.05, duration=True, doc="between two readings under traffic")

    def __post_init__(self) -> None:
        """Check what concerns more than one field."""
        if self.path is not None and not self.path.startswith("/"):
            raise ValueError(f"path must begin with /, not {self.path!r}")
        if self.client_key_path and not self.client_cert_path:
            raise ValueError("clientKeyPath needs clientCertPath; add it")


class MetricsDataSource(DataSource):
    """Read by the data layer."""

    TYPE = "metrics-data-source"
    PARAMETERS = MetricsDataSourceParameters
