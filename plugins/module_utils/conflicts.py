# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds a field that we want to have another value: a person who changed it by hand, or a program that means it?

A field manager's name is what its client calls itself. A value that a person typed is drift, and may be repaired; one
that a program keeps writing (an autoscaler, an injector, another tool that applies) would only be fought over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Dict, List

from ansible_collections.inferops.cluster.plugins.module_utils.drift import owned_fields
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError

Json = Dict[str, Any]

# Clients that people drive: kubectl's verbs, k9s, browsers (Headlamp, consoles), Lens, the dashboard, curl.
HANDS = ("kubectl*", "k9s", "Mozilla", "node-fetch", "dashboard", "curl")
# Written by the API server; "using <version>" stands there for an update, and not for a server-side apply.
HOLDER = re.compile(r'conflict with "(?P<manager>[^"]+)"(?: with subresource "[^"]+")?(?P<update> using )?')


@dataclass(frozen=True)
class Conflict:
    """One field, the manager that holds it, and whether a person typed its value."""

    field: str
    manager: str
    by_hand: bool

    def __str__(self) -> str:
        return f"{self.field} (managed by {self.manager})"


def conflicts(error: ApiError) -> List[Conflict]:
    """The fields that others hold with other values; empty when the error is about something else."""
    found = []
    for cause in error.field_conflicts:
        message = cause.get("message", "")
        match = HOLDER.search(message)
        manager = match["manager"] if match else message or "somebody else"
        by_hand = bool(match and match["update"]) and any(fnmatchcase(manager, hand) for hand in HANDS)
        found.append(Conflict(cause.get("field", ""), manager, by_hand))
    return found


def repairable(found: List[Conflict], live: Any, manager: str, api_version: str) -> bool:
    """Are these all changes by hand to an object that ``manager`` has applied before?

    An object that somebody made by hand under the same name is theirs, and no drift of ours.
    """
    ours = live is not None and owned_fields(live, manager, api_version) is not None
    return ours and all(one.by_hand for one in found)
