# SPDX-License-Identifier: GPL-3.0-or-later
"""decode-filter: keeps endpoints that can decode.

Parameters: none.
Formula: the pod label ``llm-d.ai/role`` is one of decode, prefill-decode, both,
encode-prefill-decode; or there is none.
Source: llm-d-router (and llm-d-inference-scheduler 0.4) filter of the same type.
"""

from __future__ import annotations

from epp.plugins.role_filters import RoleFilter


class DecodeFilter(RoleFilter):
    """Keeps those that can decode."""

    TYPE = "decode-filter"
    ROLES = frozenset({"decode", "prefill-decode", "both", "encode-prefill-decode"})
    UNLABELLED = True
