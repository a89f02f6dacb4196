# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines: HTTP servers that show the metrics a case wants to see, and answer completions like a model server.

Each listens on a loopback address of its own (127/8), so that it can stand for a pod without any network set-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from conformance.kit.loop import ENGINES
from conformance.kit.pages import PAGES, Figures

VLLM = {
    "waiting": "vllm:num_requests_waiting",
    "running": "vllm:num_requests_running",
    "kv": "vllm:kv_cache_usage_perc",
    "lora": "vllm:lora_requests_info",
    "cache": "vllm:cache_config_info",
}


@dataclass(frozen=True)
class Seen:
    """A request that reached an engine."""

    port: int
    method: str
    path: str
    headers: dict[str, str]
    size: int
    body: bytes
    """Its first kilobyte."""


@dataclass
class Gauges:
    """What an engine's metrics page says."""

    waiting: float = 0
    running: float = 0
    kv: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    former_adapters: tuple[tuple[str, ...], ...] = ()
    """What ran before: series that an engine leaves standing, with the time at which they were true."""
    max_adapters: int = 0
    """0 leaves LoRA out of the page."""
    block_size: int = 16
    blocks: int = 2048
    ran: int = 0
    """Requests that it ever had; only some pages show it."""


@dataclass
class Engine:
    """One engine."""

    address: str
    ports: tuple[int, ...] = (8000,)
    names: dict[str, str] = field(default_factory=lambda: dict(VLLM))
    metrics_path: str = "/metrics"
    tls: ssl.SSLContext | None = None
    gauges: Gauges = field(default_factory=Gauges)
    by_port: dict[int, Gauges] = field(default_factory=dict)
    """Other figures on some of the ports."""
    seen: list[Seen] = field(default_factory=list)
    pause: float = 0.0
    """Seconds between two events of a streamed answer, and before a plain one."""
    broken: bool = False
    """Answer the metrics with an error."""
    write: Callable[[Figures], str] | None = None
    """Writes the page in place of the usual one."""
    without_page: bool = False
    """Answer the metrics with 404."""
    models: tuple[str, ...] = ()
    """What ``/v1/models`` has."""

    def __post_init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self.start()

    @property
    def hostport(self) -> str:
        """``ip:port`` of the first port."""
        return f"{self.address}:{self.ports[0]}"

    def start(self) -> None:
        """Listen (again)."""
        ENGINES.run(self._start())

    def stop(self) -> None:
        """Refuse connections."""
        ENGINES.run(self._stop())

    def reset(self) -> None:
        """Idle again, listening, nothing seen."""
        self.gauges = Gauges()
        self.by_port.clear()
        self.pause, self.broken = 0.0, False
        self.seen.clear()
        if self._runner is None:
            self.start()

    def show(self, **gauges: Any) -> None:
        """Change some of the figures."""
        self.gauges = Gauges(**{**vars(self.gauges), **gauges})

    def become(self, kind: str) -> None:
        """Show pages as this engine does; ``none`` has no page."""
        self.without_page = kind == "none"
        self.write = PAGES.get(kind)

    def page(self, port: int) -> str:
        """The metrics page."""
        shown, names = self.by_port.get(port, self.gauges), self.names
        if self.write is not None:
            return self.write(
                Figures(int(shown.waiting), int(shown.running), shown.kv, shown.block_size, shown.blocks, shown.ran)
            )
        lines = [_gauge(names[key], {"model_name": "m"}, getattr(shown, key)) for key in ("waiting", "running", "kv")]
        cache = {"block_size": str(shown.block_size), "num_gpu_blocks": str(shown.blocks)}
        lines.append(_gauge(names["cache"], cache, 1))
        if shown.max_adapters:
            now, series = time.time(), [_adapters(shown, each, ()) for each in shown.former_adapters]
            # The one that counts stands amid the others: neither the first nor the last is the newest.
            newest = len(series) // 2
            series.insert(newest, _adapters(shown, shown.adapters, shown.waiting_adapters))
            lines += [
                _gauge(names["lora"], each, now if number == newest else now - 100 - number)
                for number, each in enumerate(series)
            ]
        return "".join(lines)

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        for port in self.ports:
            await web.TCPSite(runner, self.address, port, ssl_context=self.tls).start()
        self._runner = runner

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        port = request.transport.get_extra_info("sockname")[1]
        if request.path == self.metrics_path and request.method == "GET":
            if self.broken or self.without_page:
                return web.Response(status=500 if self.broken else 404, text="no metrics")
            return web.Response(text=self.page(port), headers={"content-type": "text/plain; version=0.0.4"})
        body = await request.read()
        headers = {key.lower(): value for key, value in request.headers.items()}
        if self.models and request.path == "/v1/models":
            entries = [{"id": each, "object": "model", "owned_by": self.address} for each in self.models]
            return web.json_response({"object": "list", "data": entries})
        self.seen.append(Seen(port, request.method, request.path, headers, len(body), body[:1024]))
        return await self._complete(request, f"{self.address}:{port}", body)

    async def _complete(self, request: web.Request, served: str, body: bytes) -> web.StreamResponse:
        document: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            document = json.loads(body or b"{}")
        usage = {"prompt_tokens": 7, "completion_tokens": 10, "total_tokens": 17}
        answer = {"object": "text_completion", "model": document.get("model"), "choices": [{"text": "x"}]}
        headers = {"x-served-by": served}
        if not document.get("stream"):
            await asyncio.sleep(self.pause)
            return web.json_response({**answer, "usage": usage}, headers=headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
        await response.prepare(request)
        for _ in range(10):
            await response.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
            await asyncio.sleep(self.pause or 0.005)
        last = {**answer, "choices": [], "usage": usage}
        await response.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        return response


def _adapters(shown: Gauges, running: tuple[str, ...], waiting: tuple[str, ...]) -> dict[str, str]:
    """The labels that tell which adapters run and wait."""
    return {
        "max_lora": str(shown.max_adapters),
        "running_lora_adapters": ",".join(running),
        "waiting_lora_adapters": ",".join(waiting),
    }


def _gauge(name: str, labels: dict[str, str], value: float) -> str:
    # A configured name may carry labels of its own: name{key="value"}.
    family, _, rest = name.partition("{")
    own = [rest.rstrip("}")] if rest else []
    pairs = ",".join([*own, *(f'{key}="{each}"' for key, each in labels.items())])
    return f"# TYPE {family} gauge\n{family}{{{pairs}}} {value:.12g}\n"
