# SPDX-License-Identifier: GPL-3.0-or-later
"""The program as a process: instances, start, drain and exit status."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from ports import free_port

TESTS = Path(__file__).parents[2]


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


@contextlib.asynccontextmanager
async def program(*flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `python -m sim demo` with flags; kill it in the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sim", "demo", *flags),
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def listening(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until the program logs `text`."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while line := (await process.stderr.readline()).decode():
            if text in line:
                return
    raise AssertionError(f"the program ended without saying {text!r}")


async def refused(http: aiohttp.ClientSession, url: str) -> None:
    """Wait until nobody listens any more."""
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with asyncio.timeout(30):
            while True:
                async with http.get(url):
                    await asyncio.sleep(0.01)


async def test_sigterm_lets_a_running_request_finish() -> None:
    port = free_port()
    async with program("--host", "127.0.0.1", "--port", str(port)) as process, aiohttp.ClientSession() as http:
        await listening(process, "serving demo")
        body = {"prompt": "x", "max_tokens": 150, "stream": True, "ignore_eos": True}
        async with http.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as response:
            process.send_signal(signal.SIGTERM)
            await listening(process, "stopping")
            await refused(http, f"http://127.0.0.1:{port}/health")
            assert not response.content.at_eof(), "new connections are refused while the request still runs"
            text = await response.text()
        assert text.count("data: {") == 150
        assert text.endswith("data: [DONE]\n\n")
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_sigterm_cuts_what_does_not_finish_in_time() -> None:
    port = free_port()
    flags = ("--host", "127.0.0.1", "--port", str(port), "--inter-token-latency", "1000", "--shutdown-timeout", "0.1")
    async with program(*flags) as process, aiohttp.ClientSession() as http:
        await listening(process, "serving demo")
        body = {"prompt": "x", "max_tokens": 50, "stream": True}
        async with http.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as response:
            process.send_signal(signal.SIGTERM)
            with pytest.raises(aiohttp.ClientError):
                await response.text()
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_hundred_instances_share_nothing_but_the_process() -> None:
    port = free_port()
    flags = ("--host", "127.1.0.1", "--port", str(port), "--count", "100")
    async with program(*flags) as process, aiohttp.ClientSession() as http:
        await listening(process, f"and 99 more, up to 127.1.0.100:{port}")
        body = {"prompt": "x", "max_tokens": 2}
        async with http.post(f"http://127.1.0.100:{port}/v1/completions", json=body) as response:
            assert response.status == 200
        for host, tokens in (("127.1.0.100", 2), ("127.1.0.1", 0)):
            async with http.get(f"http://{host}:{port}/metrics") as response:
                page = await response.text()
            assert f'vllm:generation_tokens_total{{engine="0",model_name="demo"}} {float(tokens)}' in page
        assert resident_kib(process.pid) < 150 * 1024


async def test_resets_and_expectations_reach_the_client() -> None:
    """Both act on the transport itself, and the program's event loop is not the one of the other tests."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1/completions"
    flags = ("--host", "127.0.0.1", "--port", str(port), "--reset-rate", "0.5")
    async with program(*flags) as process, aiohttp.ClientSession() as http:
        await listening(process, "serving demo")
        seen: set[int | None] = set()
        for _ in range(20):
            try:
                async with asyncio.timeout(10):
                    async with http.post(url, json={"prompt": "x", "max_tokens": 1}, expect100=True) as response:
                        seen.add(response.status)
            except aiohttp.ClientOSError as error:
                seen.add(error.errno)
        assert seen == {200, errno.ECONNRESET}


async def test_a_port_in_use_ends_with_1_and_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with program("--host", "127.0.0.1", "--port", str(port)) as process:
            await listening(process, "cannot listen")
            assert await asyncio.wait_for(process.wait(), 30) == 1


async def test_a_delayed_start_can_be_interrupted() -> None:
    async with program("--startup-delay", "1000") as process:
        await listening(process, "starting up")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
