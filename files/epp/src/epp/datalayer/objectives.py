# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cluster says of requests: their priorities, and the models that are asked for in place of others.

========================  ==========================================================================================
InferenceObjective        the priority of requests that name it in a header
InferenceModelRewrite     rules, each for some models or for all, with one or more models to ask for instead
InferenceModel            the older resource (v1alpha2): priority by criticality, and models to ask for instead
========================  ==========================================================================================

For a model these count, the first that is there: a rewrite's rule for just this model; an InferenceModel; a rewrite's
rule for all models. Among rules of a kind the one of the older resource counts, and within a resource the first one.
Source: GAIE v1.3 and llm-d-router for the first two, GAIE v0.5 for the third.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

from epp.datalayer.kubernetes import KubeClient
from epp.datalayer.resources import Object, Resource, age_of, name_of, pool_of, spec_of

GROUPS = ("llm-d.ai/v1alpha2", "inference.networking.x-k8s.io/v1alpha2")
OBJECTIVES, REWRITES, MODELS = "inferenceobjectives", "inferencemodelrewrites", "inferencemodels"
KINDS = {OBJECTIVES: GROUPS, REWRITES: GROUPS, MODELS: GROUPS[1:]}
"""The resources, and the groups that may have them."""
CRITICALITY = {"Critical": 1, "Standard": 0, "Sheddable": -1}
"""Priority by the criticality of an InferenceModel; Standard when it has none."""


@dataclass(frozen=True)
class Rewrite:
    """One model for another."""

    resource: str
    """Name of the object that says so; empty for an InferenceModel, which the reference does not count as a rewrite."""
    target: str


@dataclass(frozen=True)
class _Rule:
    """Models to ask for, chosen by weight."""

    resource: str
    targets: tuple[str, ...]
    bounds: tuple[int, ...]
    """Sums of the weights so far."""

    def choose(self, rng: random.Random) -> Rewrite:
        """One of them."""
        if len(self.targets) == 1:
            return Rewrite(self.resource, self.targets[0])
        (target,) = rng.choices(self.targets, cum_weights=self.bounds)
        return Rewrite(self.resource, target)


@dataclass
class _Pool:
    """What counts for one pool."""

    priorities: dict[str, int] = field(default_factory=dict)
    """By objective."""
    exact: dict[str, _Rule] = field(default_factory=dict)
    """By model."""
    models: dict[str, _Rule] = field(default_factory=dict)
    """By model, of InferenceModels."""
    criticality: dict[str, int] = field(default_factory=dict)
    """By model."""
    generic: _Rule | None = None


class Objectives:
    """Priorities and rewrites of all pools of a namespace."""

    def __init__(self, client: KubeClient | None, namespace: str, seed: int | None = None) -> None:
        """``namespace`` is that of the pools, and so of what refers to them; ``seed`` makes weighted choices
        repeatable. Without a client somebody else watches, and says with :meth:`take` what there is."""
        self._rng = random.Random(seed)
        self._objects: dict[str, Mapping[str, Object]] = {}
        self._pools: dict[str, _Pool] = {}
        self._taken: list[Callable[[str, Mapping[str, Object]], None]] = []
        self._resources = tuple(
            Resource(client, namespace, kind, groups, partial(self.take, kind))
            for kind, groups in KINDS.items()
            if client is not None
        )

    def on_taken(self, callback: Callable[[str, Mapping[str, Object]], None]) -> None:
        """Call ``callback`` with whatever is taken."""
        self._taken.append(callback)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for resource in self._resources:
                group.create_task(resource.run())

    def of_pool(self, pool: str) -> PoolObjectives:
        """Those that count for one pool."""
        return PoolObjectives(self, pool)

    def priority(self, pool: str, objective: str, model: str) -> int:
        """The priority of a request for this model that names this objective (empty for none); 0 if nothing is said."""
        known = self._pools.get(pool)
        if known is None:
            return 0
        found = known.priorities.get(objective)
        return known.criticality.get(model, 0) if found is None else found

    def rewrite(self, pool: str, model: str) -> Rewrite | None:
        """The model to ask for in place of ``model``; None for itself."""
        known = self._pools.get(pool)
        if known is None or not model:
            return None
        rule = known.exact.get(model) or known.models.get(model) or known.generic
        return rule.choose(self._rng) if rule is not None else None

    def take(self, kind: str, objects: Mapping[str, Object]) -> None:
        """These are all objects of one of the KINDS now."""
        self._objects[kind] = objects
        self._compile()
        for callback in self._taken:
            callback(kind, objects)

    def _all(self, kind: str) -> Iterable[Object]:
        return self._objects.get(kind, {}).values()

    def _compile(self) -> None:
        """Turn all objects into what a request can be looked up in."""
        pools: dict[str, _Pool] = {}
        for item in self._all(OBJECTIVES):
            priority = spec_of(item).get("priority")
            _pool(pools, item).priorities[name_of(item)] = priority if isinstance(priority, int) else 0
        for item in sorted(self._all(REWRITES), key=age_of):
            _add_rewrite(_pool(pools, item), item)
        for item in sorted(self._all(MODELS), key=age_of):
            _add_model(_pool(pools, item), item)
        pools.pop("", None)
        self._pools = pools


@dataclass(frozen=True)
class PoolObjectives:
    """Priorities and rewrites of one pool."""

    _objectives: Objectives
    _pool: str

    def priority(self, objective: str, model: str) -> int:
        """As :meth:`Objectives.priority`."""
        return self._objectives.priority(self._pool, objective, model)

    def rewrite(self, model: str) -> Rewrite | None:
        """As :meth:`Objectives.rewrite`."""
        return self._objectives.rewrite(self._pool, model)


def _pool(pools: dict[str, _Pool], item: Object) -> _Pool:
    return pools.setdefault(pool_of(item), _Pool())


def _add_rewrite(pool: _Pool, item: Object) -> None:
    for each in _maps(spec_of(item).get("rules")):
        rule = _rule(name_of(item), each.get("targets"), "modelRewrite")
        if rule is None:
            continue
        matches = each.get("matches")
        if not matches:
            pool.generic = pool.generic or rule
        for match in _maps(matches):
            model = match.get("model")
            if isinstance(model, Mapping) and model.get("type", "Exact") == "Exact" and model.get("value"):
                pool.exact.setdefault(str(model["value"]), rule)


def _add_model(pool: _Pool, item: Object) -> None:
    spec = spec_of(item)
    model = str(spec.get("modelName") or "")
    if not model or model in pool.criticality:
        return
    pool.criticality[model] = CRITICALITY.get(str(spec.get("criticality") or "Standard"), 0)
    rule = _rule("", spec.get("targetModels"), "name")
    if rule is not None:
        pool.models[model] = rule


def _rule(resource: str, targets: object, key: str) -> _Rule | None:
    """A rule with these targets; None when there is none to choose."""
    pairs = [(str(each[key]), _weight(each)) for each in _maps(targets) if each.get(key)]
    if not any(weight for _, weight in pairs):
        pairs = [(name, 1) for name, _ in pairs]
    pairs = [(name, weight) for name, weight in pairs if weight]
    if not pairs:
        return None
    return _Rule(resource, tuple(name for name, _ in pairs), tuple(accumulate(weight for _, weight in pairs)))


def _weight(target: Object) -> int:
    """The target's weight; 1 when it has none, as then none has."""
    weight = target.get("weight")
    return max(0, weight) if isinstance(weight, int) else 1


def _maps(value: object) -> Iterator[Mapping[str, Any]]:
    """The maps in a list; whatever else an object has there is passed over."""
    items: Sequence[object] = value if isinstance(value, list) else ()
    return (each for each in items if isinstance(each, Mapping))
