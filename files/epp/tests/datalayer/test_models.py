# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking endpoints for their models, and the list of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from epp.config import effective, load, models_options, scrape_options
from epp.datalayer import Datastore, ModelsReader
from epp.datalayer.models import ModelsOptions, merged_models, read_models
from epp.model import Endpoint

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def page(*models: str) -> str:
    return json.dumps({"object": "list", "data": [{"id": each, "object": "model", "owned_by": "x"} for each in models]})


class Server:
    """A model server on its own address, whose list can be changed."""

    def __init__(self, address: str, text: str) -> None:
        self.address, self.text, self.asked = address, text, 0
        self.runner = web.AppRunner(web.Application(), access_log=None, shutdown_timeout=0.1)
        self.runner.app.router.add_get("/v1/models", self.answer)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=self.text, content_type="application/json")

    async def start(self, port: int = 0) -> int:
        await self.runner.setup()
        await web.TCPSite(self.runner, self.address, port).start()
        return int(self.runner.addresses[0][1])


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def asking(store: Datastore, **options: float) -> AsyncIterator[ModelsReader]:
    reader = ModelsReader(store, ModelsOptions(**options))  # type: ignore[arg-type]
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def endpoint(name: str, address: str = "127.0.0.1", port: int = 1, **models: bytes) -> Endpoint:
    found = Endpoint(name, "", name, address, port)
    found.models = models or None
    return found


class TestReader:
    async def test_new_endpoints_are_asked_at_once_and_all_of_them_again(self) -> None:
        one, two = Server("127.0.0.1", page("base", "lora-1")), Server("127.0.0.2", page("base"))
        port = await one.start()
        await two.start(port)
        store = Datastore()
        store.replace([endpoint("a", "127.0.0.1", port)])
        async with asking(store, interval=0.3):
            (first,) = store.endpoints()
            await eventually(lambda: first.models)
            store.replace([first, endpoint("b", "127.0.0.2", port)])
            second = store.endpoints()[1]
            await eventually(lambda: second.models)
            assert list(first.models or ()) == ["base", "lora-1"]
            two.text = page("base", "lora-2")
            await eventually(lambda: "lora-2" in (second.models or ()))
        assert [each["id"] for each in json.loads(merged_models(store.endpoints()) or "")["data"]] == [
            "base",
            "lora-1",
            "lora-2",
        ]
        await one.runner.cleanup()
        await two.runner.cleanup()

    async def test_trouble_leaves_what_is_known(self, caplog: pytest.LogCaptureFixture) -> None:
        server = Server("127.0.0.1", page("m"))
        port = await server.start()
        store = Datastore()
        store.replace([endpoint("a", "127.0.0.1", port)])
        async with asking(store, interval=0.02):
            (one,) = store.endpoints()
            await eventually(lambda: one.models)
            server.text = "nonsense"
            await eventually(lambda: caplog.records)
            asked = server.asked
            await eventually(lambda: server.asked > asked + 3)
            assert list(one.models or ()) == ["m"]
            assert len(caplog.records) == 1, "told once"
            server.text = page("n")
            await eventually(lambda: list(one.models or ()) == ["n"])
            store.replace([])
        await server.runner.cleanup()


class TestLists:
    def test_entries_stay_as_they_are(self) -> None:
        text = b'{"data": [{"id": "b", "max_model_len": 8192, "permission": [{"x": 1}]}, {"id":"a"}]}'
        assert read_models(text)["b"] == b'{"id": "b", "max_model_len": 8192, "permission": [{"x": 1}]}'

    @pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"data":{}}', b'{"data":[1]}', b'{"data":[{}]}', b"\xff"])
    def test_no_lists(self, text: bytes) -> None:
        with pytest.raises(ValueError, match="no list of models"):
            read_models(text)

    def test_each_once_sorted_and_from_the_first_endpoint(self) -> None:
        one = endpoint("e1", z=b'{"id":"z"}', a=b'{"id":"a","from":1}')
        two = endpoint("e2", m=b'{"id":"m"}', a=b'{"id":"a","from":2}')
        for order in ([one, two, endpoint("e0")], [two, one]):
            assert json.loads(merged_models(order) or "") == {
                "object": "list",
                "data": [{"id": "a", "from": 1}, {"id": "m"}, {"id": "z"}],
            }

    def test_nothing_is_known(self) -> None:
        assert merged_models([endpoint("a")]) is None


class TestConfiguration:
    def test_the_responder_brings_what_it_needs(self) -> None:
        cfg = load(HEAD + "plugins: [{type: models-responder}]\n", "test")
        assert models_options(cfg) == ModelsOptions()
        assert scrape_options(cfg).enabled
        assert load(effective(cfg), "again") == cfg

    def test_a_source_of_ones_own(self) -> None:
        cfg = load(
            HEAD + "plugins:\n- {type: models-responder}\n- type: models-data-source\n"
            "  parameters: {scheme: https, port: 9, path: /m, interval: 1m, insecureSkipVerify: false}\n",
            "test",
        )
        options = models_options(cfg)
        assert options is not None
        assert (options.interval, options.port, options.path, options.tls.scheme) == (60.0, 9, "/m", "https")

    def test_a_source_without_the_responder(self) -> None:
        text = (
            HEAD + "plugins: [{type: models-data-source}, {type: models-data-extractor}]\n"
            "dataLayer:\n  sources:\n"
            "  - {pluginRef: models-data-source, extractors: [{pluginRef: models-data-extractor}]}\n"
        )
        cfg = load(text, "test")
        assert models_options(cfg) is not None
        assert scrape_options(cfg).enabled, "metrics are still read"
        without = load(text.replace("dataLayer:", "dataLayer:\n  injectDefaults: false"), "test")
        assert not scrape_options(without).enabled

    def test_nobody_wants_to_know(self) -> None:
        assert models_options(load(HEAD, "test")) is None
