# SPDX-License-Identifier: GPL-3.0-or-later
"""Which adapter belongs to which base model, as ConfigMaps say.

A ConfigMap with one of the labels below has the keys ``baseModel`` (a name) and ``adapters`` (a YAML list of names); or
one key ``config`` with both in it. Several may tell of the same base model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from epp.datalayer.kubernetes import KubeClient, Reflector

log = logging.getLogger(__name__)

LABELS = ("inference.llm-d.ai/ipp-managed", "inference.networking.k8s.io/bbr-managed")
"""Labels, each ``true``, of ConfigMaps that are read: llm-d's, and GAIE's."""


@dataclass(frozen=True)
class ModelFamily:
    """What one ConfigMap says."""

    base: str
    adapters: frozenset[str]


def model_family(data: Mapping[str, Any]) -> ModelFamily:
    """From the data of a ConfigMap. Raises ValueError for one that says nothing usable."""
    fields: Mapping[str, Any] = data
    if "config" in data and "baseModel" not in data:
        fields = _yaml(data["config"], "config")
        if not isinstance(fields, dict):
            raise ValueError("config is no YAML object")
    base = fields.get("baseModel")
    if not isinstance(base, str) or not base.strip():
        raise ValueError("baseModel is missing; name the base model")
    adapters = fields.get("adapters") or []
    if isinstance(adapters, str):
        adapters = _yaml(adapters, "adapters") or []
    if not isinstance(adapters, list) or not all(isinstance(each, str) for each in adapters):
        raise ValueError("adapters is no YAML list of names")
    return ModelFamily(base.strip(), frozenset(each.strip() for each in adapters if each.strip()))


def _yaml(text: Any, key: str) -> Any:
    try:
        return yaml.safe_load(str(text))
    except yaml.YAMLError as error:
        raise ValueError(f"{key} is no YAML: {error}") from None


class Adapters:
    """Adapters to their base models, and the base models to themselves."""

    def __init__(self) -> None:
        self._families: dict[str, ModelFamily] = {}
        self._bases: dict[str, str] = {}

    def base_of(self, model: str) -> str:
        """The base model of an adapter, or of a base model; empty for a name that no ConfigMap has."""
        return self._bases.get(model.strip(), "")

    def put(self, name: str, family: ModelFamily | None) -> None:
        """What the ConfigMap of that name says now; None when it is gone."""
        if family is None:
            self._families.pop(name, None)
        else:
            self._families[name] = family
        bases = {family.base: family.base for family in self._families.values()}
        # Of two that claim the same adapter, the one whose name comes first has it.
        for _, each in sorted(self._families.items(), reverse=True):
            bases.update(dict.fromkeys(each.adapters, each.base))
        self._bases = bases

    def names(self) -> set[str]:
        """The ConfigMaps that are known."""
        return set(self._families)


class AdapterWatcher:
    """Keeps :class:`Adapters` equal to the ConfigMaps of a namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.adapters = Adapters()
        self._namespace = namespace
        self._listed: set[str] = set()
        self._reflectors = [self._reflector(client, label) for label in LABELS]

    @property
    def synced(self) -> bool:
        """Everything has been read once."""
        return len(self._listed) == len(LABELS)

    def problem(self) -> str:
        """What is wrong now; empty when all is well."""
        return next((each.problem for each in self._reflectors if each.problem), "")

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())

    def _reflector(self, client: KubeClient, label: str) -> Reflector:
        def listed(items: list[dict[str, Any]]) -> None:
            present = {f"{label} {_name(item)}" for item in items}
            for name in self.adapters.names() - present:
                if name.startswith(f"{label} "):
                    self.adapters.put(name, None)
            for item in items:
                changed("ADDED", item)
            self._listed.add(label)

        def changed(kind: str, item: dict[str, Any]) -> None:
            name = f"{label} {_name(item)}"
            if kind == "DELETED":
                self.adapters.put(name, None)
                return
            try:
                self.adapters.put(name, model_family(item.get("data") or {}))
            except ValueError as error:
                log.error("ConfigMap %s/%s is not used: %s", self._namespace, _name(item), error)
                self.adapters.put(name, None)

        path = f"/api/v1/namespaces/{self._namespace}/configmaps"
        return Reflector(client, path, {"labelSelector": f"{label}=true"}, listed, changed)


def _name(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name", ""))
