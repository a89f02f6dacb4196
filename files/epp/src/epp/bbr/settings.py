# SPDX-License-Identifier: GPL-3.0-or-later
"""The flags of ``epp bbr``: those of GAIE's body-based router v1.3 to v1.5 and of llm-d's payload processor, and those
that all services here share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from epp.flags import FlagError, check_common, read
from epp.settings import CommonSettings, flag


@dataclass(frozen=True)
class BbrSettings(CommonSettings):
    """The flags of body-based routing."""

    streaming: bool = flag(
        False, "the gateway sends bodies in FULL_DUPLEX_STREAMED, not BUFFERED, where it does not say it itself", "bool"
    )
    config_file: str = flag("", "PayloadProcessorConfig to use", "string")
    config_text: str = flag("", "PayloadProcessorConfig to use, as text; goes before --config-file", "string")
    plugin: tuple[str, ...] = flag(
        (), 'TYPE:NAME[:JSON], repeat it; default: body-field-to-header for "model", and base-model-to-header', "texts"
    )
    namespace: str = flag("", "namespace of the ConfigMaps (default: environment NAMESPACE, else default)", "string")
    transport: str = flag("grpcio", "what serves ext_proc: h2 (our own) or grpcio", "string")
    grpc_port: int = flag(9004, "port of the ext_proc service", "int")
    grpc_health_port: int = flag(9005, "port of the gRPC health service, plaintext", "int")


@dataclass(frozen=True)
class PluginText:
    """One ``--plugin``, taken apart; or one plugin of the configuration file."""

    type: str
    name: str
    parameters: Mapping[str, Any]


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> BbrSettings:
    """Read the command line. Raises FlagError."""
    settings = BbrSettings(**read(BbrSettings, arguments))
    settings = replace(settings, namespace=settings.namespace or environment.get("NAMESPACE") or "default")
    check_common(settings)
    ports = {name: getattr(settings, name) for name in ("grpc_port", "grpc_health_port", "metrics_port")}
    given = [port for port in ports.values() if port]
    if len(set(given)) < len(given):
        told = ", ".join(f"--{name.replace('_', '-')}={port}" for name, port in ports.items())
        raise FlagError(f"{told}: the ports must differ")
    if settings.plugin and (settings.config_file or settings.config_text):
        raise FlagError("--plugin and --config-file or --config-text exclude each other; name the plugins in one place")
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
