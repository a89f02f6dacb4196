# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that benchmarks compare, side by side before the same model servers, found through the same API server.

The pickers are those of the conformance kit (``tests/conformance/drivers``), ours in its image, with the same
configuration: queue, KV cache and prefix cache scorers, as the reference runs without any. Needs ``KUBECONFIG``: the
reference knows no other way to its endpoints.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from conformance.kit import driver as drivers
from conformance.kit.picker import Picker, picker
from conformance.kit.wait import eventually
from conformance.kit.world import World, world

from benchmarks import rig

PORT = 8000
READY = "inference_pool_ready_pods"
"""The gauge by which both generations say how many endpoints they know."""


@dataclass(frozen=True)
class Mode:
    """What Envoy sends to the picker: a body mode for each direction."""

    name: str
    request: str
    response: str

    @property
    def reference(self) -> bool:
        """Whether the reference works in this mode."""
        return self.request == "FULL_DUPLEX_STREAMED" and self.response in ("FULL_DUPLEX_STREAMED", "NONE")


FULL_DUPLEX = Mode("full duplex", "FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED")
HEADERS_ONLY = Mode("request and response headers", "FULL_DUPLEX_STREAMED", "NONE")
MODES = (
    FULL_DUPLEX,
    HEADERS_ONLY,
    Mode("buffered", "BUFFERED", "BUFFERED"),
    Mode("buffered request", "BUFFERED", "NONE"),
    Mode("buffered partially", "BUFFERED_PARTIAL", "NONE"),
    Mode("streamed", "STREAMED", "STREAMED"),
    Mode("headers", "NONE", "NONE"),
)


@dataclass
class Gateway:
    """An Envoy."""

    process: rig.Process
    url: str


@dataclass
class Side:
    """A picker with an Envoy for each mode, or (``picker`` is None) an Envoy that asks nobody."""

    name: str
    title: str
    picker: Picker | None
    gateways: dict[str, Gateway] = field(default_factory=dict)
    idle_cpu: float = 0.0
    """Cores that the picker takes while nothing is asked of it."""

    @property
    def pid(self) -> int:
        """The picker's process."""
        assert self.picker is not None
        return self.picker.process.popen.pid

    def cpu_seconds(self) -> float:
        """The picker's CPU time so far."""
        return rig.cpu_seconds(self.pid) if self.picker else 0.0

    def supports(self, mode: Mode) -> bool:
        """Whether a measurement in this mode makes sense."""
        return self.name != "go" or mode.reference

    def gateway(self, mode: Mode) -> Gateway:
        """The Envoy of a mode."""
        return self.gateways[mode.name if self.picker else ""]


@contextlib.contextmanager
def surroundings() -> Iterator[World]:
    """A namespace in the cluster of ``KUBECONFIG``, gone afterwards."""
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        sys.exit("set KUBECONFIG to a cluster that may have a namespace more for a while, or use `make bench`")
    with world(drivers.load("ours"), os.path.abspath(kubeconfig)) as around:
        yield around


@contextlib.contextmanager
def pool(around: World, name: str, hosts: Sequence[str], *flags: str) -> Iterator[rig.Process]:
    """Model servers on these hosts, a pod for each, and the pool that selects them; yields the servers' process."""
    command = [sys.executable, "-m", "benchmarks.upstream", str(PORT), *hosts, *flags]
    process = rig.Process("upstream", command, {"PYTHONPATH": str(rig.REPOSITORY / "tests")})
    try:
        process.wait_for(lambda: rig.connectable(PORT, hosts[-1]))
        with listed(around, name, hosts):
            yield process
    finally:
        process.close()


@contextlib.contextmanager
def listed(around: World, name: str, hosts: Sequence[str]) -> Iterator[None]:
    """A pod in the API server for each of these hosts, and the pool that selects them."""
    labels = {"pool": name}
    try:
        for number, host in enumerate(hosts):
            around.space.create_pod(f"{name}-{number}", host, labels)
        around.space.create_pool(name, labels, (PORT,))
        yield
    finally:
        around.space.delete("inference.networking.k8s.io", "v1", "InferencePool", name)
        for number in range(len(hosts)):
            with contextlib.suppress(OSError):
                around.space.delete_pod(f"{name}-{number}")


@contextlib.contextmanager
def side(around: World, name: str, pool_name: str, endpoints: int, *more: str, tls: bool = False) -> Iterator[Side]:
    """A picker that knows all endpoints of the pool. ``name``: ``ours``, ``go``, or one of them with ``=FLAG``."""
    key, _, flag = name.partition("=")
    driver = drivers.load(rig.OURS if key == "ours" else key)
    flags = [*around.flags(pool_name, tls=tls), *more, *([flag] if flag else [])]
    with picker(driver, flags, around.environment, around.api.turns, tls=tls) as found:
        eventually(lambda: found.metrics().value(READY, name=pool_name) == endpoints)
        yield Side(name, f"{driver.title} {flag}".strip(), found)


@contextlib.contextmanager
def gateways(found: Side, hosts: Sequence[str], modes: Sequence[Mode], tls: bool = False) -> Iterator[Side]:
    """An Envoy before the model servers for each mode that the side supports."""
    hostports = tuple(f"{host}:{PORT}" for host in hosts)
    with contextlib.ExitStack() as stack:
        for mode in modes if found.picker else (FULL_DUPLEX,):
            if not found.supports(mode):
                continue
            port = found.picker.ports.grpc if found.picker else None
            options = rig.EnvoyOptions(hostports, port, mode.request, mode.response, tls=tls)
            process, url = stack.enter_context(rig.envoy_process(options))
            found.gateways[mode.name if found.picker else ""] = Gateway(process, url)
        yield found
