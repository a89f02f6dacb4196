# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what each task returned to the file that TASK_RESULTS names."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_results
type: aggregate
short_description: Results of tasks, as JSON
description: For tests; the file is named by the environment variable TASK_RESULTS.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_results"

    def __init__(self) -> None:
        super().__init__()
        self._tasks: list[dict[str, Any]] = []

    def v2_runner_on_ok(self, result: Any) -> None:
        self._ended(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._ended(result, "failed")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._ended(result, "skipped")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        with open(os.environ["TASK_RESULTS"], "w", encoding="utf-8") as stream:
            json.dump(self._tasks, stream, default=str)

    def _ended(self, result: Any, outcome: str) -> None:
        self._tasks.append({"task": result.task.get_name(), "outcome": outcome, "result": dict(result.result)})
