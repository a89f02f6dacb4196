# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An API server's refusal, turned into what a person has to know: which object, which field, whose, and what to do."""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.conflicts import conflicts
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member

FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
SHOWN = 20  # lines of a long list of failures


def explain(failures: Iterable[Tuple[Member, ApiError]], server: str) -> str:
    """One line per refused object; missing permissions, which tend to come in hundreds, one line per right."""
    lines: List[str] = []
    rights: Dict[str, int] = {}
    for member, error in failures:
        if error.status == 401:
            return unauthorized(server)
        right = missing_right(error)
        if right:
            rights[right] = rights.get(right, 0) + 1
        else:
            lines.append(f"{member.title}: {refusal(error)}")
    for right, count in rights.items():
        lines.append(right + (f" ({count} objects)" if count > 1 else ""))
    if rights:
        lines.append(rights_advice(server))
    if len(lines) > SHOWN:
        lines = lines[:SHOWN] + [f"... and {len(lines) - SHOWN} more"]
    return "\n".join(lines)


def unauthorized(server: str) -> str:
    """For a 401."""
    return (
        f"the API server {server} does not accept these credentials (401): check the token or certificate in "
        "`kubeconfig`, or `api_key`; it may have expired"
    )


def missing_right(error: ApiError) -> str:
    """The RBAC right that a 403 is about, as a sentence; empty for other refusals."""
    match = FORBIDDEN.search(error.message) if error.status == 403 else None
    if not match:
        return ""
    group = f".{match['group']}" if match["group"] else ""
    where = f"in namespace {match['namespace']}" if match["namespace"] else "at cluster scope"
    return f"user {match['user']} may not {match['verb']} {match['resource']}{group} {where}"


def rights_advice(server: str) -> str:
    """What to do about missing rights."""
    return (
        f"Give this user a Role or ClusterRole on {server} with the verbs get, list, create, patch and delete for the "
        "kinds of the set, or use other credentials"
    )


def refusal(error: ApiError) -> str:
    """What one error says about one object, and what to do about it."""
    if error.field_conflicts:
        return conflict(error)
    if error.missing_namespace:
        name = error.details.get("name")
        return f"the namespace {name} does not exist: add it to the set (before or after, order does not matter)"
    if "is being terminated" in error.message or "object is being deleted" in error.message:
        return f"{error.message}. Wait until it is gone, then run again"
    if error.status == 422:
        return invalid(error)
    return error.message


def conflict(error: ApiError) -> str:
    """Which fields belong to which other manager."""
    fields = ", ".join(str(one) for one in conflicts(error))
    return (
        f"other field managers hold {fields} with other values. Set `force: true` to take these fields over, or leave "
        "them out of the object"
    )


def invalid(error: ApiError) -> str:
    """Field by field what the server refuses; immutable fields get a way out."""
    fields = [f"{cause.get('field')}: {cause.get('message')}" for cause in error.causes if cause.get("field")]
    text = "; ".join(fields) or error.message
    if "immutable" in text or "updates to statefulset spec" in text.lower():
        text += (
            ". This field cannot change on an existing object: delete the object first (`state: absent`), or give the "
            "new one another name"
        )
    return text


def secrets_hidden(text: str, member: Member) -> str:
    """``text`` without the values of the member, if that is a Secret."""
    if member.wanted["kind"] != "Secret":
        return text
    for value in (member.wanted.get("data") or {}).values():
        if isinstance(value, str) and len(value) > 3:
            text = text.replace(value, "(hidden)")
    return text
