# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of cluster_wait: progress."""

from __future__ import annotations

from typing import Any, Dict, Optional

from ansible.plugins.action import ActionBase

from ansible_collections.inferops.cluster.plugins.modules import cluster_wait
from ansible_collections.inferops.cluster.plugins.plugin_utils import progress
from ansible_collections.inferops.cluster.plugins.plugin_utils.direct import Program

Json = Dict[str, Any]
WAITER = Program("inferops.cluster.cluster_wait", cluster_wait.argument_spec(), {}, cluster_wait.perform)
ADDED = ("reason", "final", "details")  # to the entries of `unmet`


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module in parts, with a line about what it waits for after each."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: Any = None, task_vars: Optional[Json] = None) -> Json:
        """Wait for all that the task names. An entry that was as wanted once is not looked at again."""
        result: Json = super().run(tmp, task_vars)
        timeout = progress.seconds(self._task.args)
        if self._task.async_val or timeout is None:
            result.update(WAITER.execute(self, self._task.args, task_vars))
            return result
        clock = progress.Clock(timeout)
        args = {**self._task.args, "wait_timeout": clock.part()}
        last: Json = WAITER.execute(self, args, task_vars)
        objects = last.get("objects") or []
        while progress.unmet(last) and clock.left():
            progress.tell(self._subject(task_vars), last, len(objects), clock.elapsed)
            waiting = [index for index, entry in enumerate(objects) if not entry["ready"]]
            args = {**args, "objects": [self._given(entry) for entry in last["waited"]["unmet"]]}
            last = WAITER.execute(self, {**args, "wait_timeout": clock.part()}, task_vars)
            for index, entry in zip(waiting, last.get("objects") or [], strict=False):
                objects[index] = entry
        if "waited" in last:
            progress.retold(last, len(objects), clock.elapsed)
        result.update({**last, "objects": objects} if objects else last)
        return result

    def _subject(self, task_vars: Optional[Json]) -> str:
        host = (task_vars or {}).get("inventory_hostname", "")
        return f"[{host}] waiting"

    @staticmethod
    def _given(entry: Json) -> Json:
        """An entry of ``unmet`` as an entry of the option ``objects``."""
        return {name: value for name, value in entry.items() if value is not None and name not in ADDED}
