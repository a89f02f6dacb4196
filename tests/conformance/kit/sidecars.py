# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that pickers ask: a latency predictor with a linear model, and a vLLM that renders prompts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from conformance.kit.loop import ENGINES

Answer = Callable[[Any], Any]


@dataclass
class Sidecar:
    """A server for JSON."""

    address: str
    port: int
    answers: dict[str, Answer]
    """What it says, by path; others are 404."""
    status: int = 200
    pause: float = 0.0
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Listen (again)."""
        ENGINES.run(self._start())

    def stop(self) -> None:
        """Refuse connections."""
        ENGINES.run(self._stop())

    def bodies(self, path: str) -> list[Any]:
        """What came to a path."""
        return [body for each, body in list(self.asked) if each == path]

    async def _start(self) -> None:
        self._stopping = asyncio.Event()
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, self.address, self.port).start()
        self._runner = runner

    async def _stop(self) -> None:
        if self._runner is not None:
            self._stopping.set()
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read() or b"{}")
        self.asked.append((request.path, body))
        if self.pause:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause):
                    await self._stopping.wait()
        if request.path not in self.answers:
            return web.Response(status=404)
        return web.json_response(self.answers[request.path](body), status=self.status)


@contextlib.contextmanager
def sidecar(address: str, answers: dict[str, Answer], port: int = 8000) -> Iterator[Sidecar]:
    """A server, stopped afterwards."""
    made = Sidecar(address, port, answers)
    try:
        yield made
    finally:
        made.stop()


def linear(body: Any) -> Any:
    """Predictions: 1000 ms to the first token and 100 ms per token with a full KV cache, in proportion otherwise; 10 ms
    more to the first token per request in flight."""
    found = [
        {
            "ttft_ms": 1000.0 * row["kv_cache_percentage"] + 10.0 * row["num_request_running"],
            "tpot_ms": 100.0 * row["kv_cache_percentage"],
            "model_type": "bayesian_ridge",
            "quantile": 0.9,
        }
        for row in body["requests"]
    ]
    return {"predictions": found, "total_requests": len(found), "successful_predictions": len(found)}


PREDICTOR: dict[str, Answer] = {
    "/status": lambda body: {"is_ready": True, "model_type": "xgboost", "quantile": 0.9},
    "/model/download/info": lambda body: {"model_type": "xgboost", "model_status": {"ttft": True}, "quantile": 0.9},
    "/predict/bulk/strict": linear,
    "/add_training_data_bulk": lambda body: {"message": "accepted"},
}


def letters(body: Any) -> Any:
    """A rendered completion: every letter is a token."""
    return [{"token_ids": [ord(letter) for letter in body["prompt"]]}]


def chat_letters(body: Any) -> Any:
    """A rendered chat."""
    text = "".join(f"<{each['role']}>{each['content']}" for each in body["messages"])
    return {"token_ids": [ord(letter) for letter in text]}


def tokenized(body: Any) -> Any:
    """What an older vLLM says at ``/tokenize``."""
    found = chat_letters(body) if "messages" in body else letters(body)[0]
    return {"tokens": found["token_ids"], "count": len(found["token_ids"])}


RENDERER: dict[str, Answer] = {"/v1/completions/render": letters, "/v1/chat/completions/render": chat_letters}
