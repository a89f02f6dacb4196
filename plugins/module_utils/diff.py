# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes, as a person should see it: no server-written fields, no secret values."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any, Dict, Optional

from ansible_collections.inferops.cluster.plugins.module_utils.drift import content
from ansible_collections.inferops.cluster.plugins.module_utils.load import title
from ansible_collections.inferops.cluster.plugins.module_utils.yamls import dump

Json = Dict[str, Any]

# Also holds a copy of everything that kubectl once applied, secrets included.
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# Equal values get equal masks within one run. The key is never shown, so no secret can be guessed from its mask.
_MASK_KEY = os.urandom(32)


def entry(before: Optional[Json], after: Optional[Json]) -> Dict[str, str]:
    """One item of Ansible's ``diff``: YAML of the object before and after; empty where it does not exist."""
    named = after or before or {}
    return {
        "before_header": f"{title(named)} (live)" if before else f"{title(named)} (absent)",
        "after_header": f"{title(named)} (wanted)" if after else f"{title(named)} (absent)",
        "before": shown(before) if before else "",
        "after": shown(after) if after else "",
    }


def shown(item: Json) -> str:
    """YAML of an object without bookkeeping fields, a Secret's values masked."""
    visible = content(item)
    annotations = visible["metadata"].get("annotations") or {}
    if LAST_APPLIED in annotations:
        kept = {name: value for name, value in annotations.items() if name != LAST_APPLIED}
        visible["metadata"] = {**visible["metadata"], "annotations": kept}
    return dump(masked(visible))


def masked(item: Json) -> Json:
    """The object; if it is a Secret, with a mask in place of every value of data and stringData."""
    if item.get("kind") != "Secret" or item.get("apiVersion") != "v1":
        return item
    hidden = dict(item)
    for part in ("data", "stringData"):
        if isinstance(item.get(part), dict):
            hidden[part] = {name: mask(value) for name, value in item[part].items()}
    return hidden


def mask(value: Any) -> str:
    """A stand-in that differs, within this run, exactly when the value differs."""
    digest = hmac.new(_MASK_KEY, str(value).encode(), hashlib.sha256).hexdigest()
    return f"(hidden, {digest[:10]})"
