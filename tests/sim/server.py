# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP surface of one instance, on aiohttp's low-level server: a table of routes, without an application around it.

One `Server` per instance is what makes a hundred of them light. Bodies of any size and any chunking are accepted.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from sim import __version__, tokens
from sim.answers import DONE, AnswerWriter, Choice, compact
from sim.exposition import CONTENT_TYPE
from sim.instance import Generation, Instance
from sim.protocol import (
    ApiError,
    GenerationRequest,
    parse_generation,
    parse_json,
    parse_messages,
    parse_prompts,
)
from sim.settings import LoraModule

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Service:
    """Answers the requests of one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._routes: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": self._version},
            "/metrics": {"GET": self._metrics},
            "/v1/models": {"GET": self._models},
            "/v1/completions": {"POST": self._completions},
            "/v1/chat/completions": {"POST": self._chat},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/reset_prefix_cache": {"POST": self._reset_prefix_cache},
        }
        if instance.settings.lora_enabled:
            self._routes["/v1/load_lora_adapter"] = {"POST": self._load_lora}
            self._routes["/v1/unload_lora_adapter"] = {"POST": self._unload_lora}

    def http_server(self) -> web.Server:
        """Return a protocol factory for `loop.create_server`. A client that goes away cancels its handler."""
        return web.Server(
            self.handle,
            request_factory=_request_without_size_limit,
            handler_cancellation=True,
            access_log=None,
            max_field_size=65_536,
            max_line_size=65_536,
        )

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; errors become vLLM's error objects."""
        try:
            response = await self._route(request)(request)
        except ApiError as error:
            response = _json(error.body(), error.status)
            if error.status == 405:
                response.headers["Allow"] = ", ".join(self._routes[request.path])
        if not response.prepared:
            response.headers.update(self._extra_headers(request))
        return response

    def _route(self, request: web.BaseRequest) -> Handler:
        """Return the handler of a request. Raises ApiError: 401, 404, 405."""
        keys = self.instance.settings.api_keys
        if keys and request.path.startswith("/v1"):
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or key not in keys:
                raise ApiError(401, "Unauthorized", "Unauthorized")
        methods = self._routes.get(request.path)
        if methods is None:
            raise ApiError(404, "Not Found", "Not Found")
        handler = methods.get(request.method)
        if handler is None:
            raise ApiError(405, "Method Not Allowed", "Method Not Allowed")
        return handler

    def _extra_headers(self, request: web.BaseRequest) -> dict[str, str]:
        """Return the headers that every answer to `request` carries besides its own."""
        headers: dict[str, str] = {}
        if self.instance.settings.enable_request_id_headers:
            headers["X-Request-Id"] = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        if self.instance.settings.instance_header:
            headers["x-sim-instance"] = self.instance.name
        return headers

    async def _health(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Say that the engine lives: 200 without a body."""
        return web.Response()

    async def _version(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Name the simulator's version where vLLM names its own."""
        return _json(compact({"version": f"{__version__}+sim"}))

    async def _metrics(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Return the metrics page."""
        return web.Response(body=self.instance.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _models(self, _request: web.BaseRequest) -> web.StreamResponse:
        """List the base model under each of its names, and the adapters."""
        settings = self.instance.settings
        context = settings.engine.context_length
        base = settings.served_model_names[0]
        cards = [self._card(name, settings.model, None, context) for name in settings.served_model_names]
        cards += [self._card(module.name, module.path, base, None) for module in self.instance.adapters.values()]
        return _json(compact({"object": "list", "data": cards}))

    def _card(self, name: str, root: str, parent: str | None, context: int | None) -> dict[str, Any]:
        """Return one entry of the list of models."""
        return {
            "id": name,
            "object": "model",
            "created": self.instance.created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": context,
            "permission": [],
        }

    async def _completions(self, request: web.BaseRequest) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._generate(request, chat=False)

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._generate(request, chat=True)

    async def _generate(self, http: web.BaseRequest, chat: bool) -> web.StreamResponse:
        """Answer a generation request, whole or streamed."""
        payload = await _read_json(http)
        self._inject_fault(http)
        request = parse_generation(payload, chat)
        generation = self.instance.start(request)
        writer = AnswerWriter(
            chat=chat,
            request_id=http.headers.get("X-Request-Id") or uuid.uuid4().hex,
            created=int(time.time()),
            model=self.instance.served_name(request.model),
        )
        try:
            if request.stream:
                return await self._stream(http, request, generation, writer)
            return await self._whole(request, generation, writer)
        except ConnectionResetError:
            raise asyncio.CancelledError from None  # the client went away: nobody is left to answer
        finally:
            generation.close()

    def _inject_fault(self, http: web.BaseRequest) -> None:
        """Fail the request if the dice say so: an error 500, or a connection that is reset without an answer."""
        fault = self.instance.draw_fault()
        if fault == "fail":
            raise ApiError(500, "injected failure (--fail-rate)", "InternalServerError")
        if fault == "reset":
            if http.transport is not None:
                _reset(http.transport)
            raise asyncio.CancelledError

    async def _whole(
        self, request: GenerationRequest, generation: Generation, writer: AnswerWriter
    ) -> web.StreamResponse:
        """Return the answer when all of it is generated."""
        choices = [Choice(tokens.count(prompt)) for prompt in request.prompts]
        async for batch in generation.batches():
            for index, output in batch:
                choice = choices[index]
                choice.text += output.token
                choice.generated += 1
                choice.finish_reason = output.finish_reason
        self._note_cached(choices, generation)
        return _json(writer.whole(choices, self.instance.settings.enable_prompt_tokens_details))

    async def _stream(
        self, http: web.BaseRequest, request: GenerationRequest, generation: Generation, writer: AnswerWriter
    ) -> web.StreamResponse:
        """Send the headers at once, like vLLM, and each token as an event when it comes."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.headers.update(self._extra_headers(http))
        await response.prepare(http)
        choices = [Choice(tokens.count(prompt)) for prompt in request.prompts]
        frames = [writer.chunk_frame(index) for index in range(len(choices))]
        pending = writer.opening()
        async for batch in generation.batches():
            events = [pending]
            pending = b""
            for index, output in batch:
                choices[index].generated += 1
                if output.finish_reason:
                    events.append(writer.last_chunk(index, output.token, output.finish_reason))
                else:
                    events += (frames[index][0], output.token, frames[index][1])
            await response.write(b"".join(events))
        self._note_cached(choices, generation)
        tail = b""
        if request.include_usage:
            tail = writer.usage_chunk(choices, self.instance.settings.enable_prompt_tokens_details)
        await response.write_eof(tail + DONE)
        return response

    @staticmethod
    def _note_cached(choices: list[Choice], generation: Generation) -> None:
        """Copy how much of each prompt was found in the prefix cache."""
        for choice, sequence in zip(choices, generation.sequences, strict=True):
            choice.cached_tokens = sequence.cached_tokens or 0

    async def _tokenize(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the token ids of a prompt or a conversation."""
        payload = await _read_json(request)
        if "messages" in payload:
            data = parse_messages(payload, payload.get("add_generation_prompt") is not False)
        else:
            data = parse_prompts(payload)[0]
        ids = tokens.decode_ids(data)
        context = self.instance.settings.engine.context_length
        answer = {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": None}
        return _json(compact(answer))

    async def _detokenize(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the text of token ids."""
        payload = await _read_json(request)
        data = parse_prompts({"prompt": payload.get("tokens")})[0]
        return _json(compact({"prompt": tokens.decode_text(data)}))

    async def _reset_prefix_cache(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Forget all cached blocks; 409 while requests hold blocks."""
        if not self.instance.engine.pool.reset():
            raise ApiError(409, "blocks are in use: try again when no request runs", "Conflict")
        return web.Response()

    async def _load_lora(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one more adapter."""
        payload = await _read_json(request)
        name, path = payload.get("lora_name"), payload.get("lora_path")
        if not (isinstance(name, str) and name and isinstance(path, str) and path):
            raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self.instance.adapters and not payload.get("load_inplace"):
            raise ApiError(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        self.instance.adapters[name] = LoraModule(name, path)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_lora(self, request: web.BaseRequest) -> web.StreamResponse:
        """Stop serving an adapter; its running requests go on."""
        payload = await _read_json(request)
        name = payload.get("lora_name")
        if not isinstance(name, str) or not name:
            raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
        if self.instance.adapters.pop(name, None) is None:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


async def _read_json(request: web.BaseRequest) -> dict[str, Any]:
    """Return the JSON object of a request. Raises ApiError 400. Answers `Expect: 100-continue`, which aiohttp leaves
    to us.
    """
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return parse_json(await request.read(), request.headers.get("Content-Type", ""))


def _reset(transport: asyncio.Transport) -> None:
    """Close a connection so that the client sees a TCP reset: lingering for zero seconds makes the kernel send one."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _json(body: bytes, status: int = 200) -> web.Response:
    """Return an answer of JSON bytes."""
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})


def _request_without_size_limit(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """Make a request object whose body may have any size."""
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=0)
