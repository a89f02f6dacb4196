# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving: wires the rooms together, runs until told to stop, drains. Only the command line interface imports it."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from epp import ciphers, config, plugins
from epp.config import ConfigError, EndpointPickerConfig
from epp.datalayer import Datastore, EndpointsFile, ModelsReader, PoolWatcher, Scraper, SelectorWatcher, Source
from epp.datalayer.file import EndpointsFileError
from epp.datalayer.kubernetes import KubeClient, KubeConfigError
from epp.datalayer.lease import Election, LeaseName
from epp.datalayer.objectives import Objectives
from epp.extproc import AnsweringRouter, Director, DirectorOptions, Health, PoolRouter, StreamService, Tracing, Watchdog
from epp.extproc.director import Ticket
from epp.extproc.exchange import Router
from epp.flowcontrol import FlowController
from epp.model import Endpoint
from epp.observe import (
    AccessGuard,
    Insight,
    MetricsTls,
    ObserveOptions,
    ObserveServer,
    Page,
    PoolRecorder,
    PoolView,
    Recorder,
)
from epp.plugins.file_discovery import FileDiscoveryParameters
from epp.plugins.inflight_load_producer import InflightLoadProducer
from epp.process import Running, Servers, StartError, Worker, run_until_stopped, signals
from epp.queueing import flow_controller
from epp.requests import BodyReader, Guarded, Parsers
from epp.scheduling import BodyParser, PluginError, Scheduler
from epp.settings import Settings
from epp.statesync import Ledger, PeersOptions, StateSync
from epp.transport import (
    MESSAGE_SIZE,
    TRANSPORTS,
    CertificateError,
    HealthServer,
    KeyPair,
    TlsSource,
    TransportOptions,
)

log = logging.getLogger("epp")


Stores = Mapping[str, Datastore]
"""The datastores by the names of their pools."""

EXPECTED = (
    ConfigError,
    StartError,
    PluginError,
    EndpointsFileError,
    KubeConfigError,
    CertificateError,
    OSError,
)
"""What keeps a process from starting, and speaks for itself."""


def run(settings: Settings, cfg: EndpointPickerConfig) -> int:
    """Serve until a signal comes; returns the exit status."""
    for warning in cfg.warnings:
        log.warning("%s: %s", cfg.source, warning)
    try:
        uvloop.run(_serve(settings, cfg))
    except EXPECTED as error:
        log.error("cannot start: %s", error)
        return 1
    return 0


@dataclass(frozen=True)
class Supply:
    """What is known of one pool, and what keeps it up to date."""

    datastore: Datastore
    source: Source
    scraper: Scraper
    models: ModelsReader | None
    """Asks the endpoints for their models, if anybody wants to know."""

    def work(self) -> list[Worker]:
        """What has to run."""
        return [each for each in (self.source, self.scraper, self.models) if each]


@dataclass(frozen=True)
class Way:
    """The way of one pool's requests."""

    router: Router
    workers: Sequence[Worker]
    """Plugins that work beside the requests."""
    flow_control: FlowController[Ticket] | None
    """None when requests do not wait."""


async def _serve(settings: Settings, cfg: EndpointPickerConfig) -> None:
    """Wire, start, wait for a signal, drain. Raises what keeps it from starting or running."""
    stop = signals()
    recorder = Recorder(streams=settings.enable_grpc_stream_metrics)
    client = kubernetes(settings, cfg, recorder)
    watchdog = Watchdog()
    try:
        objectives = Objectives(client, settings.pool_namespace) if client and settings.pool_name else None
        known = supplies(settings, cfg, client, recorder)
        stores = {name: each.datastore for name, each in known.items()}
        serves = serving(settings, cfg, stores, objectives, recorder, watchdog)
        health = Health(
            {name: partial(_synced, store) for name, store in stores.items()}, settings.ha_enable_leader_election
        )
        election = leader_election(settings, cfg, client, health, recorder)
        servers = Servers(
            transport=TRANSPORTS[settings.transport](serves.service, transport_options(settings)),
            health=HealthServer(health, health.services(), port=settings.grpc_health_port),
            observe=observing(
                settings, client, recorder, Insight(recorder.decisions), stores, troubles(known, health, election)
            ),
            metrics_port=settings.metrics_port,
            encrypted=settings.secure_serving,
            sync=_sync(settings, stores, recorder),
        )
        work: list[Worker] = [each for supply in known.values() for each in supply.work()]
        work += serves.workers
        if objectives is not None:
            work.append(objectives)
        if servers.sync is not None:
            work.append(servers.sync)
        watchdog.start()
        try:
            await servers.start()
            await run_until_stopped(
                Running(servers.transport, health, work, election, stop, settings.drain_timeout, serves.queues)
            )
        finally:
            await servers.stop()
    finally:
        watchdog.stop()
        if client is not None:
            await client.close()


def identity() -> str:
    """Names this process among all others, also among those that were here before."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4()}"


def _sync(settings: Settings, stores: Stores, recorder: Recorder) -> StateSync | None:
    """What exchanges state with the other replicas, if there are to be any."""
    if not settings.statesync_peers:
        return None
    ledger = Ledger(identity(), stores)
    return StateSync(ledger, PeersOptions(settings.statesync_port, settings.statesync_peers), recorder.peers)


def _synced(datastore: Datastore) -> bool:
    return datastore.synced


def _service(cfg: EndpointPickerConfig, router: Router, recorder: Recorder, watchdog: Watchdog) -> StreamService:
    """What the transport serves. Where requests wait, flow control itself says how long."""
    if cfg.flow_control is None:
        return StreamService(router, recorder, watchdog=watchdog)
    evicting = cfg.flow_control.eviction is not None
    return StreamService(router, recorder, decision_timeout=None, watchdog=watchdog, interruptible=evicting)


@dataclass(frozen=True)
class Serving:
    """What the transport serves, and all that belongs to it."""

    service: StreamService
    workers: Sequence[Worker]
    """Plugins that work beside the requests."""
    queues: Sequence[FlowController[Ticket]]
    """Where requests wait."""


def serving(
    settings: Settings,
    cfg: EndpointPickerConfig,
    stores: Stores,
    objectives: Objectives | None,
    recorder: Recorder,
    watchdog: Watchdog,
) -> Serving:
    """What decides: for each pool its own plugins and prefix index. Raises what keeps one from being made."""
    ways = _ways(settings, cfg, stores, objectives, recorder, watchdog)
    routers = {name: way.router for name, way in ways.items()}
    router = next(iter(routers.values())) if len(routers) == 1 else PoolRouter(routers, recorder)
    queues = [way.flow_control for way in ways.values() if way.flow_control is not None]
    workers = [each for way in ways.values() for each in way.workers]
    return Serving(_service(cfg, router, recorder, watchdog), workers, queues)


def _parsers(cfg: EndpointPickerConfig, scheduler: Scheduler) -> Parsers:
    """What understands bodies: the parsers of the requests room by their types, those of somebody else as they are."""
    names: list[str] = []
    own: dict[str, BodyReader] = {}
    for name in cfg.parsers:
        plugin = scheduler.plugin(name)
        if isinstance(plugin, BodyParser):
            if not plugin.PATHS:
                raise StartError(
                    f"{cfg.source}: requestHandler.parsers: {name} ({plugin.TYPE}) has no PATHS; name some"
                )
            own[name] = Guarded(plugin, name)
        names.append(name if name in own else plugin.TYPE)
    try:
        return Parsers(names, own)
    except KeyError as error:
        raise StartError(
            f"{cfg.source}: requestHandler.parsers: nothing is known of what {error} understands; a parser of one's "
            "own inherits from epp.scheduling.BodyParser"
        ) from None


def _file(settings: Settings, cfg: EndpointPickerConfig) -> FileDiscoveryParameters | None:
    """The endpoints file, from the flag or the configuration; None when the endpoints come from Kubernetes."""
    if settings.endpoints_file:
        return FileDiscoveryParameters(settings.endpoints_file, watch_file=True)
    if not cfg.discovery:
        return None
    parameters = cfg.plugin(cfg.discovery).parameters
    assert isinstance(parameters, FileDiscoveryParameters)
    return parameters


def kubernetes(settings: Settings, cfg: EndpointPickerConfig, recorder: Recorder) -> KubeClient | None:
    """The API server; None when the endpoints come from a file."""
    if _file(settings, cfg):
        return None
    client = KubeClient.from_environment()
    client.on_failure = recorder.watch_failed
    return client


def load_producer(cfg: EndpointPickerConfig) -> str:
    """Under whose name the requests in flight are shown: they are counted whether or not a plugin asks for it."""
    kind = InflightLoadProducer.TYPE
    return next((spec.name for spec in cfg.plugins if spec.type == kind), kind)


def pool_names(settings: Settings, cfg: EndpointPickerConfig) -> Sequence[str]:
    """The names of the pools; where there is none, one that stands for it."""
    file = _file(settings, cfg)
    return settings.pool_name or (Path(file.path).name if file else _deployment(settings),)


def supplies(
    settings: Settings, cfg: EndpointPickerConfig, client: KubeClient | None, recorder: Recorder
) -> dict[str, Supply]:
    """Each pool with its own endpoints. Raises what keeps one from being made."""
    file = _file(settings, cfg)
    given = {name: getattr(settings, name.replace("-", "_")) for name in settings.given}
    scraping, asking = config.scrape_options(cfg, given), config.models_options(cfg)
    found = {}
    for name in pool_names(settings, cfg):
        datastore = Datastore(name)
        source = _source(settings, file, client, datastore)
        stale = settings.metrics_staleness_threshold
        recorder.watch_pool(PoolView(name, datastore.endpoints, stale, source.problem, load_producer(cfg)))
        scraper = Scraper(datastore, scraping, recorder.scrape_failed)
        found[name] = Supply(datastore, source, scraper, ModelsReader(datastore, asking) if asking else None)
    return found


def _ways(
    settings: Settings,
    cfg: EndpointPickerConfig,
    stores: Stores,
    objectives: Objectives | None,
    recorder: Recorder,
    watchdog: Watchdog,
) -> dict[str, Way]:
    tracing = _tracing(settings)
    subset = not settings.disable_endpoint_subset_filter
    ways = {}
    for name, datastore in stores.items():
        scheduler = Scheduler.from_config(cfg, plugins.registry(), datastore, PoolRecorder(recorder, name))
        of_pool = objectives.of_pool(name) if objectives else None
        queue = flow_controller(cfg, scheduler, datastore, recorder, watchdog)
        options = DirectorOptions(subset, settings.emit_endpoint_scores, tracing, _parsers(cfg, scheduler))
        director = Director(scheduler, datastore, recorder, options, of_pool, queue, watchdog)
        director.decided = partial(recorder.decisions.note, name)
        router: Router = director
        if scheduler.responders:
            router = AnsweringRouter(director, scheduler.responders, director.candidates)
        ways[name] = Way(router, scheduler.workers, queue)
    return ways


def _source(
    settings: Settings, file: FileDiscoveryParameters | None, client: KubeClient | None, datastore: Datastore
) -> Source:
    """What fills a datastore."""
    if file is not None:
        endpoints = EndpointsFile(datastore, file.path, watch=file.watch_file)
        endpoints.load()
        return endpoints
    assert client is not None
    namespace = settings.pool_namespace
    if not settings.endpoint_selector:
        try:
            return PoolWatcher(datastore, client, namespace, datastore.pool, settings.pool_group)
        except ValueError as error:
            raise StartError(f"--pool-group: {error}") from None
    try:
        return SelectorWatcher(datastore, client, namespace, settings.endpoint_selector, settings.endpoint_target_ports)
    except ValueError as error:
        raise StartError(f"--endpoint-selector={settings.endpoint_selector}: {error}") from None


def _deployment(settings: Settings) -> str:
    """The name that stands for the pool where there is none: this pod's Deployment, as in the reference."""
    pod = os.environ.get("POD_NAME", "")
    match = re.fullmatch(r"(.+)-[a-z0-9]+-[a-z0-9]+", pod)
    return match[1] if match else settings.endpoint_selector


def _tracing(settings: Settings) -> Tracing | None:
    try:
        return Tracing.from_environment(os.environ) if settings.tracing else None
    except ValueError as error:
        raise StartError(str(error)) from None


LEASE_DOMAINS = {"llm-d.ai": "llm-d.ai"}
GAIE_LEASE_DOMAIN = "gateway-api-inference-extension.sigs.k8s.io"


def leader_election(
    settings: Settings, cfg: EndpointPickerConfig, client: KubeClient | None, health: Health, recorder: Recorder
) -> Election | None:
    """Competes for the lease that the reference would take whose configuration this is, so that both can stand side
    by side during a change from one to the other: llm-d-router's by its API group, GAIE's otherwise."""
    if not settings.ha_enable_leader_election or client is None:
        return None
    configured = bool(settings.config_file or settings.config_text)
    group = cfg.api_version.partition("/")[0] if configured else ""
    domain = LEASE_DOMAINS.get(group, GAIE_LEASE_DOMAIN)
    pool = settings.pool_name[0] if settings.pool_name else _deployment(settings)
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", pool):
        raise StartError("--ha-enable-leader-election with --endpoint-selector needs POD_NAME, which names the lease")
    lease = LeaseName(settings.pool_namespace, f"epp-{settings.pool_namespace}-{pool}.{domain}", identity())

    def changed(leader: bool) -> None:
        health.leader = leader
        recorder.leading(leader)

    changed(False)
    return Election(client, lease, changed)


def troubles(known: Mapping[str, Supply], health: Health, election: Election | None) -> Callable[[], tuple[str, str]]:
    """Says why there should be no traffic, and what else is wrong."""

    def state() -> tuple[str, str]:
        found = [each.source.problem() for each in known.values()] + [election.problem if election else ""]
        return health.problem(), "; ".join(dict.fromkeys(trouble for trouble in found if trouble))

    return state


def observing(
    settings: Settings,
    client: KubeClient | None,
    page: Page,
    insight: Insight,
    stores: Stores,
    healthy: Callable[[], tuple[str, str]],
) -> ObserveServer:
    """What listens on the metrics port."""
    tls = None
    if settings.metrics_cert_dir:
        suites = ciphers.openssl(settings.tls_cipher_suites)
        tls = MetricsTls(settings.metrics_cert_dir, settings.metrics_client_ca_file, _tls_min(settings), suites)
    guard = AccessGuard(client) if client is not None and settings.metrics_endpoint_auth else None

    def endpoints() -> Mapping[str, Sequence[Endpoint]]:
        return {name: store.endpoints() for name, store in stores.items()}

    options = ObserveOptions(port=settings.metrics_port, guard=guard, tls=tls, profiling=settings.enable_pprof)
    return ObserveServer(page, endpoints, healthy, options, insight)


def _tls_min(settings: Settings) -> ssl.TLSVersion:
    return ssl.TLSVersion.TLSv1_3 if settings.tls_min_version == ciphers.VERSION13 else ssl.TLSVersion.TLSv1_2


def transport_options(settings: Settings, pair: KeyPair | None = None) -> TransportOptions:
    """How ext_proc is served; ``pair`` takes the place of a self-signed certificate. Raises CertificateError."""
    return TransportOptions(
        port=settings.grpc_port,
        tls=TlsSource(settings.cert_path, settings.enable_cert_reload, pair) if settings.secure_serving else None,
        tls_min=_tls_min(settings),
        tls_ciphers=ciphers.openssl(settings.tls_cipher_suites),
        max_receive=settings.grpc_max_recv_msg_size or MESSAGE_SIZE,
        max_send=settings.grpc_max_send_msg_size or MESSAGE_SIZE,
        health_checking=settings.health_checking,
    )
