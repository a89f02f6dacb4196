# SPDX-License-Identifier: GPL-3.0-or-later
"""prefill-filter: keeps endpoints that can prefill.

Parameters: none.
Formula: the pod label ``llm-d.ai/role`` is one of prefill, encode-prefill, prefill-decode, both,
encode-prefill-decode; unlabelled ones are left out.
Source: llm-d-router (and llm-d-inference-scheduler 0.4) filter of the same type.
"""

from __future__ import annotations

from epp.plugins.role_filters import RoleFilter


class PrefillFilter(RoleFilter):
    """Keeps those that can prefill."""

    TYPE = "prefill-filter"
    ROLES = frozenset({"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"})
