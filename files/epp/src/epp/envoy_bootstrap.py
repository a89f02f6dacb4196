# SPDX-License-Identifier: GPL-3.0-or-later
"""``epp envoy-bootstrap``: a configuration of Envoy that fits this EPP, for use without a gateway controller.

Built from Envoy's own types (``envoy-data-plane``), so that it cannot hold a field that Envoy does not have. Only the
command line interface imports this module, and only for this command: the types take a second to load.

Two ways to the endpoints:

* ``--endpoints-file``: a static cluster of those endpoints, of which the EPP's header chooses one. Envoy connects to
  nothing else, tries the EPP's fallbacks in order, and tells the EPP which endpoint served. Print it anew, and restart
  Envoy, when the file changes.
* without: whatever address the EPP's header says, so that endpoints may come and go. The header of a client is
  overwritten by the EPP, and no request passes without the EPP.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import betterproto2
import envoy_data_plane.envoy.config.bootstrap.v3 as bootstrap
import envoy_data_plane.envoy.config.cluster.v3 as cluster
import envoy_data_plane.envoy.config.core.v3 as core
import envoy_data_plane.envoy.config.endpoint.v3 as endpoint
import envoy_data_plane.envoy.config.listener.v3 as listener
import envoy_data_plane.envoy.config.route.v3 as route
import envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 as ext_proc
import envoy_data_plane.envoy.extensions.filters.http.router.v3 as router
import envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 as hcm
import envoy_data_plane.envoy.extensions.load_balancing_policies.least_request.v3 as least_request
import envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 as override_host
import envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 as tls
import envoy_data_plane.envoy.extensions.upstreams.http.v3 as upstreams
import envoy_data_plane.envoy.type.metadata.v3 as metadata
import yaml
from envoy_data_plane.google.protobuf import Any as Packed

from epp.config.document import duration
from epp.datalayer.file import EndpointsFileError
from epp.datalayer.file import parse as parse_endpoints

DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
LB = "envoy.lb"
PODS, EPP = "endpoints", "epp"
BODY_MODES = {
    "full-duplex": ext_proc.ProcessingModeBodySendMode.FULL_DUPLEX_STREAMED,
    "buffered": ext_proc.ProcessingModeBodySendMode.BUFFERED,
    "buffered-partial": ext_proc.ProcessingModeBodySendMode.BUFFERED_PARTIAL,
    "streamed": ext_proc.ProcessingModeBodySendMode.STREAMED,
    "none": ext_proc.ProcessingModeBodySendMode.NONE,
}
MANY = 40_000
"""Bound of connections and requests: each inference holds one of each for minutes, and Envoy's own bound is 1024."""


@dataclass(frozen=True)
class Options:
    """What the configuration depends on."""

    listen: tuple[str, int]
    admin: tuple[str, int]
    epp: tuple[str, int]
    secure: bool
    endpoints: tuple[tuple[str, int], ...]
    """Address and port of each; empty for whatever the EPP's header says."""
    request_body: str
    response_body: str
    timeout: float
    """Seconds that a whole answer may take."""
    buffer: int
    """Bytes of one request that Envoy holds at most."""
    retries: int


def main(arguments: Sequence[str]) -> int:
    """Print the configuration; returns the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        options = _options(given)
    except (ValueError, OSError) as error:
        print(f"epp envoy-bootstrap: {error}", file=sys.stderr)
        return 1
    document = json.loads(build(options).to_json())
    print(yaml.safe_dump(document, sort_keys=False, width=120), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("epp envoy-bootstrap", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--listen", default="0.0.0.0:8080", help="where Envoy takes requests (default %(default)s)")
    parser.add_argument("--admin", default="127.0.0.1:9901", help="Envoy's own administration (default %(default)s)")
    parser.add_argument("--epp", default="127.0.0.1:9002", help="where the EPP is (default %(default)s)")
    parser.add_argument(
        "--secure-serving", default="true", choices=("true", "false"), help="the EPP's flag (default %(default)s)"
    )
    parser.add_argument("--endpoints-file", default="", help="the EPP's flag: only these endpoints can be reached")
    for side in ("request", "response"):
        parser.add_argument(
            f"--{side}-body-mode",
            default="full-duplex",
            choices=tuple(BODY_MODES),
            help=f"how the {side}'s body goes through the EPP (default %(default)s)",
        )
    parser.add_argument("--timeout", default="1h", help="how long an answer may take (default %(default)s)")
    parser.add_argument("--max-request-bytes", default=64 * 2**20, type=int, help="default %(default)s")
    parser.add_argument("--retries", default=2, type=int, help="for endpoints that refuse (default %(default)s)")
    return parser


def _options(given: argparse.Namespace) -> Options:
    """Raises ValueError or OSError with a text for people."""
    endpoints: tuple[tuple[str, int], ...] = ()
    if given.endpoints_file:
        try:
            with open(given.endpoints_file, encoding="utf-8") as file:
                found = parse_endpoints(file.read(), given.endpoints_file)
        except EndpointsFileError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            raise OSError(f"--endpoints-file={given.endpoints_file}: cannot be read: {error}") from error
        endpoints = tuple((each.address, each.port) for each in found)
        if not endpoints:
            raise ValueError(f"{given.endpoints_file} has no endpoints; Envoy could reach none")
    try:
        timeout = duration(given.timeout)
    except ValueError:
        raise ValueError(f"--timeout={given.timeout}: write a duration like 30s or 1h") from None
    return Options(
        listen=_place("--listen", given.listen),
        admin=_place("--admin", given.admin),
        epp=_place("--epp", given.epp),
        secure=given.secure_serving == "true",
        endpoints=endpoints,
        request_body=given.request_body_mode,
        response_body=given.response_body_mode,
        timeout=timeout,
        buffer=given.max_request_bytes,
        retries=given.retries,
    )


def _place(flag: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{flag}={text}: write ADDRESS:PORT")
    return host.strip("[]"), int(port)


def build(options: Options) -> bootstrap.Bootstrap:
    """The whole configuration."""
    return bootstrap.Bootstrap(
        admin=bootstrap.Admin(address=_address(*options.admin)),
        static_resources=bootstrap.BootstrapStaticResources(
            listeners=[_listener(options)], clusters=[_pods(options), _epp(options)]
        ),
    )


def _listener(options: Options) -> listener.Listener:
    retry = route.RetryPolicy(retry_on="connect-failure,refused-stream", num_retries=options.retries)
    seconds = datetime.timedelta(seconds=options.timeout)
    action = route.RouteAction(cluster=PODS, timeout=seconds, retry_policy=retry if options.retries else None)
    host = route.VirtualHost(
        name="all", domains=["*"], routes=[route.Route(match=route.RouteMatch(prefix="/"), route=action)]
    )
    manager = hcm.HttpConnectionManager(
        stat_prefix="inference",
        stream_idle_timeout=seconds,
        route_config=route.RouteConfiguration(name="all", virtual_hosts=[host]),
        http_filters=[
            hcm.HttpFilter(name="envoy.filters.http.ext_proc", typed_config=Packed.pack(_ext_proc(options))),
            hcm.HttpFilter(name="envoy.filters.http.router", typed_config=Packed.pack(router.Router())),
        ],
    )
    filter_ = listener.Filter(name="envoy.filters.network.http_connection_manager", typed_config=Packed.pack(manager))
    return listener.Listener(
        name="inference",
        address=_address(*options.listen),
        per_connection_buffer_limit_bytes=options.buffer,
        filter_chains=[listener.FilterChain(filters=[filter_])],
    )


def _ext_proc(options: Options) -> ext_proc.ExternalProcessor:
    send = ext_proc.ProcessingModeHeaderSendMode.SEND
    namespaces = ext_proc.MetadataOptionsMetadataNamespaces(untyped=[LB, "envoy.lb.subset_hint"])
    return ext_proc.ExternalProcessor(
        grpc_service=core.GrpcService(envoy_grpc=core.GrpcServiceEnvoyGrpc(cluster_name=EPP, authority=EPP)),
        failure_mode_allow=False,
        message_timeout=datetime.timedelta(seconds=10),
        processing_mode=ext_proc.ProcessingMode(
            request_header_mode=send,
            response_header_mode=send,
            request_body_mode=BODY_MODES[options.request_body],
            response_body_mode=BODY_MODES[options.response_body],
            request_trailer_mode=send,
            response_trailer_mode=send,
        ),
        metadata_options=ext_proc.MetadataOptions(
            forwarding_namespaces=namespaces,
            receiving_namespaces=ext_proc.MetadataOptionsMetadataNamespaces(untyped=[LB]),
        ),
    )


def _pods(options: Options) -> cluster.Cluster:
    """The endpoints."""
    common = cluster.Cluster(
        name=PODS,
        connect_timeout=datetime.timedelta(seconds=2),
        per_connection_buffer_limit_bytes=options.buffer,
        circuit_breakers=_breakers(),
    )
    if not options.endpoints:
        common.type = cluster.ClusterDiscoveryType.ORIGINAL_DST
        common.lb_policy = cluster.ClusterLbPolicy.CLUSTER_PROVIDED
        common.original_dst_lb_config = cluster.ClusterOriginalDstLbConfig(
            use_http_header=True, http_header_name=DESTINATION
        )
        return common
    otherwise = _policy("envoy.load_balancing_policies.least_request", least_request.LeastRequest())
    by_header = override_host.OverrideHost(
        override_host_sources=[override_host.OverrideHostOverrideHostSource(header=DESTINATION)],
        selected_host_key=metadata.MetadataKey(key=LB, path=[metadata.MetadataKeyPathSegment(key=SERVED)]),
        fallback_policy=otherwise,
    )
    common.type = cluster.ClusterDiscoveryType.STATIC
    common.load_balancing_policy = _policy("envoy.load_balancing_policies.override_host", by_header)
    common.load_assignment = _assignment(PODS, options.endpoints)
    return common


def _epp(options: Options) -> cluster.Cluster:
    """The EPP."""
    http2 = upstreams.HttpProtocolOptions(
        explicit_http_config=upstreams.HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=core.Http2ProtocolOptions()
        )
    )
    is_name = not _is_address(options.epp[0])
    kinds = cluster.ClusterDiscoveryType
    made = cluster.Cluster(
        name=EPP,
        type=kinds.STRICT_DNS if is_name else kinds.STATIC,
        connect_timeout=datetime.timedelta(seconds=2),
        circuit_breakers=_breakers(),
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": Packed.pack(http2)},
        load_assignment=_assignment(EPP, [options.epp]),
    )
    if options.secure:
        # Without a CA, Envoy verifies nothing: the EPP's own certificate is self-signed.
        context = tls.UpstreamTlsContext(sni=EPP)
        made.transport_socket = core.TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=Packed.pack(context)
        )
    return made


def _policy(name: str, message: betterproto2.Message) -> cluster.LoadBalancingPolicy:
    config = core.TypedExtensionConfig(name=name, typed_config=Packed.pack(message))
    return cluster.LoadBalancingPolicy(policies=[cluster.LoadBalancingPolicyPolicy(typed_extension_config=config)])


def _breakers() -> cluster.CircuitBreakers:
    bounds = cluster.CircuitBreakersThresholds(
        max_connections=MANY, max_pending_requests=MANY, max_requests=MANY, max_retries=MANY
    )
    return cluster.CircuitBreakers(thresholds=[bounds])


def _assignment(name: str, places: Sequence[tuple[str, int]]) -> endpoint.ClusterLoadAssignment:
    found = [endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=_address(*place))) for place in places]
    return endpoint.ClusterLoadAssignment(
        cluster_name=name, endpoints=[endpoint.LocalityLbEndpoints(lb_endpoints=found)]
    )


def _address(host: str, port: int) -> core.Address:
    return core.Address(socket_address=core.SocketAddress(address=host, port_value=port))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
