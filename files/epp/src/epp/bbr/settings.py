# SPDX-License-Identifier: GPL-3.0-or-later
"""The flags of ``epp bbr``: those of GAIE's body-based router v1.3 to v1.5, and those that all services here share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from epp.flags import FlagError, check_choices, read
from epp.settings import flag


@dataclass(frozen=True)
class BbrSettings:
    """All flags, typed. A field's name is the flag's with underscores. Durations are seconds, sizes bytes."""

    grpc_port: int = flag(9004, "port of the ext_proc service", "int")
    grpc_health_port: int = flag(9005, "port of the gRPC health service, plaintext", "int")
    metrics_port: int = flag(9090, "port of /metrics and /healthz", "int")
    streaming: bool = flag(
        False, "the gateway sends bodies in FULL_DUPLEX_STREAMED, not BUFFERED, where it does not say it itself", "bool"
    )
    plugin: tuple[str, ...] = flag(
        (), 'TYPE:NAME[:JSON], repeat it; default: body-field-to-header for "model", and base-model-to-header', "texts"
    )
    namespace: str = flag("", "namespace of the ConfigMaps (default: environment NAMESPACE, else default)", "string")
    transport: str = flag("grpcio", "what serves ext_proc: h2 (fast) or grpcio", "string")
    grpc_max_recv_msg_size: int = flag(0, "largest message from Envoy, as 16Mi (default: 128Mi)", "size")
    grpc_max_send_msg_size: int = flag(0, "largest message to Envoy (default: 128Mi)", "size")
    health_checking: bool = flag(False, "answer health checks on the ext_proc port too, always SERVING", "bool")
    secure_serving: bool = flag(True, "serve ext_proc with TLS", "bool")
    cert_path: str = flag("", "folder with tls.crt and tls.key (default: self-signed, in memory)", "string")
    enable_cert_reload: bool = flag(False, "take over the files of --cert-path whenever they change", "bool")
    drain_timeout: float = flag(30.0, "after SIGTERM serve for at most this long", "duration")
    metrics_endpoint_auth: bool = flag(
        True, "let the API server say whether a bearer token may read /metrics; off without Kubernetes", "bool"
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
class PluginText:
    """One ``--plugin``, taken apart."""

    type: str
    name: str
    parameters: Mapping[str, Any]


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> BbrSettings:
    """Read the command line. Raises FlagError."""
    settings = BbrSettings(**read(BbrSettings, arguments))
    settings = replace(settings, namespace=settings.namespace or environment.get("NAMESPACE") or "default")
    check_choices(settings)
    ports = {name: getattr(settings, name) for name in ("grpc_port", "grpc_health_port", "metrics_port")}
    for name, port in ports.items():
        if not 0 <= port <= 65535:
            raise FlagError(f"--{name.replace('_', '-')}={port}: ports end at 65535")
    given = [port for port in ports.values() if port]
    if len(set(given)) < len(given):
        told = ", ".join(f"--{name.replace('_', '-')}={port}" for name, port in ports.items())
        raise FlagError(f"{told}: the ports must differ")
    if settings.enable_cert_reload and not settings.cert_path:
        raise FlagError("--enable-cert-reload needs --cert-path; a self-signed certificate never changes")
    for text in settings.plugin:
        plugin_text(text)
    return settings


def plugin_text(text: str) -> PluginText:
    """``TYPE:NAME[:JSON]``, taken apart. Raises FlagError."""
    match = re.fullmatch(r"([\w-]+):([\w.-]+)(?::(.*))?", text, re.DOTALL)
    if match is None:
        raise FlagError(f"--plugin={text}: write TYPE:NAME or TYPE:NAME:JSON")
    try:
        parameters = json.loads(match[3] or "{}")
    except ValueError as error:
        raise FlagError(f"--plugin={text}: the parameters are no JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise FlagError(f"--plugin={text}: the parameters must be a JSON object")
    return PluginText(match[1], match[2], parameters)
