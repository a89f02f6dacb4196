# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/2 and gRPC of our own, for one bidirectional service: a general server costs ten times what the EPP does.

``frames`` and ``framing`` know bytes, ``headers`` knows header blocks, ``stream`` one call, ``connection`` one
connection without its socket, ``guard`` what a peer may not do, ``server`` and ``tls`` the rest.
"""

from __future__ import annotations

from epp.transport.h2.server import H2Transport, listen

__all__ = ["H2Transport", "listen"]
