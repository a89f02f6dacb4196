# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading metrics from real HTTP servers, good and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from epp.datalayer import Datastore, ScrapeOptions, Scraper, load
from epp.datalayer.exposition import MetricSpec
from epp.datalayer.http import GetClient, HttpError, Refused
from epp.datalayer.mapping import CustomMetric, EngineMetrics, Mapper
from epp.datalayer.scrape import AT_ONCE, FRESH, READS_MOST, Pace
from epp.model import Endpoint

PAGE = "vllm:num_requests_waiting 2\nvllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.5\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(answers: list[bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that gives each request the next answer as it is (the last one again), and notes the requests.

    An empty answer closes the connection; one that ends in ``<close>`` closes it afterwards.
    """
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                writer.write(answer.removesuffix(b"<close>"))
                await writer.drain()
                if not answer or answer.endswith(b"<close>"):
                    break
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        server.close()


def answer(body: bytes, *headers: bytes) -> bytes:
    head = b"\r\n".join([b"HTTP/1.1 200 OK", *(headers or (b"Content-Length: %d" % len(body),))])
    return head + b"\r\n\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (answer(b"hello"), b"hello"),
        (answer(b""), b""),
        (answer(b"5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\n\r\n", CHUNKED), b"helloyou"),
        (answer(b"2\r\nhi\r\n0\r\nTrailer: x\r\n\r\n", CHUNKED), b"hi"),
        (answer(b"to the end<close>", b"Connection: close"), b"to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold<close>", b"old"),
    ],
)
async def test_answers(reply: bytes, body: bytes) -> None:
    async with raw_server([reply]) as (port, requests):
        client = GetClient("127.0.0.1", port, "/m")
        assert [await client.get(5), await client.get(5)] == [body, body]
        client.close()
    assert requests[0].startswith(b"GET /m HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "status 503"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"x" * 70_000, "not HTTP"),
        (b"", "closed the connection"),
        (answer(b"abc<close>", b"Content-Length: 9"), "closed the connection"),
        (answer(b"abc", b"Content-Length: -1"), "bad Content-Length"),
        (answer(b"zz\r\n", CHUNKED), "bad chunk"),
        (answer(b"-5\r\n", CHUNKED), "bad chunk"),
        (answer(b"x", b"Transfer-Encoding: gzip"), "unknown encoding gzip"),
        (answer(b"x", b"Content-Encoding: br", b"Content-Length: 1"), "compressed"),
        (answer(b"x", b"Content-Length: 2"), "no answer within 0.2 s"),
    ],
)
async def test_bad_answers_are_errors_and_close_the_connection(reply: bytes, message: str) -> None:
    async with raw_server([reply, answer(b"good")]) as (port, _):
        client = GetClient("127.0.0.1", port, "/")
        with pytest.raises(HttpError, match=message):
            await client.get(0.2)
        assert await client.get(5) == b"good"
        client.close()


async def test_an_answer_in_pieces_and_a_connection_that_was_closed_meanwhile() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in answer(b"2\r\nok\r\n0\r\n\r\n", CHUNKED):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    client = GetClient("127.0.0.1", server.sockets[0].getsockname()[1], "/")
    assert [await client.get(5) for _ in range(3)] == [b"ok"] * 3
    client.close()
    server.close()
    await server.wait_closed()
    with pytest.raises(Refused):
        await client.get(5)


class Server:
    """A model server's metrics page that can be changed."""

    def __init__(self) -> None:
        self.page, self.reads, self.runner = (
            PAGE,
            0,
            web.AppRunner(web.Application(), access_log=None, shutdown_timeout=0.1),
        )
        self.runner.app.router.add_get("/metrics", self.metrics)

    async def metrics(self, request: web.Request) -> web.Response:
        self.reads += 1
        return web.Response(text=self.page)

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> int:
        await self.runner.setup()
        await web.TCPSite(self.runner, host, port, reuse_address=True).start()
        return int(self.runner.addresses[0][1])


async def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def scraping(port: int, options: ScrapeOptions, **labels: str) -> AsyncIterator[tuple[Datastore, list[str]]]:
    store, errors = Datastore(), list[str]()
    scraper = Scraper(store, options, lambda endpoint, reason, _: errors.append(reason))
    task = asyncio.create_task(scraper.run())
    await asyncio.sleep(0)
    store.replace([Endpoint("a", "", "a", "127.0.0.1", port, labels=labels)])
    try:
        yield store, errors
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_metrics_are_followed() -> None:
    server = Server()
    port = await server.start()
    async with scraping(port, ScrapeOptions(interval=0.01)) as (store, errors):
        (endpoint,) = store.endpoints()
        await eventually(lambda: endpoint.metrics.updated_at)
        assert (endpoint.metrics.waiting, endpoint.metrics.running, endpoint.metrics.kv_cache_usage) == (2, 1, 0.5)
        server.page = PAGE.replace("waiting 2", "waiting 9")
        await eventually(lambda: endpoint.metrics.waiting == 9)
        assert errors == []
        store.replace([])
        await asyncio.sleep(0.05)
        reads = server.reads
        await asyncio.sleep(0.1)
        assert server.reads == reads, "endpoints that left are not read any more"
    await server.runner.cleanup()


async def test_idle_endpoints_are_read_less_and_a_request_wakes_them() -> None:
    server = Server()
    server.page = PAGE.replace("waiting 2", "waiting 0").replace("running 1", "running 0")
    port = await server.start()
    async with scraping(port, ScrapeOptions(interval=0.01, idle_interval=60)) as (store, _):
        (endpoint,) = store.endpoints()
        await eventually(lambda: endpoint.metrics.interval > 1)
        before, read_at = server.reads, endpoint.metrics.updated_at
        store.acquire(endpoint)
        await eventually(lambda: server.reads > before + 3)
        assert endpoint.metrics.updated_at - read_at < 10
        assert endpoint.metrics.interval == 0.01
        store.release(endpoint)
    await server.runner.cleanup()


async def test_failures_are_told_and_leave_the_last_reading() -> None:
    server = Server()
    port = await server.start()
    async with scraping(port, ScrapeOptions(interval=0.01, idle_interval=0.02)) as (store, errors):
        (endpoint,) = store.endpoints()
        await eventually(lambda: endpoint.metrics.updated_at)
        server.page = "nothing 1\n"
        await eventually(lambda: errors)
        assert "none of vllm's metrics" in errors[-1]
        assert endpoint.metrics.waiting == 2
        assert not endpoint.refused
        await server.runner.cleanup()
        await eventually(lambda: endpoint.refused)
        assert errors[-1] == "connection refused"
        server = Server()
        await server.start(port)
        await eventually(lambda: not endpoint.refused)
        read_at = endpoint.metrics.updated_at
        assert time.monotonic() - read_at < 10
    await server.runner.cleanup()


async def test_an_endpoint_that_was_never_read_is_not_given_up() -> None:
    server = Server()
    port = await server.start()
    await server.runner.cleanup()
    async with scraping(port, ScrapeOptions(interval=0.01, idle_interval=0.02)) as (store, errors):
        await eventually(lambda: len(errors) > 2)
        assert not store.endpoints()[0].refused, "it may serve elsewhere than it shows metrics"


async def test_one_that_was_never_read_gets_nothing_once_another_has_answered() -> None:
    server, other = Server(), Server()
    port = await server.start()
    await server.runner.cleanup()
    async with scraping(port, ScrapeOptions(interval=0.01, idle_interval=60.0)) as (store, errors):
        await eventually(lambda: errors)
        (first,) = store.endpoints()
        store.replace([first, Endpoint("b", "", "b", "127.0.0.1", await other.start())])
        await eventually(lambda: first.refused)
        assert [each.name for each in store.standing()] == ["b"]
        server = Server()
        await server.start(port)
        await eventually(lambda: first in store.standing())
    await server.runner.cleanup()
    await other.runner.cleanup()


async def test_reading_can_be_off() -> None:
    server = Server()
    port = await server.start()
    async with scraping(port, ScrapeOptions(enabled=False)) as (store, _):
        await asyncio.sleep(0.05)
        assert server.reads == 0
        assert store.endpoints()[0].metrics.updated_at == 0.0
    await server.runner.cleanup()


class TestWithoutMetrics:
    """Endpoints that serve, and have no page or nothing on it."""

    @pytest.mark.parametrize("status", [404, 405, 410, 501])
    async def test_no_such_page(self, status: int) -> None:
        reply = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status
        async with raw_server([reply]) as (port, requests), scraping(port, ScrapeOptions(interval=0.01)) as (store, _):
            (endpoint,) = store.endpoints()
            await eventually(lambda: endpoint.unmetered)
            await eventually(lambda: len(requests) > 2)  # asked again: the page may come
            store.acquire(endpoint)
            assert (load.waiting(endpoint), load.running(endpoint)) == (1, 1)
            assert not load.stale(endpoint, time.monotonic() + 1000, 0.2)

    async def test_a_page_with_nothing_on_it_until_there_is(self) -> None:
        server = Server()
        server.page = "other 1\n"
        port = await server.start()
        async with scraping(port, ScrapeOptions(interval=0.01, idle_interval=0.02)) as (store, errors):
            (endpoint,) = store.endpoints()
            await eventually(lambda: endpoint.unmetered and errors)
            server.page = PAGE
            await eventually(lambda: endpoint.metrics.updated_at)
            assert not endpoint.unmetered
        await server.runner.cleanup()

    @pytest.mark.parametrize("options", [ScrapeOptions(enabled=False), ScrapeOptions()])
    async def test_one_that_says_so_is_not_asked(self, options: ScrapeOptions) -> None:
        labels = {"llm-d.ai/engine-type": "none"} if options.enabled else {}
        async with raw_server([b""]) as (port, requests), scraping(port, options, **labels) as (store, errors):
            (endpoint,) = store.endpoints()
            await eventually(lambda: endpoint.unmetered)
            await asyncio.sleep(0.05)
            assert (requests, errors) == ([], [])

    async def test_trouble_that_may_pass_is_no_lack_of_metrics(self) -> None:
        reply = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
        async with raw_server([reply]) as (port, _), scraping(port, ScrapeOptions(interval=0.01)) as (store, errors):
            (endpoint,) = store.endpoints()
            await eventually(lambda: len(errors) > 1)
            assert not endpoint.unmetered
            assert load.stale(endpoint, time.monotonic(), 0.2)


async def test_the_second_place_of_an_engine() -> None:
    """trtllm-serve has its metrics elsewhere, unless somebody put them where all others have them."""
    page = b"trtllm_num_requests_waiting 4\ntrtllm_num_requests_running 1\n"
    answers = [b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", answer(page)]
    labels = {"llm-d.ai/engine-type": "trtllm-serve"}
    async with (
        raw_server(answers) as (port, requests),
        scraping(port, ScrapeOptions(interval=0.01), **labels) as (store, _),
    ):
        (endpoint,) = store.endpoints()
        await eventually(lambda: endpoint.metrics.waiting == 4)
        await eventually(lambda: len(requests) > 3)
    paths = [request.split()[1] for request in requests]
    assert paths[0] == b"/prometheus/metrics"
    assert set(paths[1:]) == {b"/metrics"}


async def test_custom_metrics_that_are_not_there_are_told() -> None:
    engine = EngineMetrics("vllm", waiting=MetricSpec("w"), custom=(CustomMetric("k", MetricSpec("c")),))
    options = ScrapeOptions(interval=0.01, mapper=Mapper({"vllm": engine}))
    server = Server()
    server.page = "w 1\n"
    port = await server.start()
    async with scraping(port, options) as (store, errors):
        (endpoint,) = store.endpoints()
        await eventually(lambda: errors)
        assert errors[0] == "the page has no metric for k"
        assert endpoint.metrics.waiting == 1
        server.page = "w 1\nc 2\n"
        await eventually(lambda: endpoint.metrics.custom == {"k": 2.0})
    await server.runner.cleanup()


async def test_the_first_request_wakes_the_whole_pool() -> None:
    server = Server()
    server.page = PAGE.replace("waiting 2", "waiting 0").replace("running 1", "running 0")
    port = await server.start(host="0.0.0.0")
    async with scraping(port, ScrapeOptions(interval=0.01, idle_interval=60.0)) as (store, _):
        store.replace([*store.endpoints(), Endpoint("b", "", "b", "127.0.0.2", port)])
        one, other = store.endpoints()
        await eventually(lambda: other.metrics.interval > 1.0)
        seen = other.metrics.updated_at
        store.acquire(one)
        await eventually(lambda: other.metrics.updated_at > seen)
        assert other.metrics.interval <= 0.8
    await server.runner.cleanup()


def test_readings_that_come_together_are_spread() -> None:
    pace = Pace(ScrapeOptions())
    pace.endpoints = 5000
    waits = [pace.turn(100.0) for _ in range(5000)]
    assert waits[:AT_ONCE] == [0.0] * AT_ONCE
    assert waits == sorted(waits)
    assert 1.5 < waits[-1] < 5000 / READS_MOST, "all have had their turn before the first is due again"
    assert pace.turn(102.5) == 0.0, "and then nobody waits"


def test_no_more_pages_are_read_than_a_picker_bears() -> None:
    pace = Pace(ScrapeOptions())
    pods = [Endpoint(f"p{number}", "", "p", f"10.0.{number // 250}.{number % 250}", 8000) for number in range(5000)]
    for endpoints, all_busy, idle in ((10, 0.05, FRESH), (100, 0.2, FRESH), (1000, FRESH, FRESH), (5000, 2.5, 2.5)):
        pace.endpoints, pace.active_at = endpoints, 100.0
        for pod in pods[:endpoints]:
            busy = pace.hot(pod)
        assert (busy, pace.quiet(101.0)) == pytest.approx((all_busy, idle))


async def test_an_answer_that_does_not_come() -> None:
    """The first reading opens the connection; the second, on the connection that stands, is never answered."""
    async with (
        raw_server([answer(PAGE.encode()), b"HTTP/1.1 200 OK\r\n"]) as (port, requests),
        scraping(port, ScrapeOptions(interval=0.01, timeout=0.2)) as (store, errors),
    ):
        (endpoint,) = store.endpoints()
        await eventually(lambda: len(requests) >= 2)
        read_at = endpoint.metrics.updated_at
        await eventually(lambda: errors)
        assert errors[0] == "no answer within 0.2 s"
        assert endpoint.metrics.updated_at == read_at
        assert not endpoint.refused
        await eventually(lambda: len(errors) >= 2)  # and it is read again
