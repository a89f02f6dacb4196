# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``epp``: reads flags, and hands over to what they ask for. Nothing else imports it.

Serving is imported only when it is wanted: gRPC reads its environment when it is imported, and some flags end up there.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from epp import __version__, catalogue, ciphers, config
from epp.config import ConfigError, EndpointPickerConfig
from epp.flags import FlagError, Settings, check_without_kubernetes, help_text, missing_source, parse
from epp.observe.log import LogOptions, setup_logging
from epp.plugins import external, registry
from epp.plugins.external import PluginLoadError

log = logging.getLogger("epp")

_HELP = f"""epp {__version__}: an endpoint picker for Envoy's external processing filter

  epp [flags]                   serve
  epp check CONFIG              check an EndpointPickerConfig, and print what it comes to
  epp plugins                   list all plugins with their parameters (--markdown: as a page)
  epp bbr [flags]               serve body-based routing; its flags: epp bbr --help
  epp envoy-bootstrap [flags]   print a configuration of Envoy that fits; its flags: epp envoy-bootstrap --help
  epp --version                 print the version
"""


class StartError(Exception):
    """Something that keeps the EPP from starting; the text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 well, 1 cannot run, 2 wrong arguments."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = arguments[0] if arguments else ""
    if first in ("-h", "-help", "--help", "help"):
        print(f"{_HELP}\nFlags:\n{help_text()}")
        return 0
    if first in ("--version", "version"):
        print(__version__)
        return 0
    try:
        if first in COMMANDS:
            return COMMANDS[first](arguments[1:])
        return _serve(parse(arguments, os.environ))
    except FlagError as error:
        print(f"epp: {error}", file=sys.stderr)
        return 2
    except (ConfigError, StartError, PluginLoadError) as error:
        print(f"epp: {error}", file=sys.stderr)
        return 1


def _check(arguments: Sequence[str]) -> int:
    rest = _with_plugins(arguments)
    if len(rest) != 1 or rest[0].startswith("-"):
        raise FlagError("check takes one argument, the file with the EndpointPickerConfig, and --plugin-path")
    cfg = config.load(_read(rest[0]), rest[0])
    print(config.effective(cfg), end="")
    for warning in cfg.warnings:
        print(f"epp: warning: {warning}", file=sys.stderr)
    return 0


def _plugins(arguments: Sequence[str]) -> int:
    rest = _with_plugins(arguments)
    if rest not in ([], ["--markdown"]):
        raise FlagError("plugins takes --markdown, and --plugin-path")
    print(catalogue.markdown() if rest else catalogue.text(registry()), end="")
    return 0


def _with_plugins(arguments: Sequence[str]) -> list[str]:
    """Load plugins of one's own, as ``--plugin-path`` says; returns the other arguments."""
    paths: list[str] = []
    rest: list[str] = []
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name in ("--plugin-path", "-plugin-path"):
            paths.append(value if equals else next(given, ""))
        else:
            rest.append(argument)
    _load_plugins(paths)
    return rest


def _load_plugins(paths: Sequence[str]) -> None:
    external.load_entry_points()
    for path in paths:
        external.load_path(path)


def _envoy_bootstrap(arguments: Sequence[str]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between two libraries: nothing that a reader could act upon
        from epp import envoy_bootstrap  # brings a large library that serving has no use for

    return envoy_bootstrap.main(arguments)


def _bbr(arguments: Sequence[str]) -> int:
    from epp.bbr.settings import BbrSettings
    from epp.bbr.settings import parse as parse_bbr

    if any(argument in ("-h", "-help", "--help") for argument in arguments):
        print(f"epp bbr: sets headers from the bodies of requests\n\nFlags:\n{help_text(BbrSettings)}")
        return 0
    settings = parse_bbr(arguments, os.environ)
    _log(settings)
    from epp.bbr import serve

    return serve.run(settings)


def _log(settings: Any) -> None:
    """Set logging up by the flags that every service has."""
    encoder = settings.zap_encoder or ("console" if settings.zap_devel else "json")
    level, traces, times = settings.zap_log_level, settings.zap_stacktrace_level, settings.zap_time_encoding
    setup_logging(LogOptions(encoder, settings.v, level, traces, times))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "bbr": _bbr,
    "check": _check,
    "plugins": _plugins,
    "envoy-bootstrap": _envoy_bootstrap,
}


def _serve(settings: Settings) -> int:
    _log(settings)
    try:
        _load_plugins(settings.plugin_path)
    except PluginLoadError as error:
        log.error("cannot start: %s", error)
        return 1
    try:
        cfg = config.with_environment(_load_config(settings), os.environ)
    except (ConfigError, StartError) as error:
        if not _by_flag(settings):
            raise FlagError(
                f"{missing_source()}; the configuration, which may say it, too, is broken: {error}"
            ) from None
        log.error("cannot start: %s", error)
        return 1
    _check_sources(settings, cfg)
    _check_workers(settings, cfg)
    _set_ciphers(settings)
    if settings.workers > 1:
        from epp import workers

        return workers.run(settings, cfg)
    from epp import serve

    return serve.run(settings, cfg)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{path}: cannot be read: {error}") from None


def _load_config(settings: Settings) -> EndpointPickerConfig:
    gates = config.gates(os.environ)
    if settings.config_file:
        return config.load(_read(settings.config_file), settings.config_file, gates)
    if settings.config_text:
        return config.load(settings.config_text, "--config-text", gates)
    return config.default(gates)


def _by_flag(settings: Settings) -> bool:
    """Whether the command line says where the endpoints are."""
    return bool(settings.pool_name or settings.endpoint_selector or settings.endpoints_file)


def _check_sources(settings: Settings, cfg: EndpointPickerConfig) -> None:
    """Endpoints come from one place: flags or the configuration. Raises FlagError."""
    by_flag = _by_flag(settings)
    if cfg.discovery and by_flag:
        raise FlagError(
            f"{cfg.source}: dataLayer.discovery says which endpoints to serve, and a flag does, too; remove one of them"
        )
    if not cfg.discovery and not by_flag:
        raise missing_source()
    if cfg.discovery:
        check_without_kubernetes(settings)


def _check_workers(settings: Settings, cfg: EndpointPickerConfig) -> None:
    """Raises FlagError for several workers with what only one process can do."""
    if settings.workers > 1 and cfg.flow_control is not None:
        raise FlagError(
            f"--workers={settings.workers}: {cfg.source} lets requests wait (feature gate flowControl), and a queue "
            "with its limits is one process's; use --workers=1, or drop the feature gate"
        )
    for plugin in cfg.plugins:
        parameters: Any = plugin.parameters
        if (
            settings.workers > 1
            and hasattr(parameters, "kv_events_config")
            and parameters.kv_events_config.zmq_endpoint
        ):
            raise FlagError(
                f"--workers={settings.workers}: {cfg.source} has engines connect with one process ({plugin.name}: "
                "kvEventsConfig.zmqEndpoint); use --workers=1, or let it connect with them (discoverPods)"
            )


def _set_ciphers(settings: Settings) -> None:
    try:
        suites = ciphers.grpc_suites(settings.tls_min_version, settings.tls_cipher_suites)
    except ValueError as error:
        raise FlagError(f"--tls-cipher-suites={','.join(settings.tls_cipher_suites)}: {error}") from None
    if suites:
        os.environ[ciphers.GRPC_VARIABLE] = suites
