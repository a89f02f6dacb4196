# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine as a process on a loopback address, and what can be asked of it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from conformance.kit.picker import Process

START_SECONDS = 120.0
REQUEST_SECONDS = 120.0


class EngineError(AssertionError):
    """An engine did not start, or answered what it should not; the text ends with what it wrote."""


@dataclass(frozen=True)
class Server:
    """A running engine."""

    kind: str
    """By which the picker knows its metrics: the value of the pod's engine label."""
    port: int
    path: str
    """Of its completions, or of what it has instead."""
    slow: Mapping[str, Any]
    """The body of a request that takes a second or more."""
    slots: int
    """Requests that it works on at the same time."""
    process: Process
    metrics_port: int = 0
    """0 is the port that serves."""
    host: str = "127.0.0.1"
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def hostport(self) -> str:
        """Where it serves."""
        return f"{self.host}:{self.port}"

    def page(self) -> str:
        """Its metrics page."""
        return get(f"http://{self.host}:{self.metrics_port or self.port}/metrics")

    def ask(self) -> dict[str, Any]:
        """One slow request, and its answer."""
        document: dict[str, Any] = post(f"http://{self.hostport}{self.path}", self.slow)
        return document


def get(url: str) -> str:
    """The body of an answer. Raises OSError for any but 200."""
    with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def answer(url: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and JSON of the answer to a JSON request; the text where it is no JSON."""
    try:
        with urllib.request.urlopen(_request(url, body), timeout=REQUEST_SECONDS) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode(errors="replace")
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def post(url: str, body: Mapping[str, Any]) -> Any:
    """The JSON that answers a JSON request. Raises EngineError for any status but 200."""
    status, document = answer(url, body)
    if status != 200:
        raise EngineError(f"{url} answers {status}: {str(document)[:1000]}")
    return document


def stream(url: str, body: Mapping[str, Any]) -> list[str]:
    """The data of the events that answer a JSON request."""
    with urllib.request.urlopen(_request(url, body), timeout=REQUEST_SECONDS) as response:
        assert response.headers["content-type"].startswith("text/event-stream"), "the answer is no stream"
        lines = response.read().decode().splitlines()
    return [line.removeprefix("data: ") for line in lines if line.startswith("data:")]


def _request(url: str, body: Mapping[str, Any]) -> urllib.request.Request:
    return urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})


@contextmanager
def started(name: str, command: Sequence[object], environment: Mapping[str, str], ready: str) -> Iterator[Process]:
    """A process that is ended with the block; it is there when `ready`, a URL, answers 200."""
    process = Process(name, [str(part) for part in command], environment)
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(ready):
            if not process.running or time.monotonic() > end:
                state = "does not answer" if process.running else f"ended with {process.popen.returncode}"
                raise EngineError(f"{name} {state}; it said:\n{process.log()[-3000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.close()


def _answers(url: str) -> bool:
    with suppress(urllib.error.URLError, OSError):
        get(url)
        return True
    return False


@contextmanager
def load(ask: Callable[[], object], requests: int) -> Iterator[list[Future[object]]]:
    """So many slow requests at the same time, each sent again until the block ends; then the last ones are awaited.

    Errors of a request come up at the block's end.
    """
    stopped: list[bool] = []

    def again() -> object:
        answer = ask()
        while not stopped:
            answer = ask()
        return answer

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(requests))
        running = [pool.submit(again) for _ in range(requests)]
        stack.callback(stopped.append, True)
        yield running
        stopped.append(True)
        for each in running:
            each.result(2 * REQUEST_SECONDS)
