# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the command line in the spelling of Go programs, and refuses what cannot be meant.

Only the command line interface imports this module.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import Any

from epp.config.document import duration, duration_text
from epp.settings import CommonSettings, Settings

__all__ = ["FlagError", "Settings", "help_text", "parse"]


class FlagError(Exception):
    """An argument that cannot be used; the text says which one, why, and what to do."""


REPEATED = ("names", "paths", "ports", "list", "texts")
"""Kinds that collect their values when a flag is there more than once; of the others the last one counts."""

_TRUE = ("true", "t", "1")
_FALSE = ("false", "f", "0")
_SIZE = re.compile(r"(\d+)(Ki|Mi|Gi|k|M|G)?")
_SIZES = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
SOURCES = ("--pool-name", "--endpoint-selector", "--endpoints-file")
MAX_WORKERS = 64
_CHOICES = {
    "transport": ("h2", "grpcio"),
    "zap_encoder": ("", "json", "console"),
    "model_server_metrics_scheme": ("http", "https"),
    "zap_stacktrace_level": ("", "info", "error", "panic"),
    "zap_time_encoding": ("", "epoch", "millis", "nano", "iso8601", "rfc3339", "rfc3339nano"),
    "tls_min_version": ("", "VersionTLS12", "VersionTLS13"),
}


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the command line. Raises FlagError."""
    values = read(Settings, arguments)
    settings = Settings(**values, given=frozenset(name.replace("_", "-") for name in values))
    namespace = settings.pool_namespace or environment.get("NAMESPACE") or "default"
    settings = replace(
        settings,
        pool_namespace=namespace,
        endpoint_target_ports=tuple(dict.fromkeys(settings.endpoint_target_ports)),
        pool_name=tuple(dict.fromkeys(settings.pool_name)),
    )
    for check in (_check_sources, check_common, _check_numbers, _check_files, _check_workers):
        check(settings)
    return settings


def read(settings: type[Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The values that a command line gives to the fields of a class of settings. Raises FlagError."""
    known = {_name(each): each for each in fields(settings) if each.name != "given"}
    values: dict[str, Any] = {}
    for name, text in _pairs(arguments, known):
        target, kind = known[name].name, known[name].metadata["kind"]
        value = _value(name, kind, text)
        values[target] = (*values.get(target, ()), *value) if kind in REPEATED else value
    return values


def _pairs(arguments: Sequence[str], known: Mapping[str, Field[Any]]) -> Iterator[tuple[str, str]]:
    """Flag names and values: ``--flag=value``, ``--flag value``, ``--flag`` for true; one dash is as good as two."""
    rest = iter(arguments)
    for argument in rest:
        match = re.fullmatch(r"--?([A-Za-z][\w-]*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            raise FlagError(f"unexpected argument {argument!r}; a switch is set with --flag=true or --flag=false")
        name, text = match.groups()
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
            raise FlagError(f"unknown flag --{name}" + (f"; did you mean --{near[0]}?" if near else "; see epp --help"))
        if text is None:
            text = "true" if known[name].metadata["kind"] == "bool" else next(rest, None)
        if text is None:
            raise FlagError(f"--{name} needs a value")
        yield name, text


def _value(name: str, kind: str, text: str) -> Any:
    """The typed value of one flag. Raises FlagError."""
    if kind == "string":
        return text
    if kind == "texts":
        return (text,)
    if kind == "bool" and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if kind == "int" and re.fullmatch(r"\d{1,9}", text):
        return int(text)
    if kind == "duration" and (seconds := _seconds(text)) is not None:
        return seconds
    if kind == "size" and (match := _SIZE.fullmatch(text)):
        return int(match[1]) * _SIZES[match[2]]
    if kind == "ports" and re.fullmatch(r"(\d{1,5}(,\d{1,5})*)?", text):
        return tuple(int(part) for part in text.split(",") if part)
    if kind == "list":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind == "paths" and text:
        return (text,)
    if kind == "names" and re.fullmatch(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?", text):
        return (text,) if text else ()
    examples = {"bool": "true", "int": "1", "duration": "200ms or 30s", "size": "16Mi", "ports": "8000,8001"}
    nouns = {"bool": "a bool", "int": "a whole number", "duration": "a duration", "size": "a size", "ports": "ports"}
    noun, example = nouns.get(kind, "the name of an object"), examples.get(kind, "llama-8b")
    raise FlagError(f"--{name}={text}: not {noun}; write it like {example}")


def _seconds(text: str) -> float | None:
    """A Go duration (``1m30s``) in seconds; None if it is not one."""
    try:
        return duration(text)
    except ValueError:
        return None


def _check_sources(settings: Settings) -> None:
    """At most one source of endpoints; none is in order when the configuration brings one."""
    chosen = [name for name in SOURCES if getattr(settings, name[2:].replace("-", "_"))]
    if len(chosen) > 1:
        raise FlagError(f"{' and '.join(chosen)} exclude each other; give exactly one of {', '.join(SOURCES)}")
    if bool(settings.endpoint_selector) != bool(settings.endpoint_target_ports):
        raise FlagError("--endpoint-selector and --endpoint-target-ports go together; give both or neither")
    ports = settings.endpoint_target_ports
    if len(ports) > 8 or any(not 1 <= port <= 65535 for port in ports):
        raise FlagError(f"--endpoint-target-ports={','.join(map(str, ports))}: give 1 to 8 different ports, 1 to 65535")
    if settings.endpoints_file:
        check_without_kubernetes(settings)


def check_without_kubernetes(settings: Settings) -> None:
    """What needs an API server cannot be asked for where there is none. Raises FlagError."""
    if settings.ha_enable_leader_election:
        raise FlagError("--ha-enable-leader-election needs Kubernetes, and the endpoints come from a file; drop it")
    if settings.metrics_endpoint_auth and "metrics-endpoint-auth" in settings.given:
        raise FlagError(
            "--metrics-endpoint-auth=true needs Kubernetes, and the endpoints come from a file; leave it out, "
            "and use --metrics-client-ca-file to let only some clients in"
        )


def missing_source() -> FlagError:
    """The error for a command line, and a configuration, that say nothing of endpoints."""
    return FlagError(f"nothing says which endpoints to serve; give exactly one of {', '.join(SOURCES)}")


def check_common(settings: CommonSettings) -> None:
    """The flags that all services share, and choices of any. Raises FlagError."""
    _check_choices(settings)
    for name in ("grpc_port", "grpc_health_port", "metrics_port"):
        _check_port(settings, name)
    if settings.enable_cert_reload and not settings.cert_path:
        raise FlagError("--enable-cert-reload needs --cert-path; a self-signed certificate never changes")


def _check_port(settings: CommonSettings, name: str) -> None:
    port = getattr(settings, name)
    if port > 65535:
        raise FlagError(f"--{name.replace('_', '-')}={port}: ports end at 65535")


def _check_choices(settings: CommonSettings) -> None:
    """Of flags that have but a few values, only those."""
    for field, choices in _CHOICES.items():
        value = getattr(settings, field, choices[0])
        if value not in choices:
            named = [choice for choice in choices if choice]
            advice = f"{', '.join(named[:-1])} or {named[-1]}"
            reason = " (gRPC speaks nothing older than 1.2)" if value in ("VersionTLS10", "VersionTLS11") else ""
            raise FlagError(f"--{field.replace('_', '-')}={value}: write {advice}{reason}")
    level = settings.zap_log_level
    if level not in ("", "debug", "info", "error", "panic") and not re.fullmatch(r"[1-9]\d{0,2}", level):
        raise FlagError(f"--zap-log-level={level}: write debug, info, error, panic, or a number from 1 on")


def _check_numbers(settings: Settings) -> None:
    if settings.refresh_metrics_interval < 0.05:
        raise FlagError("--refresh-metrics-interval must be 50ms or more")
    _check_port(settings, "model_server_metrics_port")


def _check_workers(settings: Settings) -> None:
    if not 1 <= settings.workers <= MAX_WORKERS:
        raise FlagError(f"--workers={settings.workers}: give 1 to {MAX_WORKERS}, and no more than there are cores")
    if settings.workers > 1 and settings.transport != "h2":
        raise FlagError(
            f"--workers={settings.workers} needs --transport=h2: connections are accepted by one process and served by "
            f"others, which {settings.transport} cannot do"
        )


def _check_files(settings: Settings) -> None:
    if settings.config_file and settings.config_text:
        raise FlagError("--config-file and --config-text exclude each other; give one")
    if settings.metrics_client_ca_file and not settings.metrics_cert_dir:
        raise FlagError("--metrics-client-ca-file needs --metrics-cert-dir; clients show certificates over HTTPS only")


def help_text(settings: type[Any] = Settings) -> str:
    """All flags, for ``epp --help``: first those that only this service has."""
    shared = {each.name for each in fields(CommonSettings)}
    lines = []
    for each in sorted(fields(settings), key=lambda each: each.name in shared):
        if each.name == "given":
            continue
        kind = each.metadata["kind"]
        default = _written(kind, each.default)
        told = each.metadata["help"] + (f" (default {default})" if default else "")
        name = f"--{_name(each)}" if len(each.name) > 1 else f"-{each.name}"
        lines.append(f"  {name}{'' if kind == 'bool' else ' ' + kind}")
        lines += textwrap.wrap(told, 96, initial_indent="        ", subsequent_indent="        ")
    return "\n".join(lines)


def _written(kind: str, default: Any) -> str:
    if kind == "bool":
        return str(default).lower()
    if kind == "duration":
        return duration_text(default)
    return "" if default in ("", (), 0) else str(default)


def _name(each: Field[Any]) -> str:
    return each.name.replace("_", "-")
