# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSONPath that ``kubectl wait --for=jsonpath`` is used with: fields, indexes, wildcards, filters by equality.

``{.status.conditions[?(@.type=="Ready")].status}``, with or without braces and a leading ``$``. A backslash keeps the
dots of a name together: ``.metadata.labels.app\\.kubernetes\\.io/name``; so do brackets: ``.metadata.labels['a.b']``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, List, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError

FIELD = re.compile(r"\.((?:\\.|[^.\[\]\\{}\s])+)")
WILDCARD = re.compile(r"\[\*\]|\.\*(?=[.\[]|$)")
INDEX = re.compile(r"\[(-?\d+)\]")
QUOTED = re.compile(r"\[(?:'([^']*)'|\"([^\"]*)\")\]")
FILTER = re.compile(r"\[\?\(\s*@(?P<path>[^=!\s]*)\s*(?P<sign>==|!=)\s*(?P<value>\"[^\"]*\"|'[^']*'|[^\s\"')]+)\s*\)\]")


@dataclass(frozen=True)
class Filter:
    """Keep the entries of a list in which ``path`` has (or with ``unlike``, has not) this text."""

    path: Tuple[Any, ...]
    text: str
    unlike: bool


EVERY = object()
Steps = Tuple[Any, ...]  # of str (a field), int (an index), EVERY and Filter


def parse(expression: str) -> Steps:
    """The steps of a path. Raises InputError that says where it cannot be read."""
    text = expression.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    text = text[1:] if text.startswith("$") else text
    if text and text[0] not in ".[":
        text = f".{text}"
    steps: List[Any] = []
    place = 0
    while place < len(text):
        step, place = _step(text, place, expression)
        steps.append(step)
    if not steps:
        raise InputError(f"the JSONPath {expression!r} is empty: write something like .status.phase")
    return tuple(steps)


def _step(text: str, place: int, expression: str) -> Tuple[Any, int]:
    for pattern in (WILDCARD, FIELD, INDEX, QUOTED, FILTER):
        match = pattern.match(text, place)
        if not match:
            continue
        if pattern is WILDCARD:
            return EVERY, match.end()
        if pattern is INDEX:
            return int(match[1]), match.end()
        if pattern is FILTER:
            value = match["value"].strip("\"'")
            return Filter(parse(match["path"]), value, match["sign"] == "!="), match.end()
        name = match[1] if match[1] is not None else match[2]
        return re.sub(r"\\(.)", r"\1", name) if pattern is FIELD else name, match.end()
    raise InputError(
        f"the JSONPath {expression!r} cannot be read from {text[place:]!r} on: use fields (.a or ['a']), indexes "
        '([0]), [*] and filters ([?(@.type=="Ready")])'
    )


def find(steps: Steps, value: Any) -> List[Any]:
    """All values that the path leads to, in order; none where it leads nowhere."""
    found = [value]
    for step in steps:
        found = [deeper for item in found for deeper in _follow(step, item)]
    return found


def _follow(step: Any, item: Any) -> List[Any]:
    if step is EVERY:
        return list(item.values()) if isinstance(item, dict) else list(item) if isinstance(item, list) else []
    if isinstance(step, Filter):
        return [entry for entry in item if _kept(step, entry)] if isinstance(item, list) else []
    if isinstance(step, int):
        return [item[step]] if isinstance(item, list) and -len(item) <= step < len(item) else []
    return [item[step]] if isinstance(item, dict) and step in item else []


def _kept(condition: Filter, entry: Any) -> bool:
    values = find(condition.path, entry)
    return any(as_text(value) == condition.text for value in values) is not condition.unlike


def as_text(value: Any) -> str:
    """How values are compared: strings as they are, the rest as JSON writes it (``true``, ``3``)."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
