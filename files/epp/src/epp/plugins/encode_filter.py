# SPDX-License-Identifier: GPL-3.0-or-later
"""encode-filter: keeps endpoints that can encode.

Parameters: none.
Formula: the pod label ``llm-d.ai/role`` is one of encode, encode-prefill, encode-prefill-decode;
unlabelled ones are left out.
Source: llm-d-router (and llm-d-inference-scheduler 0.4) filter of the same type.
"""

from __future__ import annotations

from epp.plugins.role_filters import RoleFilter


class EncodeFilter(RoleFilter):
    """Keeps those that can encode."""

    TYPE = "encode-filter"
    ROLES = frozenset({"encode", "encode-prefill", "encode-prefill-decode"})
