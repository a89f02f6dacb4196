# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent: wires what knows the endpoints to the workers that decide. Only ``epp.workers`` imports it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import uvloop

from epp import serve
from epp.config import EndpointPickerConfig
from epp.datalayer import Datastore
from epp.datalayer.objectives import Objectives
from epp.extproc import Health
from epp.observe import Insight, Recorder
from epp.observe.decisions import KEPT
from epp.observe.profiling import MAX_SECONDS
from epp.process import Running, Servers, Worker, run_until_stopped, signals
from epp.serve import Supply
from epp.settings import Settings
from epp.statesync import Ledger
from epp.transport import HealthServer, TlsSource, listen
from epp.workers import crew as crews
from epp.workers.crew import Crew
from epp.workers.hub import Hub
from epp.workers.messages import Welcome, frame
from epp.workers.pages import Page, States

log = logging.getLogger("epp")


def run(settings: Settings, cfg: EndpointPickerConfig) -> int:
    """Serve with workers until a signal comes; returns the exit status."""
    for warning in cfg.warnings:
        log.warning("%s: %s", cfg.source, warning)
    try:
        uvloop.run(_serve(settings, cfg))
    except serve.EXPECTED as error:
        log.error("cannot start: %s", error)
        return 1
    return 0


async def _serve(settings: Settings, cfg: EndpointPickerConfig) -> None:
    """Wire, start, wait for a signal, drain. Raises what keeps it from starting or running."""
    stop = signals()
    recorder = Recorder(streams=settings.enable_grpc_stream_metrics)
    client = serve.kubernetes(settings, cfg, recorder)
    try:
        objectives = Objectives(client, settings.pool_namespace) if client and settings.pool_name else None
        known = serve.supplies(settings, cfg, client, recorder)
        stores = {name: each.datastore for name, each in known.items()}
        options = serve.transport_options(settings)
        crew = Crew(settings.workers, serve.identity(), partial(listen, options.host, options.port))
        hub = Hub(stores, crew.broadcast)
        welcome = frame(_welcome(settings, options.tls))
        crew.snapshot = lambda: welcome + hub.snapshot()
        page = _wire(crew, hub, known, objectives, recorder)
        health = Health(
            {name: partial(_serving, crew, store) for name, store in stores.items()}, settings.ha_enable_leader_election
        )
        election = serve.leader_election(settings, cfg, client, health, recorder)
        healthy = partial(_healthy, crew, serve.troubles(known, health, election))
        servers = Servers(
            transport=crew,
            health=HealthServer(health, health.services(), port=settings.grpc_health_port),
            observe=serve.observing(settings, client, page, _Gathered(crew), stores, healthy),
            metrics_port=settings.metrics_port,
            encrypted=settings.secure_serving,
        )
        work: list[Worker] = [each for supply in known.values() for each in supply.work()]
        work += [crew, hub, *([objectives] if objectives else [])]
        try:
            await servers.start()
            await run_until_stopped(Running(crew, health, work, election, stop, settings.drain_timeout))
        finally:
            await servers.stop()
    finally:
        if client is not None:
            await client.close()


def _welcome(settings: Settings, tls: TlsSource | None) -> Welcome:
    if tls is None or settings.cert_path:
        return Welcome()
    pair = tls.current()
    return Welcome(pair.key, pair.chain)


def _wire(crew: Crew, hub: Hub, known: Mapping[str, Supply], objectives: Objectives | None, recorder: Recorder) -> Page:
    """Connect the workers with what they are told and what they tell; returns the page of all metrics."""
    if objectives is not None:
        hub.follow(objectives)
    for name, supply in known.items():
        supply.scraper.on_failed(partial(hub.failed, name))
    ledger = Ledger(crew.group, {name: each.datastore for name, each in known.items()})
    figures = recorder.figures
    figures.worker_restarts.value()
    page = Page(recorder, _gathering(crew))
    recorder.before_reading.append(lambda: figures.workers.value().set(len(crew.serving)))

    def gone(who: str, pid: int) -> None:
        ledger.forget(who)
        page.gone(pid)

    crew.on_came, crew.on_gone = page.came, gone
    crew.restarted = figures.worker_restarts.value().add
    # Which requests are in flight is what decides how often an endpoint is read.
    crew.heard = lambda message: ledger.hear(message.news, time.monotonic())
    return page


def _serving(crew: Crew, store: Datastore) -> bool:
    return crew.up and store.synced


def _healthy(crew: Crew, state: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """What is wrong, the workers included."""
    problem, warning = state()
    lacking = crew.problem()
    if problem and lacking and not crew.up:
        return lacking, warning
    return problem, "; ".join(each for each in (lacking, warning) if each)


def _gathering(crew: Crew) -> Callable[[], Mapping[int, States]]:
    """Asks all workers for their figures, from another thread than the event loop's."""
    loop = asyncio.get_running_loop()

    def gather() -> Mapping[int, States]:
        return asyncio.run_coroutine_threadsafe(_figures(crew), loop).result()

    return gather


async def _figures(crew: Crew) -> dict[int, States]:
    decoder = msgspec.msgpack.Decoder(States)
    answers = await _ask(crew, "figures")
    return {worker.process.pid: decoder.decode(data) for worker, data in answers.items() if worker.process is not None}


async def _ask(crew: Crew, what: str, *arguments: Any, seconds: float = 0.0) -> dict[crews.Worker, bytes]:
    """The answers of all workers that gave one."""
    workers = sorted(crew.serving, key=lambda each: each.index)
    answers = await asyncio.gather(*(each.ask(what, *arguments, seconds=seconds) for each in workers))
    return {worker: data for worker, data in zip(workers, answers, strict=True) if data is not None}


class _Gathered(Insight):
    """Of all workers."""

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._crew = crew

    async def decisions(self, limit: int = KEPT, model: str = "") -> list[dict[str, Any]]:
        """The newest of all."""
        answers = await _ask(self._crew, "decisions", limit, model)
        found = [
            {**told, "worker": worker.index}
            for worker, data in answers.items()
            for told in msgspec.msgpack.decode(data, type=list[dict[str, Any]])
        ]
        return sorted(found, key=lambda told: told["time"], reverse=True)[: max(limit, 0)]

    async def profile(self, seconds: float) -> str:
        """All workers' at the same time; each stack begins with the number of its worker."""
        answers = await _ask(self._crew, "profile", seconds, seconds=min(max(seconds, 0.0), MAX_SECONDS))
        lines = [
            f"worker {worker.index};{line}" for worker, data in answers.items() for line in _text(data).splitlines()
        ]
        return "".join(f"{line}\n" for line in lines)

    async def stacks(self) -> str:
        """One worker after the other."""
        return _joined(await _ask(self._crew, "stacks"))

    async def objects(self) -> str:
        """One worker after the other."""
        return _joined(await _ask(self._crew, "objects"))


def _joined(answers: Mapping[crews.Worker, bytes]) -> str:
    return "\n".join(f"worker {worker.index}\n{_text(data)}" for worker, data in answers.items())


def _text(data: bytes) -> str:
    return msgspec.msgpack.decode(data, type=str)
