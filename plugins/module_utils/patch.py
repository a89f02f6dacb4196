# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Adjust somebody else's manifests: leave objects out, and merge patches into them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Dict, Iterable, List, Mapping

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError

Json = Dict[str, Any]

SELECTOR_KEYS = ("kind", "api_group", "name", "namespace")


def exclude(items: Iterable[Json], selectors: Iterable[Mapping[str, Any]]) -> List[Json]:
    """The objects that none of ``selectors`` matches."""
    chosen = list(selectors)
    refuse_empty(chosen, "exclude")
    return [item for item in items if not any(matches(item, selector) for selector in chosen)]


def patch_all(items: Iterable[Json], patches: Iterable[Mapping[str, Any]]) -> List[Json]:
    """The objects with every matching patch merged in, in order. A patch that matches nothing is an error."""
    result = list(items)
    chosen = list(patches)
    refuse_empty(chosen, "patches")
    for index, entry in enumerate(chosen):
        hits = [number for number, item in enumerate(result) if matches(item, entry)]
        if not hits:
            wanted = ", ".join(f"{name}={entry[name]}" for name in SELECTOR_KEYS if entry.get(name))
            raise InputError(f"patches[{index}] matches no object of the set ({wanted}): correct or remove it")
        for number in hits:
            result[number] = merge(result[number], entry["patch"])
    return result


def matches(item: Json, selector: Mapping[str, Any]) -> bool:
    """True when every key the selector gives (a glob, case-sensitive) fits the object."""
    actual = {
        "kind": item["kind"],
        "api_group": item["apiVersion"].rpartition("/")[0],
        "name": item["metadata"]["name"],
        "namespace": item["metadata"].get("namespace") or "",
    }
    return all(
        fnmatchcase(actual[name], str(selector[name])) for name in SELECTOR_KEYS if selector.get(name) is not None
    )


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386: maps merge, null deletes, the rest replaces); lists of named maps merge by name."""
    if isinstance(patch, dict):
        result = dict(target) if isinstance(target, dict) else {}
        for name, value in patch.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = merge(result.get(name), value)
        return result
    if _named(patch) and _named(target):
        return _merge_named(target, patch)
    return patch


def _merge_named(target: List[Json], patch: List[Json]) -> List[Json]:
    changes = {entry["name"]: entry for entry in patch}
    merged = [merge(entry, changes.pop(entry["name"], {})) for entry in target]
    return merged + [merge({}, entry) for entry in changes.values()]


def _named(value: Any) -> bool:
    """A non-empty list whose entries are all maps with a ``name``."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "name" in item for item in value)


def refuse_empty(selectors: List[Mapping[str, Any]], option: str) -> None:
    """Raise InputError when a selector would match everything."""
    for index, selector in enumerate(selectors):
        if all(selector.get(name) is None for name in SELECTOR_KEYS):
            raise InputError(f"{option}[{index}] selects nothing: give one of {', '.join(SELECTOR_KEYS)}")
