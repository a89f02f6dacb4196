# SPDX-License-Identifier: GPL-3.0-or-later
"""The few Kubernetes API calls that the lab itself makes, as administrator."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from lab.state import NODE, Folders

GPU = "nvidia.com/gpu"


class Api:
    """A client of the lab's API server. server: its URL."""

    def __init__(self, server: str, folders: Folders) -> None:
        self._server = server
        context = ssl.create_default_context(cafile=str(folders.pki / "ca.crt"))
        context.load_cert_chain(folders.pki / "admin.crt", folders.pki / "admin.key")
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One request; bodies are JSON, a PATCH is a merge patch. Raises OSError (urllib's HTTPError included)."""
        data = None if body is None else json.dumps(body).encode()
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            self._server + path, data=data, method=method, headers={"Content-Type": kind, "Accept": "application/json"}
        )
        with self._opener.open(request, timeout=5) as response:
            return json.load(response)

    def node_state(self) -> str:
        """`Ready`, or why the node is not."""
        try:
            node = self.call("GET", f"/api/v1/nodes/{NODE}")
        except urllib.error.HTTPError as error:
            return "not registered" if error.code == 404 else f"API server: {error}"
        except OSError as error:
            return f"API server: {error}"
        for condition in node["status"].get("conditions", []):
            if condition["type"] == "Ready":
                return "Ready" if condition["status"] == "True" else str(condition.get("message", "not ready"))
        return "no status yet"

    def set_gpus(self, count: int) -> None:
        """Give the node `count` GPUs in its status, unless it has just that many. 0 takes them away."""
        status = self.call("GET", f"/api/v1/nodes/{NODE}")["status"]
        wanted = str(count) if count else None
        if all(status.get(part, {}).get(GPU) == wanted for part in ("capacity", "allocatable")):
            return
        patch = {"status": {part: {GPU: wanted} for part in ("capacity", "allocatable")}}
        self.call("PATCH", f"/api/v1/nodes/{NODE}/status", patch)
