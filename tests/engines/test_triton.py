# SPDX-License-Identifier: GPL-3.0-or-later
"""The real Triton: its page is what we take it for, and the EPP reads its queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conformance.kit.pages import Figures
from conformance.kit.pages import triton as ours

from engines.compare import differences, read, read_by_us
from engines.reader import idle, reading, until
from engines.server import Server, load
from engines.triton import triton

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

WITH_GPU = {"nv_gpu_utilization"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with triton(tmp_path_factory.mktemp("triton")) as running:
        yield running


def test_the_page(server: Server) -> None:
    page = server.page()
    assert differences(ours(Figures()), page, WITH_GPU) == []
    assert read(page, "triton") == read(ours(Figures()), "triton") == read_by_us("triton")


async def test_the_load(server: Server) -> None:
    """One request runs, which Triton has no gauge for; the others wait, which the EPP sees."""
    async with reading(server) as endpoint:
        await until(endpoint, "idle at first", idle)
        with load(server.ask, 4):
            metrics = await until(endpoint, "a queue of three", lambda found: found.waiting == 3)
            assert (metrics.running, metrics.reports_running) == (0, False)
        await until(endpoint, "idle again", idle)
