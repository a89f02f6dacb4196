# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes that serve one port, so that a picker can use more than one core (``--workers``).

One process, the parent, decides nothing. It accepts connections and hands each to the worker that has the fewest; it
watches Kubernetes, reads the endpoints' metrics, competes for leadership, answers probes and shows metrics, and it
starts a worker that has ended again. The workers decide. They are the same program, started by the parent with its own
arguments, and tell each other by ``epp.statesync`` what replicas do: requests in flight, and prompts sent where.

``messages`` is what parent and workers say to each other, ``channel`` how it travels; ``parent`` wires the one side of
``crew`` (the processes), ``gate`` (connections), ``hub`` (what the parent knows) and ``pages`` (metrics of all);
``worker`` wires the other side with ``feed`` (what the parent says).
"""

from __future__ import annotations

import os

from epp.config import EndpointPickerConfig
from epp.settings import Settings
from epp.workers import parent, worker
from epp.workers.place import VARIABLE, Place

__all__ = ["run"]


def run(settings: Settings, cfg: EndpointPickerConfig) -> int:
    """Serve as the parent, or as the worker that the parent has started, until told to end; returns the exit status."""
    if text := os.environ.get(VARIABLE):
        return worker.run(settings, cfg, Place.read(text))
    return parent.run(settings, cfg)
