# SPDX-License-Identifier: GPL-3.0-or-later
"""Worker processes that do not come, with stand-ins for the program."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from epp.process import StartError
from epp.workers import crew as crews
from epp.workers.crew import Crew
from epp.workers.place import VARIABLE, Place

SERVES = f"""
import os, sys
sys.path[:] = {sys.path!r}
from epp.workers.messages import Ready, frame
place = os.environ["{VARIABLE}"].split(":")
os.write(int(place[1]), frame(Ready()))
"""
"""Comes to serve, and ends as the rest says."""


def crew(*command: str) -> Crew:
    made = Crew(1, "host_group", lambda: socket.create_server(("127.0.0.1", 0)))
    made.command = command
    return made


@contextlib.asynccontextmanager
async def running(made: Crew) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(made.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_place_is_read_as_it_was_written() -> None:
    place = Place(1, 5, 6, "a-pod_0b0c:x")
    assert Place.read(place.text()) == place
    assert place.sender.startswith("a-pod_0b0c:x/1-")
    assert place.address(0) == "ipc://@epp-0b0c:x-0"


async def test_the_first_one_must_come_to_serve() -> None:
    with pytest.raises(StartError, match="worker 0 ended with status 3 before it served"):
        await crew(sys.executable, "-c", "raise SystemExit(3)").run()


async def test_a_program_that_cannot_be_started() -> None:
    with pytest.raises(StartError, match="could not be started"):
        await crew("/nonexistent/epp").run()


async def test_one_that_ends_is_started_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crews, "SHORTEST_PAUSE", 0.01)
    made = crew(sys.executable, "-c", f"{SERVES}\nraise SystemExit(4)")
    gone: list[str] = []
    made.on_gone = lambda who, pid: gone.append(who)
    with caplog.at_level(logging.ERROR):
        async with running(made), asyncio.timeout(60):
            while len(gone) < 3:
                await asyncio.sleep(0.02)
    assert "worker 0 ended with status 4, and is started again in 0.02 s" in caplog.text
    assert "again in 0.04 s" in caplog.text
    assert len(set(gone)) == len(gone), "each process has a name of its own"


async def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "STOP_SECONDS", 0.2)
    made = crew(sys.executable, "-c", f"import signal; signal.signal(15, 1)\n{SERVES}\nsignal.pause()")
    async with running(made), asyncio.timeout(60):
        while not made.up:
            await asyncio.sleep(0.02)
        (process,) = [each.process for each in made.workers]
        assert process is not None
        assert made.problem() == ""
        assert await made.workers[0].ask("figures", seconds=-crews.ANSWER_SECONDS) is None, "it does not answer"
    assert process.returncode == -9
    assert made.problem() == "no service from worker 0"
