# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``epp``: reads flags, wires the rooms together, runs until told to stop. Nothing else imports it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import uvloop

from epp import __version__, config, plugins
from epp.config import ConfigError, EndpointPickerConfig
from epp.datalayer import Datastore, EndpointsFile, PoolWatcher, Scraper, SelectorWatcher, Source
from epp.datalayer.file import EndpointsFileError
from epp.datalayer.kubernetes import KubeClient, KubeConfigError
from epp.extproc import Director, DirectorOptions, Health, StreamService
from epp.extproc.health import SERVICES
from epp.flags import FlagError, Settings, help_text, parse
from epp.observe import ObserveServer, Recorder, setup_logging
from epp.scheduling import Scheduler
from epp.transport import (
    MESSAGE_SIZE,
    CertificateError,
    GrpcioTransport,
    HealthServer,
    TlsSource,
    Transport,
    TransportOptions,
)

log = logging.getLogger("epp")

_HELP = f"""epp {__version__}: an endpoint picker for Envoy's external processing filter

  epp [flags]         serve
  epp check CONFIG    check an EndpointPickerConfig, and print what it comes to
  epp --version       print the version
"""


class Worker(Protocol):
    """A part of the data layer that works in the background."""

    async def run(self) -> None:
        """Work until cancelled."""


class StartError(Exception):
    """Something that keeps the EPP from starting; the text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 well, 1 cannot run, 2 wrong arguments."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if any(argument in ("-h", "-help", "--help", "help") for argument in arguments[:1]):
        print(f"{_HELP}\nFlags:\n{help_text()}")
        return 0
    if arguments[:1] in (["--version"], ["version"]):
        print(__version__)
        return 0
    try:
        if arguments[:1] == ["check"]:
            return _check(arguments[1:])
        settings = parse(arguments, os.environ)
    except FlagError as error:
        print(f"epp: {error}", file=sys.stderr)
        return 2
    except (ConfigError, StartError) as error:
        print(f"epp: {error}", file=sys.stderr)
        return 1
    setup_logging(settings.zap_encoder, settings.v)
    try:
        uvloop.run(_serve(settings))
    except (ConfigError, StartError, EndpointsFileError, KubeConfigError, CertificateError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    return 0


def _check(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise FlagError("check takes one argument, the file with the EndpointPickerConfig")
    print(config.effective(config.load(_read(arguments[0]), arguments[0])), end="")
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{path}: cannot be read: {error}") from None


def _load_config(settings: Settings) -> EndpointPickerConfig:
    if settings.config_file:
        return config.load(_read(settings.config_file), settings.config_file)
    if settings.config_text:
        return config.load(settings.config_text, "--config-text")
    return config.default()


@dataclass
class _Servers:
    """What listens."""

    transport: Transport
    health: HealthServer
    observe: ObserveServer

    async def start(self, settings: Settings) -> None:
        """Listen on all ports. Raises OSError for one that cannot be had."""
        grpc = await self.transport.start()
        health = await self.health.start()
        try:
            metrics = await self.observe.start("", settings.metrics_port)
        except OSError as error:
            raise OSError(f"cannot listen on --metrics-port={settings.metrics_port}: {error.strerror}") from None
        tls = "TLS" if settings.secure_serving else "plaintext"
        log.info("serving: ext_proc on %d (%s), health on %d, metrics on %d", grpc, tls, health, metrics)

    async def stop(self) -> None:
        """Close whatever is open."""
        await self.transport.stop()
        await self.health.stop()
        await self.observe.stop()


async def _serve(settings: Settings) -> None:
    """Wire, start, wait for a signal, drain. Raises what keeps it from starting or running."""
    stop = _signals()
    cfg = _load_config(settings)
    pool = settings.pool_name or settings.endpoint_selector or Path(settings.endpoints_file).name
    datastore, recorder = Datastore(pool), Recorder(pool)
    recorder.watch_pool(datastore.endpoints, settings.metrics_staleness_threshold)
    scheduler = Scheduler.from_config(cfg, plugins.registry(), datastore, recorder)
    given = {name: getattr(settings, name.replace("-", "_")) for name in settings.given}
    scraper = Scraper(datastore, config.scrape_options(cfg, given), recorder.scrape_failed)
    options = DirectorOptions(not settings.disable_endpoint_subset_filter, settings.emit_endpoint_scores)
    service = StreamService(Director(scheduler, datastore, recorder, options), recorder)
    health = Health(lambda: datastore.synced)
    servers = _Servers(
        transport=GrpcioTransport(service, _transport_options(settings)),
        health=HealthServer(health, SERVICES, port=settings.grpc_health_port),
        observe=ObserveServer(recorder, datastore.endpoints, health.problem),
    )
    source, client = _source(settings, datastore)
    try:
        await servers.start(settings)
        await _run(settings, servers.transport, health, (source, scraper), stop)
    finally:
        await servers.stop()
        if client is not None:
            await client.close()


async def _run(
    settings: Settings, transport: Transport, health: Health, work: Sequence[Worker], stop: asyncio.Event
) -> None:
    """Work until a signal comes, then drain. Raises if a part of the work ends by itself."""
    gc.freeze()  # what exists now lives as long as the process: keep the collector away from it
    tasks = [asyncio.create_task(each.run()) for each in work]
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        _raise_if_dead(tasks)
        await _drain(settings, transport, health, stop)
    finally:
        for task in (waiting, *tasks):
            task.cancel()
        await asyncio.gather(waiting, *tasks, return_exceptions=True)


async def _drain(settings: Settings, transport: Transport, health: Health, stop: asyncio.Event) -> None:
    """Say that no traffic is wanted, and serve what comes nevertheless. A second signal ends it."""
    health.draining = True
    stop.clear()
    log.info("shutting down: NOT_SERVING, open streams have %g s", settings.drain_timeout)
    draining = asyncio.create_task(transport.drain(settings.drain_timeout))
    second = asyncio.create_task(stop.wait())
    await asyncio.wait([draining, second], return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, second):
        task.cancel()
    log.info("stopped")


def _raise_if_dead(tasks: Sequence[asyncio.Task[None]]) -> None:
    """The data layer works until it is cancelled. If a part of it ended, the process must not live on half-dead."""
    for task in tasks:
        if task.done():
            error = None if task.cancelled() else task.exception()
            raise error or StartError("a background task ended unexpectedly")


def _signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _source(settings: Settings, datastore: Datastore) -> tuple[Source, KubeClient | None]:
    """What fills the datastore, and the Kubernetes connection that it uses, if any."""
    if settings.endpoints_file:
        file = EndpointsFile(datastore, settings.endpoints_file)
        file.load()
        return file, None
    client = KubeClient.from_environment()
    namespace = settings.pool_namespace
    if settings.pool_name:
        return PoolWatcher(datastore, client, namespace, settings.pool_name, settings.pool_group), client
    try:
        ports = settings.endpoint_target_ports
        return SelectorWatcher(datastore, client, namespace, settings.endpoint_selector, ports), client
    except ValueError as error:
        raise StartError(f"--endpoint-selector={settings.endpoint_selector}: {error}") from None


def _transport_options(settings: Settings) -> TransportOptions:
    return TransportOptions(
        port=settings.grpc_port,
        tls=TlsSource(settings.cert_path, settings.enable_cert_reload) if settings.secure_serving else None,
        max_receive=settings.grpc_max_recv_msg_size or MESSAGE_SIZE,
        max_send=settings.grpc_max_send_msg_size or MESSAGE_SIZE,
        health_checking=settings.health_checking,
    )
