# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tasks in check mode would have made, for the tasks after them.

A set that is applied for real finds the CustomResourceDefinitions of earlier sets on the server. In check mode they are
not there, or not yet as they would be. So what an earlier task says of the kinds that it would define or change is kept
beside the other temporary files of the run, which Ansible deletes at its end. Each host, and each cluster that it talks
to, has a file of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, List

from ansible import constants as C

Json = Dict[str, Any]


class Foreseen:
    """The kinds that earlier tasks of ``host`` would have brought to the cluster that ``login`` leads to.

    A kind is a dictionary with ``api_version``, ``kind``, ``plural`` and ``namespaced``.
    """

    def __init__(self, host: str, login: Json) -> None:
        digest = hashlib.sha256(json.dumps([host, login], sort_keys=True, default=str).encode()).hexdigest()
        self._path = os.path.join(str(C.DEFAULT_LOCAL_TMP), f"inferops-foreseen-{digest}.json")

    def kinds(self) -> List[Json]:
        """All that is known so far."""
        try:
            with open(self._path, encoding="utf-8") as stream:
                found: List[Json] = json.load(stream)
        except FileNotFoundError:
            return []
        return found

    def add(self, kinds: List[Json]) -> None:
        """Remember more kinds."""
        if not kinds:
            return
        known = {(kind["api_version"], kind["kind"]): kind for kind in [*self.kinds(), *kinds]}
        with open(self._path, "w", encoding="utf-8") as stream:
            json.dump(list(known.values()), stream)
