# SPDX-License-Identifier: GPL-3.0-or-later
"""The surroundings of pickers in one session: a namespace, addresses for engines, pools of pods."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from conformance.kit.cluster import NEW, OLD, Api, ApiError, Namespace, define, namespace, sweep
from conformance.kit.driver import Driver
from conformance.kit.engines import Engine
from conformance.kit.picker import Picker, Ports, Process, picker, run

DEFAULT = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
"""
"""What a picker does without any configuration, written out, in the group that every version reads."""

NEEDED = (
    (NEW, "v1", "InferencePool"),
    (OLD, "v1alpha2", "InferenceObjective"),
    (OLD, "v1alpha2", "InferenceModelRewrite"),
)
"""Resources that pickers watch; what the cluster lacks is defined for the time of the session."""


@dataclass
class Pool:
    """An InferencePool, its pods and the engines behind their addresses."""

    name: str
    space: Namespace
    engines: list[Engine]
    ports: tuple[int, ...] = (8000,)

    @property
    def labels(self) -> dict[str, str]:
        """What the pool selects."""
        return {"pool": self.name}

    @property
    def hostports(self) -> list[str]:
        """Every endpoint."""
        return [f"{engine.address}:{port}" for engine in self.engines for port in self.ports]

    def pod(self, number: int) -> str:
        """The name of a pod."""
        return f"{self.name}-{number}"

    def show(self, *each: dict[str, Any]) -> None:
        """The figures of the engines, one after another."""
        for engine, gauges in zip(self.engines, each, strict=True):
            engine.show(**gauges)

    def reset(self) -> None:
        """All engines idle again."""
        for engine in self.engines:
            engine.reset()


@dataclass
class World:
    """A session's surroundings."""

    driver: Driver
    api: Api
    space: Namespace
    kubeconfig: str
    _network: str = field(default_factory=lambda: f"127.{64 + os.getpid() % 128}")
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(random.randrange(40_000)))

    def address(self) -> str:
        """A loopback address that nobody else uses."""
        third, last = divmod(next(self._numbers), 250)
        return f"{self._network}.{third}.{last + 1}"

    @contextlib.contextmanager
    def engines(self, count: int, **options: Any) -> Iterator[list[Engine]]:
        """Engines on addresses of their own."""
        made: list[Engine] = []
        try:
            while len(made) < count:
                # Somebody else may have taken an address.
                with contextlib.suppress(OSError):
                    made.append(Engine(self.address(), **options))
            yield made
        finally:
            for each in made:
                each.stop()

    @contextlib.contextmanager
    def pool(
        self,
        name: str,
        engines: int = 3,
        ports: tuple[int, ...] = (8000,),
        pool: bool = True,
        kinds: Sequence[str] = (),
        label: str = "llm-d.ai/engine-type",
        **options: Any,
    ) -> Iterator[Pool]:
        """Engines, a Ready pod for each and, unless ``pool`` is false, the InferencePool that selects them.

        ``kinds`` are those of the engines, one after another: each pod says so with this ``label``, and shows a page as
        that engine does.
        """
        engines = len(kinds) or engines
        with self.engines(engines, ports=ports, **options) as made:
            found = Pool(name, self.space, made, ports)
            for number, engine in enumerate(made):
                labels = dict(found.labels)
                if kinds:
                    labels[label] = kinds[number]
                    engine.become(kinds[number])
                self.space.create_pod(found.pod(number), engine.address, labels)
            if pool:
                self.space.create_pool(name, found.labels, ports)
            try:
                yield found
            finally:
                self._remove(found)

    def _remove(self, pool: Pool) -> None:
        for pod in self.api.call("GET", self.space.core("pods"))["items"]:
            if pod["metadata"]["name"].startswith(pool.name + "-"):
                if pod["metadata"].get("finalizers"):
                    self.space.patch_pod(pod["metadata"]["name"], finalizers=None)
                with contextlib.suppress(OSError):
                    self.space.delete_pod(pod["metadata"]["name"])
        self.space.delete(NEW, "v1", "InferencePool", pool.name)

    @contextlib.contextmanager
    def resource(self, kind: str, name: str, spec: dict[str, Any], group: str = OLD) -> Iterator[None]:
        """An InferenceObjective or an InferenceModelRewrite."""
        self.space.create(group, "v1alpha2", kind, name, spec)
        try:
            yield
        finally:
            self.space.delete(group, "v1alpha2", kind, name)

    @contextlib.contextmanager
    def objective(self, pool: str, name: str, priority: int | None, group: str = OLD) -> Iterator[None]:
        """An InferenceObjective for a pool."""
        spec: dict[str, Any] = {"poolRef": {"group": NEW, "name": pool}}
        if priority is not None:
            spec["priority"] = priority
        with self.resource("InferenceObjective", name, spec, group):
            yield

    def flags(self, pool: str, config: str | None = DEFAULT, *, tls: bool = False) -> list[str]:
        """The flags that nearly every case wants; without ``tls`` the picker serves plaintext, which is simpler."""
        flags = [f"--pool-name={pool}", f"--pool-namespace={self.space.name}", "--metrics-endpoint-auth=false"]
        flags += ["--tracing=false"]
        flags += [] if config is None else [f"--config-text={config}"]
        return flags if tls else [*flags, "--secure-serving=false"]

    @property
    def environment(self) -> dict[str, str]:
        """How a picker finds the cluster."""
        # The pod's name is what the name of a Deployment's pod looks like; some pickers take the Deployment's from it.
        return {"KUBECONFIG": self.kubeconfig, "NAMESPACE": self.space.name, "POD_NAME": "picker-7d9c5b6f48-x2x4z"}

    @contextlib.contextmanager
    def picker(
        self,
        pool: str,
        *more: str,
        config: str | None = DEFAULT,
        tls: bool = False,
        ports: Ports | None = None,
        serving: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[Picker]:
        """A picker for a pool, serving."""
        flags = [*(ports.flags() if ports else []), *self.flags(pool, config, tls=tls), *more]
        variables = {**self.environment, **(environment or {})}
        with picker(self.driver, flags, variables, self.api.turns, ports=ports, tls=tls, serving=serving) as found:
            yield found

    @contextlib.contextmanager
    def raw(
        self,
        *flags: str,
        tls: bool = False,
        serving: bool = True,
        ports: Ports | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[Picker]:
        """A picker with just these flags, and those of its ports unless they are given."""
        variables = {**self.environment, **(environment or {})}
        with picker(
            self.driver, list(flags), variables, self.api.turns, ports=ports, tls=tls, serving=serving
        ) as found:
            yield found

    @contextlib.contextmanager
    def body_router(
        self, *flags: str, serving: bool = True, environment: Mapping[str, str] | None = None
    ) -> Iterator[Picker]:
        """A body-based router with these flags, over TLS; the case is skipped where there is none."""
        if self.driver.body_router is None:
            pytest.skip("no body-based router")
        driver = replace(self.driver, command=self.driver.body_router())
        variables = {**self.environment, **(environment or {})}
        with picker(driver, list(flags), variables, self.api.turns, serving=serving) as found:
            yield found

    @contextlib.contextmanager
    def config_map(self, name: str, data: Mapping[str, str], **labels: str) -> Iterator[None]:
        """A ConfigMap."""
        path = self.space.core("configmaps")
        metadata = {"name": name, "labels": labels}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
        self.api.call("POST", path, body)
        try:
            yield
        finally:
            with contextlib.suppress(ApiError):
                self.api.call("DELETE", f"{path}/{name}")

    @contextlib.contextmanager
    def process(
        self, *flags: str, ports: bool = True, environment: Mapping[str, str] | None = None
    ) -> Iterator[Process]:
        """A picker as a mere process, with free ``ports``; for those that should not come up."""
        free = Ports.free().flags() if ports else []
        process = run(self.driver, [*free, *flags], {**self.environment, **(environment or {})})
        try:
            yield process
        finally:
            process.close()

    def refusal(self, *flags: str) -> str:
        """What a picker says that must not start with these flags. Raises AssertionError when it starts."""
        with self.process(*flags) as process:
            status = process.wait()
            assert status != 0, f"it ended as if all were well:\n{process.log()}"
            return process.log()


class Standing:
    """A picker that many cases share; when one of them was its death, the next gets a new one."""

    def __init__(self, around: World, pool: str, *flags: str, **options: Any) -> None:
        self._start = partial(around.picker, pool, *flags, **options)
        self._running = contextlib.ExitStack()
        self._picker: Picker | None = None

    def __enter__(self) -> Standing:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def get(self) -> Picker:
        """The picker, alive."""
        if self._picker is None or not self._picker.process.running:
            self._running.close()
            self._picker = self._running.enter_context(self._start())
        return self._picker


@contextlib.contextmanager
def world(driver: Driver, kubeconfig: str) -> Iterator[World]:
    """Surroundings in the cluster that a kubeconfig names; nothing of them stays, nor of runs that were killed."""
    api = Api(kubeconfig)
    with contextlib.ExitStack() as stack:
        stack.callback(_leave, api)
        with api.turns.alone():
            sweep(api)
            space = stack.enter_context(namespace(api))
            for group, version, kind in NEEDED:
                define(api, group, version, kind)
        yield World(driver, api, space, kubeconfig)


def _leave(api: Api) -> None:
    with api.turns.alone():
        sweep(api)
