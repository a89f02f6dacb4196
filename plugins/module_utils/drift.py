# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a live object already say what is wanted, and does our field manager own exactly that? Decided without writing.

``in_sync`` compares a manifest with the live object and its ``metadata.managedFields``. Its yes is certain; its no
only means "ask the server": defaulting, quantities written another way and webhooks are the server's business, so a
server-side dry run has the last word (``same_content``, ``same_ownership``).

FieldsV1 (the format inside managedFields) is a tree: ``f:<name>`` a field, ``k:<json>`` the entry of a list keyed by
these fields, ``v:<json>`` an element of a set, ``.`` the thing itself; an empty tree is a value owned as a whole.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional

Json = Dict[str, Any]

# Not part of anybody's field set: they identify the object.
IDENTITY = ("apiVersion", "kind")
IDENTITY_METADATA = ("name", "namespace")
# Change with every write, and say nothing about what is wanted.
BOOKKEEPING = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")


def in_sync(wanted: Json, live: Json, manager: str) -> bool:
    """True when ``manager`` owns exactly the fields of ``wanted`` and each has the wanted value in ``live``."""
    declared = {name: value for name, value in wanted.items() if name not in IDENTITY}
    metadata = {name: value for name, value in wanted["metadata"].items() if name not in IDENTITY_METADATA}
    declared.pop("metadata")
    if metadata:
        declared["metadata"] = metadata
    owned = owned_fields(live, manager, wanted["apiVersion"])
    if owned is None:
        # A manifest that says nothing but its name leaves no entry in managedFields.
        return not declared
    return _map_matches(declared, live, owned)


def same_content(live: Json, dry_run: Json) -> bool:
    """True when the dry run of a write left the object as it was, whoever owns its fields."""
    return _equal(content(live), content(dry_run))


def same_ownership(live: Json, dry_run: Json, manager: str) -> bool:
    """True when the dry run of a write left ``manager`` with the fields that it owned before."""
    version = dry_run["apiVersion"]
    return owned_fields(live, manager, version) == owned_fields(dry_run, manager, version)


def content(item: Json) -> Json:
    """The object without bookkeeping and status: what a person would call its content."""
    kept = {name: value for name, value in item.items() if name != "status"}
    kept["metadata"] = {name: value for name, value in item["metadata"].items() if name not in BOOKKEEPING}
    return kept


def owned_fields(live: Json, manager: str, api_version: str) -> Optional[Json]:
    """The FieldsV1 tree that ``manager`` owns by server-side apply in this version; None when it never applied."""
    for entry in live["metadata"].get("managedFields") or []:
        if (
            entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
            and entry.get("apiVersion") == api_version
        ):
            return entry.get("fieldsV1") or {}
    return None


def _matches(wanted: Any, live: Any, owned: Json) -> bool:
    if not owned:
        return _equal(wanted, live)
    if isinstance(wanted, dict):
        return isinstance(live, dict) and _map_matches(wanted, live, owned)
    if isinstance(wanted, list):
        return isinstance(live, list) and _list_matches(wanted, live, owned)
    return False


def _map_matches(wanted: Json, live: Json, owned: Json) -> bool:
    names = {name[2:] for name in owned if name.startswith("f:")}
    if names != wanted.keys():
        return False
    return all(name in live and _matches(value, live[name], owned[f"f:{name}"]) for name, value in wanted.items())


def _list_matches(wanted: List[Any], live: List[Any], owned: Json) -> bool:
    entries = {name: tree for name, tree in owned.items() if name != "."}
    if len(entries) != len(wanted):
        return False
    if all(name.startswith("v:") for name in entries):
        values = [json.loads(name[2:]) for name in entries]
        return all(value in values and value in live for value in wanted)
    if not all(name.startswith("k:") for name in entries):
        return False
    keyed = [(json.loads(name[2:]), tree) for name, tree in entries.items()]
    places = [_place(item, live, keyed) for item in wanted]
    # The order of containers, of init containers and of variables that refer to each other means something.
    return -1 not in places and places == sorted(places)


def _place(item: Any, live: List[Any], keyed: List[Any]) -> int:
    """The index in ``live`` of the entry that says what ``item`` wants, or -1.

    A key that the manifest leaves to a default fits any value, as long as only one entry fits.
    """
    if not isinstance(item, dict):
        return -1
    fitting = [
        (keys, tree) for keys, tree in keyed if all(item.get(name, value) == value for name, value in keys.items())
    ]
    if len(fitting) != 1:
        return -1
    keys, tree = fitting[0]
    for index, candidate in enumerate(live):
        if isinstance(candidate, dict) and all(candidate.get(name) == value for name, value in keys.items()):
            return index if _map_matches(item, candidate, tree) else -1
    return -1


def _equal(wanted: Any, live: Any) -> bool:
    """Equality as JSON sees it: True is not 1, though Python says so; 1 and 1.0 are the same number."""
    if isinstance(wanted, bool) or isinstance(live, bool):
        return wanted is live
    if isinstance(wanted, dict) and isinstance(live, dict):
        return wanted.keys() == live.keys() and all(_equal(value, live[name]) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return len(wanted) == len(live) and all(_equal(left, right) for left, right in zip(wanted, live, strict=True))
    return bool(wanted == live)
