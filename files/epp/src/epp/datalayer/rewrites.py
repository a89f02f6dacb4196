# SPDX-License-Identifier: GPL-3.0-or-later
"""The models that InferenceModelRewrites send requests to.

For a model, a rule that names it goes before one that is for all; among these the older object, then the earlier rule.
The targets of a rule are drawn by their weights.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from epp.datalayer.custom import Item, Resources
from epp.datalayer.kubernetes import KubeClient

RESOURCE = "inferencemodelrewrites"


@dataclass(frozen=True)
class _Rule:
    """One rule: its object's name, the models that it is for (empty: all), what it sends them to, how often."""

    name: str
    models: frozenset[str]
    targets: tuple[str, ...]
    weights: tuple[float, ...]


class Rewrites:
    """Model to target model, per pool."""

    def __init__(self, client: KubeClient, namespace: str, pool_group: str, seed: int | None = None) -> None:
        """``namespace`` is that of the pools; ``seed`` makes the draws repeatable."""
        self._resources = Resources(client, namespace, RESOURCE, pool_group, self._changed)
        self._random = random.Random(seed)
        self._exact: dict[tuple[str, str], _Rule] = {}
        self._generic: dict[str, _Rule] = {}

    def target(self, pool: str, model: str) -> tuple[str, str] | None:
        """Name of the object that decides, and the model that the request goes to; None when no rule is for it."""
        rule = self._exact.get((pool, model)) or self._generic.get(pool)
        if rule is None:
            return None
        return rule.name, self._random.choices(rule.targets, rule.weights)[0]

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._resources.run()

    def _changed(self) -> None:
        self._exact, self._generic = {}, {}
        for item in sorted(self._resources.items.values(), key=_age):
            pool = self._resources.pool(item)
            for rule in _rules(item):
                for model in rule.models:
                    self._exact.setdefault((pool, model), rule)
                if not rule.models:
                    self._generic.setdefault(pool, rule)


def _age(item: Item) -> tuple[str, str]:
    metadata = item.get("metadata") or {}
    # Times of the API server are in one form and zone, so that they sort as text.
    return str(metadata.get("creationTimestamp", "")), str(metadata.get("name", ""))


def _rules(item: Item) -> Iterator[_Rule]:
    """The rules that can be followed; the API server's schema refuses others, where it has one."""
    name = str((item.get("metadata") or {}).get("name", ""))
    for rule in (item.get("spec") or {}).get("rules") or []:
        matches = [(match or {}).get("model") or {} for match in rule.get("matches") or []]
        models = frozenset(_exact(match) for match in matches)
        targets = [each for each in rule.get("targets") or [] if each.get("modelRewrite")]
        weights = tuple(float(each.get("weight", 1)) for each in targets)
        if targets and "" not in models:
            # Weights of 0 for all of them leave nothing to prefer one by.
            drawn = weights if any(weights) else tuple(1.0 for _ in weights)
            yield _Rule(name, models, tuple(str(each["modelRewrite"]) for each in targets), drawn)


def _exact(match: Mapping[str, Any]) -> str:
    """The model that a match names; empty for a kind of match that this version does not know."""
    return str(match.get("value", "")) if match.get("type", "Exact") == "Exact" else ""
