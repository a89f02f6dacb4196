# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module of ours in the worker of its task, where that comes to the same.

Packing a module, and starting a Python process that unpacks and compiles it again, takes longer than most sets need. A
module that would run on the controller with the controller's own Python needs none of that: its work is called here, on
the same options checked by the same argument spec. Everywhere else (another host, another Python, another user, async)
the module runs as modules do.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.errors import UnsupportedError
from ansible.utils.display import Display

from ansible_collections.inferops.cluster.plugins.module_utils.session import credentials

Json = Dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A module: its name, its argument spec with the rules between options, and its work.

    ``perform`` takes parameters, check mode and diff mode, and gives results with ``failed`` and ``warnings``.
    """

    name: str
    spec: Json
    rules: Json
    perform: Callable[[Json, bool, bool], Json]

    def execute(self, action: Any, args: Json, task_vars: Optional[Json]) -> Json:
        """Run it for an action plugin: what ``_execute_module`` would return."""
        if not runs_here(action, task_vars or {}):
            result: Json = action._execute_module(
                self.name, args, task_vars=task_vars, wrap_async=action._task.async_val
            )
            return result
        environment: Json = {}
        action._compute_environment_string(environment)
        # Workers are processes of their own, so this lasts as long as the task.
        os.environ.update({name: str(value) for name, value in environment.items()})
        checked = ArgumentSpecValidator(self.spec, **self.rules).validate(plain(args))
        if checked.error_messages:
            return {"failed": True, "msg": self._refusal(checked.errors)}
        return self._performed(action, checked.validated_parameters)

    def _refusal(self, errors: Any) -> str:
        """All that is wrong with the options, in the words that modules use."""
        unknown = f"Unsupported parameters for ({self.name}) module: "
        return "; ".join((unknown if isinstance(error, UnsupportedError) else "") + error.msg for error in errors)

    def _performed(self, action: Any, params: Json) -> Json:
        results = self.perform(params, bool(action._task.check_mode), bool(action._task.diff))
        secrets = credentials(params)
        if secrets:
            results = remove_values(results, secrets)
        for warning in results.pop("warnings"):
            Display().warning(warning)
        if not results["failed"]:
            del results["failed"]
        return results


def runs_here(action: Any, task_vars: Json) -> bool:
    """Would the module run as this user with this Python on this machine?"""
    if action._task.async_val or action._connection.transport != "local" or action._connection.become is not None:
        return False
    interpreter = task_vars.get("ansible_python_interpreter")
    if interpreter is None:
        return True
    wanted = str(action._templar.template(interpreter))
    return wanted.startswith("auto") or _same_python(wanted, sys.executable)


def _same_python(one: str, other: str) -> bool:
    """Do both paths lead to one interpreter of one environment?

    Virtual environments share the interpreter that they were made from; they differ by their folders.
    """
    folders = {os.path.realpath(os.path.dirname(path)) for path in (one, other)}
    return len(folders) == 1 and os.path.realpath(one) == os.path.realpath(other)


def plain(value: Any) -> Any:
    """Options as a module gets them: JSON's types alone, without tags, and with vaulted strings decrypted."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {str(name): plain(member) for name, member in value.items()}
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(member) for member in value]
    return str(value)
