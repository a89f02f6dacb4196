# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving: wires the parts of body-based routing together. Only the command line interface imports it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import uvloop

from epp.bbr import config
from epp.bbr.adapters import AdapterWatcher
from epp.bbr.figures import Figures
from epp.bbr.plugins import build, needs_adapters
from epp.bbr.router import BodyRouter
from epp.bbr.settings import BbrSettings, PluginText, plugin_text
from epp.config.errors import ConfigError
from epp.datalayer.kubernetes import KubeClient, KubeConfigError
from epp.extproc import Health, StreamMachine, StreamService, Tracing, Watchdog
from epp.extproc.messages import BodyMode
from epp.flags import FlagError
from epp.observe import AccessGuard, MetricsTls, ObserveOptions, ObserveServer
from epp.process import Running, Servers, StartError, Worker, run_until_stopped, signals
from epp.transport import (
    MESSAGE_SIZE,
    TRANSPORTS,
    CertificateError,
    HealthServer,
    TlsSource,
    TransportOptions,
)

log = logging.getLogger("epp")

_EXPECTED = (ConfigError, StartError, KubeConfigError, CertificateError, OSError, FlagError)


def run(settings: BbrSettings) -> int:
    """Serve until a signal comes; returns the exit status."""
    try:
        uvloop.run(_serve(settings, _texts(settings)))
    except _EXPECTED as error:
        log.error("cannot start: %s", error)
        return 1
    return 0


def _texts(settings: BbrSettings) -> Sequence[PluginText]:
    """The plugins, as the configuration or the flags say; none for the default ones."""
    if settings.config_text:
        return config.load(settings.config_text, "--config-text")
    if settings.config_file:
        try:
            text = Path(settings.config_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"{settings.config_file}: cannot be read: {error}") from None
        return config.load(text, settings.config_file)
    return [plugin_text(text) for text in settings.plugin]


async def _serve(settings: BbrSettings, texts: Sequence[PluginText]) -> None:
    """Wire, start, wait for a signal, drain. Raises what keeps it from starting or running."""
    stop, client, watchdog = signals(), _client(), Watchdog()
    try:
        watcher = AdapterWatcher(client, settings.namespace) if client and needs_adapters(texts) else None
        if watcher is None and needs_adapters(texts):
            log.warning("there is no Kubernetes to read ConfigMaps from: no base model is known")
        figures = Figures()
        plugins = build(texts, watcher.adapters.base_of if watcher else lambda model: "")
        health = Health({"adapters": partial(_synced, watcher)})
        servers = Servers(
            transport=TRANSPORTS[settings.transport](
                _service(settings, BodyRouter(plugins, figures, _tracing(settings)), figures, watchdog),
                _transport_options(settings),
            ),
            health=HealthServer(health, health.services(), port=settings.grpc_health_port),
            observe=_observe(settings, client, figures, health, watcher),
            metrics_port=settings.metrics_port,
            encrypted=settings.secure_serving,
        )
        work: list[Worker] = [watcher] if watcher else []
        watchdog.start()
        try:
            await servers.start()
            await run_until_stopped(Running(servers.transport, health, work, None, stop, settings.drain_timeout))
        finally:
            await servers.stop()
    finally:
        watchdog.stop()
        if client is not None:
            await client.close()


def _client() -> KubeClient | None:
    """The API server; None where nothing says where it is."""
    try:
        return KubeClient.from_environment()
    except KubeConfigError as error:
        if os.environ.get("KUBECONFIG") or os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise
        log.debug("%s", error)
        return None


def _synced(watcher: AdapterWatcher | None) -> bool:
    return watcher is None or watcher.synced


def _service(settings: BbrSettings, router: BodyRouter, figures: Figures, watchdog: Watchdog) -> StreamService:
    assumed = BodyMode.FULL_DUPLEX_STREAMED if settings.streaming else BodyMode.BUFFERED
    machine = partial(StreamMachine, assumed=assumed, marks=False)
    return StreamService(router, figures, watchdog=watchdog, machine=machine)


def _tracing(settings: BbrSettings) -> Tracing | None:
    try:
        return Tracing.from_environment(os.environ) if settings.tracing else None
    except ValueError as error:
        raise StartError(str(error)) from None


def _observe(
    settings: BbrSettings, client: KubeClient | None, figures: Figures, health: Health, watcher: AdapterWatcher | None
) -> ObserveServer:
    options = ObserveOptions(
        port=settings.metrics_port,
        guard=AccessGuard(client) if client is not None and settings.metrics_endpoint_auth else None,
        tls=MetricsTls(settings.metrics_cert_dir) if settings.metrics_cert_dir else None,
        profiling=settings.enable_pprof,
    )

    def state() -> tuple[str, str]:
        return health.problem(), watcher.problem() if watcher else ""

    return ObserveServer(figures, dict, state, options)


def _transport_options(settings: BbrSettings) -> TransportOptions:
    return TransportOptions(
        port=settings.grpc_port,
        tls=TlsSource(settings.cert_path, settings.enable_cert_reload) if settings.secure_serving else None,
        max_receive=settings.grpc_max_recv_msg_size or MESSAGE_SIZE,
        max_send=settings.grpc_max_send_msg_size or MESSAGE_SIZE,
        health_checking=settings.health_checking,
    )
