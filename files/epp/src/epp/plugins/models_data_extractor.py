# SPDX-License-Identifier: GPL-3.0-or-later
"""models-data-extractor: takes the models from what models-data-source reads.

Parameters: none.
Source: llm-d-router extractor of the same type.
"""

from __future__ import annotations

from epp.scheduling.api import Extractor


class ModelsDataExtractor(Extractor):
    """Done by the data layer."""

    TYPE = "models-data-extractor"
