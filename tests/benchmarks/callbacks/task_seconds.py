# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes how long each task took, and whether it changed something, to the file that TASK_SECONDS names."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_seconds
type: aggregate
short_description: Seconds of each task, as JSON
description: For benchmarks; the file is named by the environment variable TASK_SECONDS.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_seconds"

    def __init__(self) -> None:
        super().__init__()
        self._started = 0.0
        self._tasks: list[dict[str, Any]] = []

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._started = time.perf_counter()

    def v2_runner_on_ok(self, result: Any) -> None:
        self._ended(result, failed=False)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._ended(result, failed=True)

    def _ended(self, result: Any, failed: bool) -> None:
        data = getattr(result, "result", None) or result._result
        entry = {"seconds": time.perf_counter() - self._started, "changed": bool(data.get("changed"))}
        self._tasks.append({**entry, "failed": failed, "msg": str(data.get("msg", ""))})

    def v2_playbook_on_stats(self, stats: Any) -> None:
        with open(os.environ["TASK_SECONDS"], "w", encoding="utf-8") as file:
            json.dump(self._tasks, file)
