# SPDX-License-Identifier: GPL-3.0-or-later
"""models-data-source: where the endpoints are asked which models they serve.

Parameters: scheme (http), path (/v1/models), port (0: the endpoint's own), insecureSkipVerify (true), caCertPath,
clientCertPath, clientKeyPath (none), interval (10s).
Source: llm-d-router source of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.scheduling.api import DataSource, param


@dataclass(frozen=True)
class ModelsDataSourceParameters:
    """Parameters of models-data-source."""

    scheme: str = param("http", choices=("http", "https"), doc="http or https")
    path: str = param("/v1/models", doc="path of the list of models")
    port: int = param(0, minimum=0, maximum=65535, doc="0 is the endpoint's own")
    insecure_skip_verify: bool = param(True, doc="accept any certificate")
    ca_cert_path: str = param("", doc="CA bundle (PEM) to verify servers with")
    client_cert_path: str = param("", doc="client certificate (PEM)")
    client_key_path: str = param("", doc="key of the client certificate (PEM)")
    interval: float = param(10.0, minimum=0.1, duration=True, doc="between two questions to an endpoint")

    def __post_init__(self) -> None:
        """Check what concerns more than one field."""
        if not self.path.startswith("/"):
            raise ValueError(f"path must begin with /, not {self.path!r}")
        if self.client_key_path and not self.client_cert_path:
            raise ValueError("clientKeyPath needs clientCertPath; add it")


class ModelsDataSource(DataSource):
    """Read by the data layer."""

    TYPE = "models-data-source"
    PARAMETERS = ModelsDataSourceParameters
