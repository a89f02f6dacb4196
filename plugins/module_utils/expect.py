# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the caller waits for: conditions and fields of an object, instead of what its kind customarily means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.jsonpath import Steps, as_text, find, parse
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import (
    READY,
    State,
    behind,
    condition_state,
    leaving,
    readiness,
)

Json = Dict[str, Any]

# The options ``conditions`` and ``jsonpath``, as every module that waits has them.
EXPECTATION: Dict[str, Any] = {
    "conditions": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "type": {"type": "str", "required": True},
            "status": {"type": "str", "choices": ["True", "False", "Unknown"], "default": "True"},
            "reason": {"type": "str"},
        },
    },
    "jsonpath": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"path": {"type": "str", "required": True}, "value": {"type": "raw"}},
    },
}


@dataclass(frozen=True)
class Expectation:
    """All of these must hold. Without any, the object must be ready as its kind customarily is."""

    conditions: Tuple[Tuple[str, str, str], ...] = ()  # type, status, reason (empty for any)
    fields: Tuple[Tuple[str, Steps, Optional[str]], ...] = ()  # path as written, its steps, wanted text (None for any)

    def judge(self, item: Json) -> State:
        """The state of a live object."""
        if not self.conditions and not self.fields:
            return readiness(item)
        if item["metadata"].get("deletionTimestamp"):
            return State(False, leaving(item))
        status = item.get("status")
        late = behind(item) if isinstance(status, dict) and "observedGeneration" in status else None
        if late:
            return late
        present = (status or {}).get("conditions") if isinstance(status, dict) else None
        for name, wanted, reason in self.conditions:
            state = condition_state(item, present if isinstance(present, list) else [], name, wanted, reason)
            if not state.ready:
                return state
        for path, steps, text in self.fields:
            state = _field(item, path, steps, text)
            if not state.ready:
                return state
        return READY


def expectation(entry: Mapping[str, Any]) -> Expectation:
    """From the options ``conditions`` and ``jsonpath``. Raises InputError for paths that cannot be read."""
    return Expectation(
        tuple(
            (condition["type"], condition.get("status") or "True", condition.get("reason") or "")
            for condition in entry.get("conditions") or []
        ),
        tuple(
            (field["path"], parse(field["path"]), None if field.get("value") is None else as_text(field["value"]))
            for field in entry.get("jsonpath") or []
        ),
    )


def refuse_empty(entries: Iterable[Mapping[str, Any]], option: str) -> None:
    """Raise InputError when an entry expects nothing."""
    for index, entry in enumerate(entries):
        if not entry.get("conditions") and not entry.get("jsonpath"):
            raise InputError(f"{option}[{index}] expects nothing: give conditions or jsonpath")


def _field(item: Json, path: str, steps: Steps, wanted: Optional[str]) -> State:
    values: List[Any] = [value for value in find(steps, item) if value is not None]
    if not values or (wanted is None and all(value in ("", [], {}) for value in values)):
        return State(False, f"{path} is not set yet")
    actual = [as_text(value) for value in values]
    if wanted is not None and any(text != wanted for text in actual):
        if item["kind"] == "Secret":
            return State(False, f"{path} has another value than the one that is waited for")
        return State(False, f"{path} is {', '.join(actual)}, not {wanted}")
    return READY
