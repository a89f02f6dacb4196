# SPDX-License-Identifier: GPL-3.0-or-later
"""What replicas of one EPP tell each other: requests in flight, and prompts that they have sent where.

Replicas are active-active. Each knows the endpoints and their metrics by itself, so nothing breaks when peers are
silent: they only know less. ``messages`` is what is said, ``ledger`` what it means (no I/O), ``peers`` how it travels.
"""

from __future__ import annotations

from epp.statesync.ledger import Ledger
from epp.statesync.peers import PeersOptions, StateSync

__all__ = ["Ledger", "PeersOptions", "StateSync"]
