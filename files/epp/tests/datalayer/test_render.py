# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that decisions wait for: real servers that answer, refuse, dawdle and break."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from ports import free_port

from epp.datalayer import render, service
from epp.datalayer.http import ClientTls
from epp.datalayer.render import Renderer
from epp.datalayer.service import Service, ServiceError

CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
COMPLETION = json.dumps({"model": "m", "prompt": "one two", "max_tokens": 4}).encode()


class Server:
    """Answers what it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: list[str] = []
        self.answers: dict[str, Any] = {}
        self.forbidden: dict[str, str] = {}
        """Why, by path."""
        self.status = 200
        self.pause = 0.0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, await request.json()))
        self.authorizations.append(request.headers.get("authorization", ""))
        await asyncio.sleep(self.pause)
        if request.path in self.forbidden:
            return web.json_response({"error": {"message": self.forbidden[request.path], "code": 403}}, status=403)
        if request.path not in self.answers:
            return web.Response(status=404)
        answer = self.answers[request.path]
        if isinstance(answer, bytes):
            return web.Response(body=answer, status=self.status)
        return web.json_response(answer, status=self.status)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port("127.0.0.1")
    await web.TCPSite(runner, "127.0.0.1", port).start()
    made.url = f"http://127.0.0.1:{port}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def asker() -> AsyncIterator[Service]:
    made = Service("the server", 4)
    yield made
    await made.close()


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    yield made
    await made.close()


class TestService:
    async def test_an_answer(self, server: Server, asker: Service) -> None:
        server.answers["/a"] = {"x": 1}
        assert json.loads(await asker.post(server.url, "/a", b'{"y": 2}', 5)) == {"x": 1}
        assert server.asked == [("/a", {"y": 2})]
        assert server.authorizations == [""]
        await asker.post(server.url, "/a", b"{}", 5, authorization="Bearer x")
        assert server.authorizations[1:] == ["Bearer x"]
        server.status = 202
        with pytest.raises(ServiceError, match="status 202"):
            await asker.post(server.url, "/a", b"{}", 5)
        await asker.post(server.url, "/a", b"{}", 5, good=(202,))

    async def test_a_refusal_is_no_failure(self, server: Server, asker: Service) -> None:
        with pytest.raises(ServiceError, match="status 404") as caught:
            await asker.post(server.url, "/nothing", b"{}", 5)
        assert caught.value.status == 404
        assert not asker.resting(server.url)

    async def test_a_failure_makes_it_rest(
        self, server: Server, asker: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(service, "REST_SECONDS", 0.05)
        server.answers["/a"], server.status = b"broken", 500
        for _ in range(2):
            with pytest.raises(ServiceError, match="status 500: broken") as caught:
                await asker.post(server.url, "/a", b"{}", 5)
            assert caught.value.status == 500
        assert asker.resting(server.url)
        await asyncio.sleep(0.06)
        assert not asker.resting(server.url)
        assert len([record for record in caplog.records if "does not help" in record.message]) == 1

    async def test_nobody_there(self, asker: Service) -> None:
        nobody = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        with pytest.raises(ServiceError, match="onnect"):
            await asker.post(nobody, "/a", b"{}", 5)
        assert asker.resting(nobody)

    async def test_no_url(self, asker: Service) -> None:
        with pytest.raises(ServiceError):
            await asker.post("http://", "/a", b"{}", 5)

    async def test_too_slow(self, server: Server, asker: Service) -> None:
        server.answers["/a"], server.pause = {}, 5.0
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"no answer within 0\.05 s"):
            await asker.post(server.url, "/a", b"{}", 0.05)
        assert time.monotonic() - started < 2
        assert asker.resting(server.url)

    async def test_too_long(self, server: Server, asker: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "MAX_ANSWER", 10)
        server.answers["/a"] = b"x" * 11
        with pytest.raises(ServiceError, match="longer than 10"):
            await asker.post(server.url, "/a", b"{}", 5)

    async def test_closing_twice(self, asker: Service) -> None:
        await asker.close()


class TestRenderer:
    async def test_a_completion(self, server: Server, renderer: Renderer) -> None:
        server.answers["/v1/completions/render"] = [{"token_ids": [1, 2], "more": 1}, {"token_ids": [3]}]
        found = await renderer.render(server.url, "/v1/completions?x=1", COMPLETION, 5)
        assert found is not None
        assert [list(each) for each in found.prompts] == [[1, 2], [3]]
        assert found.tokens == 3
        assert server.asked == [("/v1/completions/render", json.loads(COMPLETION))]

    async def test_a_chat_with_pictures(self, server: Server, renderer: Renderer) -> None:
        features = {
            "mm_hashes": {"image": ["b", "a"], "audio": ["c"]},
            "mm_placeholders": {
                "image": [{"offset": 9, "length": 2}, {"offset": 1, "length": 4}],
                "audio": [{"offset": 5, "length": 1}],
            },
        }
        server.answers["/v1/chat/completions/render"] = {"token_ids": [7] * 12, "features": features}
        found = await renderer.render(server.url, "/pool/v1/chat/completions", CHAT, 5)
        assert found is not None
        assert found.features == [("a", 1, 4), ("c", 5, 1), ("b", 9, 2)]
        assert server.paths == ["/v1/chat/completions/render"]

    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
    async def test_messages_and_responses(self, server: Server, renderer: Renderer, path: str) -> None:
        server.answers[f"{path}/render"] = {"token_ids": [1]}
        assert await renderer.render(server.url, path, CHAT, 5) is not None

    async def test_other_interfaces_are_not_asked(self, server: Server, renderer: Renderer) -> None:
        assert await renderer.render(server.url, "/v1/embeddings", b"{}", 5) is None
        assert server.asked == []

    async def test_an_older_vllm(self, server: Server, renderer: Renderer) -> None:
        """Without render endpoints ``/tokenize`` is asked, with what it takes."""
        server.answers["/tokenize"] = {"count": 2, "tokens": [4, 5]}
        found = await renderer.render(server.url, "/v1/chat/completions", CHAT, 5)
        assert found is not None
        assert list(found.prompts[0]) == [4, 5]
        assert server.asked[1] == ("/tokenize", {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
        await renderer.render(server.url, "/v1/completions", COMPLETION, 5)
        assert server.asked[3] == ("/tokenize", {"model": "m", "prompt": "one two"})
        await renderer.render(server.url, "/v1/completions", COMPLETION.replace(b"one", b"six"), 5)
        assert server.paths == [
            "/v1/chat/completions/render",
            "/tokenize",
            "/v1/completions/render",
            *["/tokenize"] * 2,
        ]
        assert await renderer.render(server.url, "/v1/messages", CHAT, 5) is None
        assert await renderer.render(server.url, "/v1/messages", CHAT, 5) is None
        assert server.paths[5:] == ["/v1/messages/render"]
        with pytest.raises(ServiceError, match="body cannot be read"):
            await renderer.render(server.url, "/v1/completions", b"[", 5)
        server.answers["/tokenize"] = {"tokens": "x"}
        with pytest.raises(ServiceError, match="tokens are not understood"):
            await renderer.render(server.url, "/v1/completions", b"{}", 5)

    async def test_a_vllm_that_was_started_without_render_endpoints(self, server: Server, renderer: Renderer) -> None:
        """It answers 403 and names its flag; any other 403 is a refusal, and no reason to ask elsewhere."""
        server.answers["/tokenize"] = {"tokens": [4, 5]}
        message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
        server.forbidden["/v1/completions/render"] = message
        for body in (COMPLETION, COMPLETION.replace(b"one", b"six")):
            found = await renderer.render(server.url, "/v1/completions", body, 5)
            assert found is not None
            assert list(found.prompts[0]) == [4, 5]
        assert server.paths == ["/v1/completions/render", "/tokenize", "/tokenize"]
        server.forbidden["/v1/chat/completions/render"] = "not for you"
        with pytest.raises(ServiceError, match="not for you"):
            await renderer.render(server.url, "/v1/chat/completions", CHAT, 5)

    async def test_what_was_rendered_is_remembered(
        self, server: Server, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.answers["/v1/completions/render"] = [{"token_ids": [1] * 40}]
        for _ in range(3):
            await renderer.render(server.url, "/v1/completions", COMPLETION, 5)
        assert len(server.asked) == 1
        monkeypatch.setattr(render, "CACHED_TOKENS", 1000)
        for number in range(30):
            await renderer.render(server.url, "/v1/completions", COMPLETION + b" " * number, 5)
        assert len(server.asked) == 30
        await renderer.render(server.url, "/v1/completions", COMPLETION + b" " * 29, 5)
        assert len(server.asked) == 30
        await renderer.render(server.url, "/v1/completions", COMPLETION, 5)
        assert len(server.asked) == 31
        server.answers["/v1/completions/render"] = [{"token_ids": [1] * 100}]
        for _ in range(2):  # too long to be remembered
            await renderer.render(server.url, "/v1/completions", b"{}", 5)
        assert len(server.asked) == 33

    @pytest.mark.parametrize("answer", [b"", b"[", b"{}", [{"token_ids": [-1]}], [{"token_ids": [2**40]}], [3]])
    async def test_nonsense(self, server: Server, renderer: Renderer, answer: Any) -> None:
        server.answers["/v1/completions/render"] = answer
        with pytest.raises(ServiceError, match="not understood"):
            await renderer.render(server.url, "/v1/completions", COMPLETION, 5)

    async def test_an_empty_batch(self, server: Server, renderer: Renderer) -> None:
        server.answers["/v1/completions/render"] = []
        found = await renderer.render(server.url, "/v1/completions", COMPLETION, 5)
        assert found is not None
        assert found.tokens == 0

    async def test_one_that_fails_is_not_asked_again_at_once(self, renderer: Renderer) -> None:
        nobody = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        with pytest.raises(ServiceError):
            await renderer.render(nobody, "/v1/completions", COMPLETION, 5)
        assert renderer.resting(nobody)
        assert await renderer.render(nobody, "/v1/completions", COMPLETION, 5) is None

    async def test_certificates_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            Renderer(ClientTls("https", False, str(tmp_path / "ca.pem")))
