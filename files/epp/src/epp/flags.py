# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: every flag with its default, in the spelling of Go programs.

Names and defaults are those of the reference endpoint picker, so that its arguments work unchanged. Flags of functions
that do not exist here are refused, unless they ask for just that absence (``--tracing=false``). Only the command line
interface imports this module.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from epp.config.document import duration, duration_text


class FlagError(Exception):
    """An argument that cannot be used; the text says which one, why, and what to do."""


def flag(default: Any, text: str, kind: str) -> Any:
    """One flag: its default, its help, and how it is written (bool, int, string, duration, size, ports)."""
    return field(default=default, metadata={"help": text, "kind": kind})


@dataclass(frozen=True)
class Settings:
    """All flags, typed. A field's name is the flag's with underscores. Durations are seconds, sizes bytes."""

    pool_name: str = flag("", "InferencePool whose pods are served", "string")
    pool_namespace: str = flag("", "namespace of the pool (default: environment NAMESPACE, else default)", "string")
    pool_group: str = flag("inference.networking.k8s.io", "API group of the InferencePool", "string")
    endpoint_selector: str = flag("", "serve the pods that this label selector matches, without a pool", "string")
    endpoint_target_ports: tuple[int, ...] = flag((), "1 to 8 ports of those pods, with commas", "ports")
    endpoints_file: str = flag("", "serve the endpoints of this YAML file, without Kubernetes", "string")
    disable_endpoint_subset_filter: bool = flag(False, "ignore the gateway's subset of endpoints", "bool")
    emit_endpoint_scores: bool = flag(False, "tell the gateway each endpoint's score", "bool")
    config_file: str = flag("", "EndpointPickerConfig to use", "string")
    config_text: str = flag("", "EndpointPickerConfig to use, as text", "string")
    grpc_port: int = flag(9002, "port of the ext_proc service", "int")
    grpc_health_port: int = flag(9003, "port of the gRPC health service, plaintext", "int")
    health_checking: bool = flag(False, "answer health checks on the ext_proc port too, always SERVING", "bool")
    metrics_port: int = flag(9090, "port of /metrics, /healthz and /debug/endpoints", "int")
    grpc_max_recv_msg_size: int = flag(0, "largest message from Envoy, as 16Mi (default: 128Mi)", "size")
    grpc_max_send_msg_size: int = flag(0, "largest message to Envoy (default: 128Mi)", "size")
    secure_serving: bool = flag(True, "serve ext_proc with TLS", "bool")
    cert_path: str = flag("", "folder with tls.crt and tls.key (default: self-signed, in memory)", "string")
    enable_cert_reload: bool = flag(False, "take over the files of --cert-path whenever they change", "bool")
    drain_timeout: float = flag(30.0, "after SIGTERM serve for at most this long", "duration")
    refresh_metrics_interval: float = flag(0.05, "time between two readings of a busy endpoint's metrics", "duration")
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
    zap_encoder: str = flag("json", "log format, json or console", "string")
    v: int = flag(2, "log verbosity: 3 logs each request, 5 everything", "int")
    given: frozenset[str] = frozenset()
    """Names of the flags that were on the command line."""


# What is refused, and the one value that is not: the one that asks for what happens anyway.
_ABSENT: Mapping[str, tuple[str, str]] = {
    "allow-experimental-plugins": ("false", "there are no experimental plugins here"),
    "enable-grpc-stream-metrics": ("false", "stream metrics are not implemented yet"),
    "enable-pprof": ("false", "profiling is a function of Go programs"),
    "ha-enable-leader-election": ("false", "leader election is not implemented yet; all replicas serve"),
    "metrics-cert-dir": ("", "HTTPS for metrics is not implemented yet"),
    "metrics-client-ca-file": ("", "HTTPS for metrics is not implemented yet"),
    "metrics-endpoint-auth": ("false", "authentication of metrics is not implemented yet"),
    "refresh-prometheus-metrics-interval": ("", "the pool's metrics are computed when they are read"),
    "tls-cipher-suites": ("", "the TLS library's choice is used"),
    "tls-min-version": ("", "the TLS library's choice is used"),
    "tracing": ("false", "tracing is not implemented yet"),
    "zap-devel": ("false", "use --zap-encoder=console"),
    "zap-log-level": ("", "use -v"),
    "zap-stacktrace-level": ("", "errors carry a stack trace where it helps"),
    "zap-time-encoding": ("", "times are ISO 8601"),
}

_TRUE = ("true", "t", "1")
_FALSE = ("false", "f", "0")
_SIZE = re.compile(r"(\d+)(Ki|Mi|Gi|k|M|G)?")
_SIZES = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the command line. Raises FlagError."""
    known = {_name(each): each for each in fields(Settings) if each.name != "given"}
    values: dict[str, Any] = {}
    for name, text in _pairs(arguments, known):
        if name in _ABSENT:
            _refuse(name, text)
        else:
            values[known[name].name] = _value(name, known[name].metadata["kind"], text)
    settings = Settings(**values, given=frozenset(name.replace("_", "-") for name in values))
    return _checked(settings, environment)


def _pairs(arguments: Sequence[str], known: Mapping[str, Field[Any]]) -> Iterator[tuple[str, str]]:
    """Flag names and values: ``--flag=value``, ``--flag value``, ``--flag`` for true; one dash is as good as two."""
    rest = iter(arguments)
    for argument in rest:
        match = re.fullmatch(r"--?([A-Za-z][\w-]*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            raise FlagError(f"unexpected argument {argument!r}; a switch is set with --flag=true or --flag=false")
        name, text = match.groups()
        if name not in known and name not in _ABSENT:
            near = difflib.get_close_matches(name, [*known, *_ABSENT], n=1, cutoff=0.5)
            raise FlagError(f"unknown flag --{name}" + (f"; did you mean --{near[0]}?" if near else "; see epp --help"))
        if text is None:
            is_switch = known[name].metadata["kind"] == "bool" if name in known else bool(_ABSENT[name][0])
            text = "true" if is_switch else next(rest, None)
        if text is None:
            raise FlagError(f"--{name} needs a value")
        yield name, text


def _refuse(name: str, text: str) -> None:
    accepted, why = _ABSENT[name]
    if accepted == "false" and text.lower() in _FALSE:
        return
    if text != accepted:
        advice = f"; write --{name}=false, or leave the flag out" if accepted else "; leave the flag out"
        raise FlagError(f"--{name}={text} is not supported: {why}{advice}")


def _value(name: str, kind: str, text: str) -> Any:
    """The typed value of one flag. Raises FlagError."""
    if kind == "string":
        return text
    if kind == "bool" and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if kind == "int" and re.fullmatch(r"\d{1,9}", text):
        return int(text)
    if kind == "duration" and (seconds := _seconds(text)) is not None:
        return seconds
    if kind == "size" and (match := _SIZE.fullmatch(text)):
        return int(match[1]) * _SIZES[match[2]]
    if kind == "ports" and re.fullmatch(r"\d{1,5}(,\d{1,5})*", text):
        return tuple(int(part) for part in text.split(","))
    examples = {"bool": "true", "int": "1", "duration": "200ms or 30s", "size": "16Mi", "ports": "8000,8001"}
    nouns = {"bool": "a bool", "int": "a whole number", "duration": "a duration", "size": "a size", "ports": "ports"}
    raise FlagError(f"--{name}={text}: not {nouns[kind]}; write it like {examples[kind]}")


def _seconds(text: str) -> float | None:
    """A Go duration (``1m30s``) in seconds; None if it is not one."""
    try:
        return duration(text)
    except ValueError:
        return None


def _checked(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """Rules that concern more than one flag, and defaults from the environment."""
    sources = ["--pool-name", "--endpoint-selector", "--endpoints-file"]
    chosen = [name for name in sources if getattr(settings, name[2:].replace("-", "_"))]
    if len(chosen) != 1:
        told = f"{' and '.join(chosen)} exclude each other" if chosen else "nothing says which endpoints to serve"
        raise FlagError(f"{told}; give exactly one of {', '.join(sources)}")
    if bool(settings.endpoint_selector) != bool(settings.endpoint_target_ports):
        raise FlagError("--endpoint-selector and --endpoint-target-ports go together; give both or neither")
    ports = settings.endpoint_target_ports
    if len(ports) > 8 or len(set(ports)) != len(ports) or any(not 1 <= port <= 65535 for port in ports):
        raise FlagError(f"--endpoint-target-ports={','.join(map(str, ports))}: give 1 to 8 different ports, 1 to 65535")
    if settings.config_file and settings.config_text:
        raise FlagError("--config-file and --config-text exclude each other; give one")
    if settings.enable_cert_reload and not settings.cert_path:
        raise FlagError("--enable-cert-reload needs --cert-path; a self-signed certificate never changes")
    if settings.refresh_metrics_interval < 0.05:
        raise FlagError("--refresh-metrics-interval must be 50ms or more")
    if settings.zap_encoder not in ("json", "console"):
        raise FlagError(f"--zap-encoder={settings.zap_encoder}: write json or console")
    if settings.model_server_metrics_scheme not in ("http", "https"):
        raise FlagError(f"--model-server-metrics-scheme={settings.model_server_metrics_scheme}: write http or https")
    for name in ("grpc_port", "grpc_health_port", "metrics_port", "model_server_metrics_port"):
        if getattr(settings, name) > 65535:
            raise FlagError(f"--{name.replace('_', '-')}={getattr(settings, name)}: ports end at 65535")
    namespace = settings.pool_namespace or environment.get("NAMESPACE") or "default"
    changed = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return Settings(**{**changed, "pool_namespace": namespace})


def help_text() -> str:
    """All flags, for ``epp --help``."""
    lines = []
    for each in fields(Settings):
        if each.name == "given":
            continue
        kind = each.metadata["kind"]
        default = _written(kind, each.default)
        told = each.metadata["help"] + (f" (default {default})" if default else "")
        name = f"--{_name(each)}" if len(each.name) > 1 else f"-{each.name}"
        lines.append(f"  {name}{'' if kind == 'bool' else ' ' + kind}")
        lines += textwrap.wrap(told, 96, initial_indent="        ", subsequent_indent="        ")
    refused = textwrap.fill(", ".join(f"--{name}" for name in _ABSENT), 96, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*lines, "", "Known, but only accepted when they switch off what is not there:", refused])


def _written(kind: str, default: Any) -> str:
    if kind == "bool":
        return str(default).lower()
    if kind == "duration":
        return duration_text(default)
    return "" if default in ("", (), 0) else str(default)


def _name(each: Field[Any]) -> str:
    return each.name.replace("_", "-")
