# SPDX-License-Identifier: GPL-3.0-or-later
"""A picker as a process: started with flags, talked to over its ports, stopped by its process id."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from conformance.kit.driver import Driver
from conformance.kit.grpc import Channel, Stream
from conformance.kit.leftovers import Turns, folder
from conformance.kit.page import Page
from conformance.kit.wait import PATIENCE

START_SECONDS = 120.0
"""How long a picker may take to listen, on a machine that is busy."""


_WORKER = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
# Below the ports that the kernel gives to connections, so that none of them takes one between its choice and its use;
# each worker has its own part of them, and goes through it in an order of its own: runs side by side that went upwards
# would go in step once they had met.
_FIRST_PORT = 10_000 + _WORKER % 8 * 2_500
_PORTS = itertools.cycle(random.SystemRandom().sample(range(_FIRST_PORT, _FIRST_PORT + 2_500), 2_500))


class PickerError(AssertionError):
    """The picker did not do what was asked of it; the text ends with what it wrote."""


@dataclass(frozen=True)
class Ports:
    """Where a picker listens."""

    grpc: int
    health: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Three ports that are free now."""
        return cls(_free_port(), _free_port(), _free_port())

    def flags(self) -> list[str]:
        """The flags that say so."""
        return [f"--grpc-port={self.grpc}", f"--grpc-health-port={self.health}", f"--metrics-port={self.metrics}"]


def _free_port() -> int:
    for port in itertools.islice(_PORTS, 2_500):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    raise PickerError(f"no port is free from {_FIRST_PORT} on")


def _mortal(command: list[str]) -> list[str]:
    """A command that the kernel ends together with this process, so that nothing is left of a run that is killed."""
    wrapper = shutil.which("setpriv")
    return [wrapper, "--pdeathsig", "KILL", "--", *command] if wrapper else command


class Process:
    """A program and what it writes."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        handle, log = tempfile.mkstemp(prefix=f"{name}-", suffix=".log", dir=folder())
        os.close(handle)
        self._log = Path(log)
        with self._log.open("wb") as output:
            # A file and not a pipe: nobody has to read it for the program to go on.
            self.popen = subprocess.Popen(
                _mortal(command),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
            )

    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def wait(self, seconds: float | None = None) -> int:
        """Its exit status. Raises PickerError when it goes on running."""
        seconds = 2 * PATIENCE.seconds if seconds is None else seconds
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise PickerError(f"{self.name} still runs after {seconds:g} s:\n{self.log()[-3000:]}") from None

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self.running:
            self.popen.kill()
            self.popen.wait()

    def close(self) -> None:
        """End it and forget what it wrote."""
        self.kill()
        self._log.unlink(missing_ok=True)


class Picker:
    """A running picker."""

    def __init__(self, process: Process, ports: Ports, tls: bool) -> None:
        self.process = process
        self.ports = ports
        self.tls = tls
        self._channels: dict[tuple[int, bool], Channel] = {}

    def stream(self) -> Stream:
        """A new ext_proc stream."""
        return self.channel(self.ports.grpc, self.tls).stream()

    @property
    def health(self) -> Channel:
        """The health port."""
        return self.channel(self.ports.health, tls=False)

    def channel(self, port: int, tls: bool) -> Channel:
        """A connection to one of its ports, kept open."""
        if (port, tls) not in self._channels:
            self._channels[port, tls] = Channel(port, tls)
        return self._channels[port, tls]

    def another_channel(self) -> Channel:
        """One more connection to the ext_proc port; whoever asks for it closes it."""
        return Channel(self.ports.grpc, self.tls)

    def metrics(self) -> Page:
        """Its metrics page."""
        status, text = self.get("/metrics")
        if status != 200:
            raise PickerError(f"/metrics answers {status}: {text[:300]}")
        return Page(text)

    def get(self, path: str, token: str = "") -> tuple[int, str]:
        """Status and body of a GET on the metrics port. Raises OSError when nobody listens."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports.metrics}{path}")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def disconnect(self) -> None:
        """Close the connections; the next use opens new ones."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()


def run(driver: Driver, flags: list[str], environment: Mapping[str, str]) -> Process:
    """Start a picker and leave it to itself."""
    return Process(driver.name, [*driver.command, *flags], {**driver.environment, **environment})


@contextlib.contextmanager
def picker(
    driver: Driver,
    flags: list[str],
    environment: Mapping[str, str],
    turns: Turns,
    *,
    ports: Ports | None = None,
    tls: bool = True,
    serving: bool = True,
) -> Iterator[Picker]:
    """A picker that listens and (``serving``) says that it serves. Raises PickerError when it does not come to that.

    With ``ports`` the flags say already where it listens; without, free ports are chosen.
    """
    chosen = ports or Ports.free()
    with contextlib.ExitStack() as stack:
        with turns.together():
            process = run(driver, [*(chosen.flags() if ports is None else []), *flags], environment)
            stack.callback(process.close)
            found = Picker(process, chosen, tls)
            stack.callback(found.disconnect)
            _wait(found, serving)
        yield found


def _wait(found: Picker, serving: bool) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if not found.process.running:
            status = found.process.popen.returncode
            raise PickerError(f"the picker ended with status {status}:\n{found.process.log()[-3000:]}")
        if _listens(found.ports) and (not serving or found.health.check("") == "SERVING"):
            return
        time.sleep(0.03)
    raise PickerError(f"the picker does not serve after {START_SECONDS:g} s:\n{found.process.log()[-3000:]}")


def _listens(ports: Ports) -> bool:
    try:
        for port in (ports.grpc, ports.health, ports.metrics):
            socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
