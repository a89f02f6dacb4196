# SPDX-License-Identifier: GPL-3.0-or-later
"""file-discovery: the endpoints come from a file, without Kubernetes.

Parameters: path (required): the file, YAML or JSON, ``endpoints: [{name, address, port, namespace?, labels?}]``;
watchFile (false): read it again when it changes.
Source: llm-d-router plugin of the same type; the flag ``--endpoints-file`` is the same with watchFile true.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.scheduling.api import Discovery, param


@dataclass(frozen=True)
class FileDiscoveryParameters:
    """Parameters of file-discovery."""

    path: str
    """The endpoints file."""
    watch_file: bool = param(False, doc="read it again when it changes")

    def __post_init__(self) -> None:
        """A path is needed."""
        if not self.path:
            raise ValueError("path is empty; name the endpoints file")


class FileDiscovery(Discovery):
    """Read by the data layer."""

    TYPE = "file-discovery"
    PARAMETERS = FileDiscoveryParameters
