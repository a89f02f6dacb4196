# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker processes: started, given connections, watched, started again, ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from typing import Any

from epp.process import StartError
from epp.workers.channel import Channel
from epp.workers.gate import Gate
from epp.workers.messages import Answer, Ask, Begin, Ended, Heard, Ready, Shed, Status, ToParent, frame, to_parent
from epp.workers.place import VARIABLE, Place, sender

log = logging.getLogger("epp.workers")

SILENCE_SECONDS = 15.0
"""A worker that says nothing for so long is stuck in code that never comes back, and is ended."""
START_SECONDS = 120.0
"""How long it may take until it serves."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker that has ended is started again; twice as many each time that it had not served long."""
LONG_SECONDS = 60.0
ANSWER_SECONDS = 5.0
"""How long workers may take for an answer, in addition to what it needs by itself."""
STOP_SECONDS = 2.0
"""Between the second SIGTERM and SIGKILL."""
BALANCE_SECONDS = 2.0
"""Between two looks at how even connections are spread."""


class Worker:
    """One worker process after the other, in one place."""

    def __init__(self, crew: Crew, index: int) -> None:
        self.crew, self.index = crew, index
        self.process: Process | None = None
        self.ready = False
        self.streams = 0
        """Open streams, as it said last."""
        self._taken = self._gone = 0
        self._gate: socket.socket | None = None
        self._channel: Channel[ToParent] | None = None
        self._heard_at = 0.0
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[bytes | None]] = {}

    @property
    def connections(self) -> int:
        """Those that it has and will keep."""
        return self._taken - self._gone

    @property
    def turn(self) -> tuple[int, int, int]:
        """The smallest takes the next connection."""
        return self.connections, self.streams, self._taken

    def take(self, connection: socket.socket) -> bool:
        """Hand a connection over; False when it takes none at the moment."""
        assert self._gate is not None
        try:
            socket.send_fds(self._gate, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self._taken += 1
        return True

    def tell(self, data: bytes) -> None:
        """Say something, if it is there to hear it; what it misses is in the snapshot that it gets first."""
        if self._channel is not None:
            self._channel.write(data)

    async def ask(self, what: str, *arguments: Any, seconds: float = 0.0) -> bytes | None:
        """The answer to a question that takes so many seconds by itself; None if there is none."""
        if self._channel is None or not self.ready:
            return None
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._channel.send(Ask(number, what, list(arguments)))
        try:
            async with asyncio.timeout(seconds + ANSWER_SECONDS):
                data: bytes | None = await answer
                return data
        except TimeoutError:
            return None
        finally:
            self._answers.pop(number, None)

    async def run(self) -> None:
        """Keep a worker there until cancelled, or until it ends because all do. Raises StartError if the first one
        does not come to serve."""
        pause, first = SHORTEST_PAUSE, True
        while not self.crew.ending:
            started = time.monotonic()
            try:
                served, status = await self._live()
            except OSError as error:
                served, status = False, f"{error} (it could not be started)"
            if self.crew.ending:
                return
            if first and not served:
                raise StartError(f"worker {self.index} ended with status {status} before it served")
            first = False
            self.crew.restarted()
            pause = SHORTEST_PAUSE if time.monotonic() - started > LONG_SECONDS else min(pause * 2, LONGEST_PAUSE)
            log.error("worker %d ended with status %s, and is started again in %g s", self.index, status, pause)
            await asyncio.sleep(pause)

    async def _live(self) -> tuple[bool, str]:
        """One process from its start to its end; whether it has served, and its exit status. Raises OSError if there is
        none."""
        crew = self.crew
        process = await self._start()
        pid, served = process.pid, False
        watching = asyncio.create_task(self._watch(process))
        try:
            assert self._channel is not None
            self._channel.write(crew.snapshot() + frame(Begin()))
            async for message in self._channel.messages():
                self._heard_at = time.monotonic()
                match message:
                    case Ready():
                        served = self.ready = True
                        crew.came(pid)
                    case Status():
                        self._gone, self.streams = message.gone, message.streams
                    case Heard():
                        crew.heard(message)
                    case Answer():
                        self._answered(message.number, message.data)
            self.ready = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
        finally:
            self.ready = False
            watching.cancel()
            await self._stop(process)
            self._close()
            crew.gone(self, pid)
        return served, str(process.returncode)

    def _answered(self, number: int, data: bytes | None) -> None:
        answer = self._answers.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(data)

    async def _start(self) -> Process:
        crew = self.crew
        control, their_control = socket.socketpair()
        gate, their_gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gate.setblocking(False)
        place = Place(self.index, their_control.fileno(), their_gate.fileno(), crew.group)
        with contextlib.ExitStack() as ours, contextlib.closing(their_control), contextlib.closing(their_gate):
            ours.callback(control.close)
            ours.callback(gate.close)
            self.process = await asyncio.create_subprocess_exec(
                *crew.command,
                stdin=DEVNULL,
                env={**os.environ, VARIABLE: place.text()},
                pass_fds=(place.control, place.gate),
                start_new_session=True,  # Ctrl-C is for the parent, which tells them
            )
            ours.pop_all()
        self._taken = self._gone = self.streams = 0
        self._heard_at = time.monotonic()
        self._gate, self._channel = gate, await Channel.open(control, to_parent)
        return self.process

    async def _watch(self, process: Process) -> None:
        """End a process that says nothing any more."""
        while True:
            await asyncio.sleep(1.0)
            silent = time.monotonic() - self._heard_at
            if silent > (SILENCE_SECONDS if self.ready else START_SECONDS):
                log.error("worker %d (process %d) has said nothing for %.0f s: kill", self.index, process.pid, silent)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    async def _stop(self, process: Process) -> None:
        """Make sure that it has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()

    def _close(self) -> None:
        for number in list(self._answers):
            self._answered(number, None)
        if self._channel is not None:
            self._channel.close()
        if self._gate is not None:
            self._gate.close()
        self._channel = self._gate = None


class Crew:
    """All workers, and the port that they share: to the process around it, a transport."""

    def __init__(self, count: int, group: str, listen: Callable[[], socket.socket]) -> None:
        """``group`` names this picker among all others; ``listen`` opens the port, and raises OSError."""
        self.group = group
        self.command: Sequence[str] = [sys.executable, *sys.orig_argv[1:]]
        """This program with its arguments."""
        self.workers = [Worker(self, index) for index in range(count)]
        self.ending = False
        self.snapshot: Callable[[], bytes] = bytes
        """What a new worker is told first."""
        self.heard: Callable[[Heard], None] = lambda message: None
        self.restarted: Callable[[], None] = lambda: None
        self.on_came: Callable[[int], None] = lambda pid: None
        self.on_gone: Callable[[str, int], None] = lambda who, pid: None
        """Called with the name by which its peers knew it, and its process id."""
        self._listen = listen
        self._gate: Gate | None = None
        self._complete = False

    @property
    def serving(self) -> list[Worker]:
        """The workers that serve, the one that shall have the next connection first."""
        return sorted((each for each in self.workers if each.ready), key=lambda each: each.turn)

    @property
    def up(self) -> bool:
        """All workers have come to serve, and one still does: connections go to those that do, so one that is started
        again is no reason to take the others out of service."""
        return self._complete and any(each.ready for each in self.workers)

    def problem(self) -> str:
        """Which workers are not there; empty when all are."""
        lacking = [str(each.index) for each in self.workers if not each.ready]
        return f"no service from worker {', '.join(lacking)}" if lacking else ""

    def broadcast(self, data: bytes) -> None:
        """Tell all."""
        for each in self.workers:
            each.tell(data)

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError when it cannot. Connections wait for the first worker."""
        listener = self._listen()
        self._gate = Gate(listener, lambda: list(self.serving))
        self._gate.open()
        port: int = listener.getsockname()[1]
        return port

    async def run(self) -> None:
        """Keep all workers there until cancelled. Raises StartError if one does not come to serve at first."""
        tasks = [asyncio.create_task(each.run(), name=f"worker {each.index}") for each in self.workers]
        balancing = asyncio.create_task(self._balance())
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (balancing, *tasks):
                task.cancel()
            await asyncio.gather(balancing, *tasks, return_exceptions=True)

    async def drain(self, grace: float) -> None:
        """Have all workers serve what is open, and what still comes, and end; at most ``grace`` seconds."""
        self.ending = True
        processes = [each.process for each in self.workers if each.process is not None]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace + STOP_SECONDS):
                await asyncio.gather(*(process.wait() for process in processes))

    async def stop(self) -> None:
        """Listen no more; the workers have ended with :meth:`run`."""
        self.ending = True
        if self._gate is not None:
            self._gate.close()

    def came(self, pid: int) -> None:
        """For workers: one serves."""
        self._complete = self._complete or all(each.ready for each in self.workers)
        self.on_came(pid)

    def gone(self, worker: Worker, pid: int) -> None:
        """For workers: one has ended."""
        who = sender(self.group, worker.index, pid)
        self.on_gone(who, pid)
        self.broadcast(frame(Ended(who)))

    async def _balance(self) -> None:
        """After a worker was away, the others have its connections: have gateways connect anew, until all have as many
        again. Gateways come and go, so only what is uneven twice in a row is."""
        uneven = 0
        while not self.ending:
            await asyncio.sleep(BALANCE_SECONDS)
            ordered = self.serving
            surplus = ordered[-1].connections - ordered[0].connections if ordered else 0
            if min(uneven, surplus) > 1:
                ordered[-1].tell(frame(Shed(min(uneven, surplus) // 2)))
                surplus = 0
            uneven = surplus
