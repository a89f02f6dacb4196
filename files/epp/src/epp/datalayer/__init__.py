# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the endpoints: where they are, what they say of themselves, what was sent to them.

All state that more than one request sees lives here. Nothing here decides anything.
"""

from __future__ import annotations

from epp.datalayer.file import EndpointsFile
from epp.datalayer.models import ModelsReader
from epp.datalayer.pool import PoolWatcher
from epp.datalayer.scrape import ScrapeOptions, Scraper
from epp.datalayer.selector import SelectorWatcher
from epp.datalayer.store import Datastore, Source

__all__ = [
    "Datastore",
    "EndpointsFile",
    "ModelsReader",
    "PoolWatcher",
    "ScrapeOptions",
    "Scraper",
    "SelectorWatcher",
    "Source",
]
