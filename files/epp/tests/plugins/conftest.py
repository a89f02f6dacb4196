# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of plugins are written with: endpoints, requests, one plugin alone, or a whole scheduler."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from epp import config, plugins
from epp.datalayer import Datastore
from epp.model import Decision, Endpoint, EndpointMetrics, InferenceRequest
from epp.observe import PoolView, Recorder
from epp.scheduling import Plugin, PrefixMatch, Scheduler

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


@dataclass
class World:
    """A Context with everything real."""

    datastore: Datastore = field(default_factory=Datastore)
    recorder: Recorder = field(default_factory=Recorder)
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    made: dict[str, Plugin] = field(default_factory=dict)

    def plugin(self, name: str) -> Plugin:
        return self.made[name] if name in self.made else self.of_type(name)

    def of_type(self, plugin_type: str) -> Plugin:
        if plugin_type not in self.made:
            self.made[plugin_type] = Kit.make(plugin_type, self)
        return self.made[plugin_type]

    def first(self, kind: type[Plugin]) -> Plugin | None:
        return next((plugin for plugin in self.made.values() if isinstance(plugin, kind)), None)

    def adopt(self, plugin: Plugin) -> None:
        self.made[f"{plugin.name}/{plugin.TYPE}"] = plugin


class Rig:
    """A scheduler as a configuration describes it, and its endpoints."""

    def __init__(self, text: str, endpoints: list[Endpoint], seed: int) -> None:
        self.cfg = config.load(HEAD + text, "test.yaml")
        self.datastore = Datastore("pool")
        self.datastore.replace(endpoints)
        self.endpoints = list(self.datastore.endpoints())
        self.recorder = Recorder()
        self.recorder.watch_pool(PoolView("pool", self.datastore.endpoints, 2.0, str))
        self.scheduler = Scheduler.from_config(self.cfg, plugins.registry(), self.datastore, self.recorder, seed=seed)

    def send(self, request: InferenceRequest) -> Decision:
        """As the director does it; the request stays in flight."""
        self.scheduler.request_headers(request)
        decision = self.scheduler.schedule(request, self.datastore.endpoints())
        flow = (request.fairness_id, request.priority)
        self.recorder.request(request.model, request.model, 0, request.priority, request.fairness_id)
        self.datastore.hold(decision.charges, flow)
        self.scheduler.pre_request(request, decision)
        return decision

    def plugin(self, name: str) -> Any:
        """A plugin of the scheduler, by name."""
        return self.scheduler.plugin(name)


class Kit:
    """Everything above, for tests."""

    World = World

    @staticmethod
    def make(plugin_type: str, world: World | None = None, **parameters: Any) -> Any:
        """One plugin alone."""
        cls = plugins.registry()[plugin_type]
        return cls(plugin_type, cls.PARAMETERS(**parameters), world or World())

    @staticmethod
    def parameters(plugin_type: str, text: str) -> Any:
        """The parameters of a plugin, from YAML in one line."""
        cfg = config.load(f"{HEAD}plugins:\n- type: {plugin_type}\n  parameters: {text}\n", "test.yaml")
        return cfg.plugin(plugin_type).parameters

    @staticmethod
    def rig(text: str, endpoints: list[Endpoint], seed: int = 1) -> Rig:
        """A whole scheduler."""
        return Rig(text, endpoints, seed)

    @staticmethod
    def endpoint(number: int = 0, port: int = 8000, metrics: EndpointMetrics | None = None, **labels: str) -> Endpoint:
        """One endpoint; label names with ``__`` for ``/`` and ``_`` for ``-``."""
        named = {name.replace("__", "/").replace("_", "-"): value for name, value in labels.items()}
        address = f"10.0.0.{number + 1}"
        return Endpoint(f"e{number}", "ns", f"p{number}", address, port, named, metrics or EndpointMetrics())

    @staticmethod
    def endpoints(count: int) -> list[Endpoint]:
        """Some that are alike."""
        return [Kit.endpoint(number) for number in range(count)]

    @staticmethod
    def read(**values: Any) -> EndpointMetrics:
        """Metrics as of now."""
        return EndpointMetrics(updated_at=time.monotonic(), **values)

    @staticmethod
    def ask(prompt: bytes = b"", headers: dict[str, str] | None = None, **fields: Any) -> InferenceRequest:
        """A request."""
        return InferenceRequest("id", headers or {}, prompt=prompt, **{"model": "m", **fields})

    @staticmethod
    def matched(request: InferenceRequest, blocks: dict[Endpoint, int], total: int, tokens: int = 64) -> None:
        """What the default producer would say of a prompt of ``total`` blocks."""
        request.attributes["prefix-match/approx-prefix-cache-producer"] = PrefixMatch(range(total), tokens, blocks)


@pytest.fixture
def kit() -> type[Kit]:
    """What tests of plugins are written with."""
    return Kit
