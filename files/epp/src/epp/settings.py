# SPDX-License-Identifier: GPL-3.0-or-later
"""All flags of the command line, typed, with their defaults. How they are written and read is :mod:`epp.flags`'s.

Names and defaults are those of the reference endpoint picker (GAIE v1.3 to v1.5, and llm-d-router), so that its
arguments work unchanged. Flags that only this EPP has: ``--endpoints-file``, ``--transport``, ``--workers``,
``--statesync-*``, and ``--pool-name`` more than once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def flag(default: Any, text: str, kind: str) -> Any:
    """One flag: its default, its help, and how it is written (bool, int, string, duration, size, ports, list, names,
    paths, texts).

    ``list`` is separated by commas, ``names`` is one name per flag, ``paths`` one path, ``texts`` anything; all of
    them, and ``ports``, may be given more than once.
    """
    return field(default=default, metadata={"help": text, "kind": kind})


@dataclass(frozen=True)
class CommonSettings:
    """The flags that all services here share, typed. A field's name is the flag's with underscores.

    Durations are seconds, sizes bytes. A service that wants another default, or other words, declares the field anew.
    """

    transport: str = flag("h2", "what serves ext_proc: h2 (our own) or grpcio", "string")
    grpc_port: int = flag(9002, "port of the ext_proc service", "int")
    grpc_health_port: int = flag(9003, "port of the gRPC health service, plaintext", "int")
    health_checking: bool = flag(False, "answer health checks on the ext_proc port too, always SERVING", "bool")
    grpc_max_recv_msg_size: int = flag(0, "largest message from Envoy, as 16Mi (default: 128Mi)", "size")
    grpc_max_send_msg_size: int = flag(0, "largest message to Envoy (default: 128Mi)", "size")
    secure_serving: bool = flag(True, "serve ext_proc with TLS", "bool")
    cert_path: str = flag("", "folder with tls.crt and tls.key (default: self-signed, in memory)", "string")
    enable_cert_reload: bool = flag(False, "take over the files of --cert-path whenever they change", "bool")
    drain_timeout: float = flag(30.0, "after SIGTERM serve for at most this long", "duration")
    metrics_port: int = flag(9090, "port of /metrics, /healthz and /debug", "int")
    metrics_endpoint_auth: bool = flag(
        True,
        "let the API server say whether a bearer token may read /metrics and /debug; off without Kubernetes",
        "bool",
    )
    metrics_cert_dir: str = flag("", "folder with tls.crt and tls.key: serve metrics over HTTPS", "string")
    enable_pprof: bool = flag(True, "profiles and stacks of this process under /debug/pprof/", "bool")
    tracing: bool = flag(
        True, "begin a W3C trace where there is none, sampled as OTEL_TRACES_SAMPLER_ARG (0.1) says", "bool"
    )
    v: int = flag(2, "log verbosity: 3 logs each request, 5 everything", "int")
    zap_devel: bool = flag(True, "logs for people: --zap-encoder=console unless said otherwise", "bool")
    zap_encoder: str = flag("", "log format, json or console (default: by --zap-devel)", "string")
    zap_log_level: str = flag("", "debug, info, error, panic, or a number as for -v, which it overrules", "string")
    zap_stacktrace_level: str = flag("", "stack traces from info (the default), error or panic on", "string")
    zap_time_encoding: str = flag(
        "", "epoch, millis, nano, iso8601, rfc3339 or rfc3339nano (default: rfc3339 with milliseconds)", "string"
    )


@dataclass(frozen=True)
class Settings(CommonSettings):
    """The flags of the endpoint picker."""

    pool_name: tuple[str, ...] = flag((), "InferencePool whose pods are served; repeat it for several pools", "names")
    pool_namespace: str = flag("", "namespace of the pools (default: environment NAMESPACE, else default)", "string")
    pool_group: str = flag("inference.networking.k8s.io", "API group of the InferencePool", "string")
    endpoint_selector: str = flag("", "serve the pods that this label selector matches, without a pool", "string")
    endpoint_target_ports: tuple[int, ...] = flag((), "1 to 8 ports of those pods, with commas", "ports")
    endpoints_file: str = flag("", "serve the endpoints of this YAML file, without Kubernetes", "string")
    disable_endpoint_subset_filter: bool = flag(False, "ignore the gateway's subset of endpoints", "bool")
    emit_endpoint_scores: bool = flag(False, "tell the gateway each endpoint's score", "bool")
    config_file: str = flag("", "EndpointPickerConfig to use", "string")
    config_text: str = flag("", "EndpointPickerConfig to use, as text", "string")
    plugin_path: tuple[str, ...] = flag((), "Python file with plugins, or a folder of them; may be repeated", "paths")
    allow_experimental_plugins: bool = flag(False, "has no effect: no plugin here is experimental", "bool")
    ha_enable_leader_election: bool = flag(False, "be ready only while holding the Lease of the pool", "bool")
    statesync_peers: tuple[str, ...] = flag(
        (),
        "share load and prefixes with the replicas at these hosts (host or host:port), with commas",
        "list",
    )
    statesync_port: int = flag(
        9006, "port on which peers are told, with --statesync-peers; of several workers the first one's", "int"
    )
    workers: int = flag(
        1, "processes that decide; with more than one, another one accepts connections and knows the endpoints", "int"
    )
    enable_grpc_stream_metrics: bool = flag(False, "count and time the ext_proc streams", "bool")
    tls_min_version: str = flag("", "VersionTLS12 or VersionTLS13, of ext_proc and metrics (default: 1.2)", "string")
    tls_cipher_suites: tuple[str, ...] = flag((), "cipher suites of TLS 1.2 by their IANA names, with commas", "list")
    metrics_client_ca_file: str = flag("", "CA bundle: only clients with a certificate of it read metrics", "string")
    refresh_metrics_interval: float = flag(
        0.05, "shortest time between two readings of a busy endpoint's metrics", "duration"
    )
    refresh_prometheus_metrics_interval: float = flag(
        5.0, "has no effect: the pool's metrics are computed when they are read, and so never older", "duration"
    )
    metrics_staleness_threshold: float = flag(2.0, "older readings do not count in the pool's metrics", "duration")
    model_server_metrics_scheme: str = flag("http", "http or https, of the model servers' metrics", "string")
    model_server_metrics_path: str = flag("/metrics", "path of the model servers' metrics", "string")
    model_server_metrics_port: int = flag(0, "port of the model servers' metrics, 0 for the endpoint's own", "int")
    model_server_metrics_https_insecure_skip_verify: bool = flag(True, "accept any certificate there", "bool")
    total_queued_requests_metric: str = flag("vllm:num_requests_waiting", "metric of waiting requests", "string")
    total_running_requests_metric: str = flag("vllm:num_requests_running", "metric of running requests", "string")
    kv_cache_usage_percentage_metric: str = flag("vllm:kv_cache_usage_perc", "metric of KV cache use, 0..1", "string")
    lora_info_metric: str = flag("vllm:lora_requests_info", "metric of LoRA adapters", "string")
    cache_info_metric: str = flag("vllm:cache_config_info", "metric of the KV cache's block size", "string")
    given: frozenset[str] = frozenset()
    """Names of the flags that were on the command line."""
