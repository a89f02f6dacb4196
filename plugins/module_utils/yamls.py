# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML text to JSON-like Python values, with the C parser when there is one; errors name file, document and line."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Iterator, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError

try:
    import yaml
except ImportError:  # ansible-core itself needs PyYAML; a remote interpreter may lack it
    yaml = None  # type: ignore[assignment]

# Kubernetes reads YAML into JSON: a timestamp stays a string there, and a plain `=` (enums of some CRDs) is one too.
NOT_IN_JSON = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")


@lru_cache(maxsize=1)
def _loader() -> Any:
    if yaml is None:
        raise InputError("the Python library PyYAML is missing for the interpreter that runs this module: install it")
    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in NOT_IN_JSON]
        for first, rules in base.yaml_implicit_resolvers.items()
    }
    return type("KubernetesLoader", (base,), {"yaml_implicit_resolvers": resolvers})


def load_one(text: str, where: str) -> Any:
    """The single document in ``text``. Raises InputError that names ``where`` and the line."""
    loader = _loader()
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {_problem(error)}") from error


def load_documents(text: str, where: str) -> Iterator[Tuple[int, Any]]:
    """Each non-empty document of ``text`` with its number, counted from 1 as ``---`` separates them."""
    loader = _loader()
    number = 0
    try:
        for document in yaml.load_all(text, Loader=loader):
            number += 1
            if document is not None:
                yield number, document
    except yaml.YAMLError as error:
        raise InputError(f"{where}, document {number + 1}, is not valid YAML: {_problem(error)}") from error


def dump(value: Any) -> str:
    """Block-style YAML with sorted keys, as diffs show it."""
    _loader()
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(value, Dumper=dumper, default_flow_style=False, sort_keys=True, allow_unicode=True)


def _problem(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + (getattr(error, "problem", None) or str(error))
