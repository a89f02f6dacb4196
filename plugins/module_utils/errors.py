# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong between a module and a cluster, as sentences for the person who runs the play."""

from __future__ import annotations

from typing import Any, Dict, List, Optional


class ClusterError(Exception):
    """A failure whose text already says what was wrong, where, and what to do."""


class InputError(ClusterError):
    """The caller's objects, files or selectors are wrong. Nothing was sent to the cluster."""


class UnreachableError(ClusterError):
    """The API server did not answer: no connection, a broken one, or no valid certificate."""


class NotReadyError(ClusterError):
    """What was waited for did not come in time. ``waited`` tells for what, as modules return it under that name."""

    def __init__(self, waited: Dict[str, Any]) -> None:
        self.waited = waited
        super().__init__(waited_in_vain(waited))


class ApiError(ClusterError):
    """The API server answered with an error ``Status``.

    ``status`` is the HTTP code, ``reason`` the machine word of the Status (``Conflict``, ``Invalid``,
    ``Forbidden``...), ``causes`` its per-field details, ``message`` the server's text.
    """

    def __init__(self, status: int, body: Optional[Dict[str, Any]], method: str, path: str) -> None:
        body = body or {}
        details = body.get("details") or {}
        self.status = status
        self.reason: str = body.get("reason") or ""
        self.message: str = body.get("message") or f"HTTP {status} without a message"
        self.causes: List[Dict[str, str]] = details.get("causes") or []
        self.details: Dict[str, Any] = details
        self.method = method
        self.path = path
        super().__init__(self.message)

    @property
    def field_conflicts(self) -> List[Dict[str, str]]:
        """The causes that name a field which another field manager owns."""
        return [cause for cause in self.causes if cause.get("reason") == "FieldManagerConflict"]

    @property
    def missing_namespace(self) -> bool:
        """True when the object could not be found or made because its namespace does not exist."""
        return self.status == 404 and self.details.get("kind") == "namespaces"


def waited_in_vain(waited: Dict[str, Any]) -> str:
    """The message about a wait that ended too early: every unmet object with its reason and details."""
    unmet, seconds = waited["unmet"], f"{waited['seconds']:.0f} s"
    if waited["for"] == "gone":
        lines = [f"{len(unmet)} objects still exist after {seconds}:"]
    else:
        lines = [f"{len(unmet)} of {waited['total']} objects were not ready after {seconds}:"]
    for entry in unmet:
        lines.append(f"{named(entry)}: {entry['reason']}")
        lines.extend(f"  {detail}" for detail in entry["details"])
    if waited["for"] == "gone":
        lines.append("A finalizer stays until its controller has cleaned up: see that this controller still runs")
    return "\n".join(lines)


def named(entry: Dict[str, Any]) -> str:
    """``Kind namespace/name`` of an entry of ``objects`` or ``unmet``."""
    name = entry.get("name") or entry.get("label_selector") or "*"
    return f"{entry['kind']} {entry['namespace']}/{name}" if entry.get("namespace") else f"{entry['kind']} {name}"
