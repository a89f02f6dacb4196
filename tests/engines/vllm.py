# SPDX-License-Identifier: GPL-3.0-or-later
"""The real vLLM on the CPU, with the tiny model and three adapters of it.

A server is three processes, which take 20 seconds of a core each until it answers, and 3 GB of memory. It listens on an
address of its own (127/8), so that it can stand for a pod. Its cache is small on purpose: 256 blocks of 32 tokens.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import tinymodel
from engines.environment import environment
from engines.server import get, post

MODEL = "tiny"
ADAPTERS = ("lora-a", "lora-b", "lora-c")
SLOTS = 2
"""Adapters that run at once."""
BLOCK_TOKENS = 32
"""Blocks on the CPU must be multiples of it."""
BLOCKS = 256
SEATS = 3
"""Requests that run at once."""
CONTEXT = 4096
ROOM_BYTES = 9 * 10**9
START_SECONDS = 400.0
"""How long servers may take until they answer, on a machine that is busy."""
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    # For /reset_prefix_cache.
    "VLLM_SERVER_DEV_MODE": "1",
}


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    address: str
    port: int
    events_port: int = 0
    """Of what it publishes of its KV cache; 0: it connects with a listener."""
    replay_port: int = 0
    """Where it can be asked for earlier events; 0: nowhere."""
    listener: str = ""
    """``ip:port`` of who listens."""
    flags: tuple[str, ...] = ()
    """More of them."""

    @property
    def hostport(self) -> str:
        """``ip:port``."""
        return f"{self.address}:{self.port}"


class Vllm:
    """A running server."""

    def __init__(self, place: Place, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.place, self.popen, self.log = place, popen, log
        self.url = f"http://{place.hostport}"

    def page(self) -> str:
        """Its metrics page."""
        return get(f"{self.url}/metrics")

    def figure(self, name: str, **labels: str) -> float:
        """Sum of the series of a metric that have these labels."""
        return figure(self.page(), f"vllm:{name}", **labels)

    def hits(self) -> int:
        """Tokens that it ever found in its prefix cache."""
        return int(self.figure("prefix_cache_hits_total"))

    def asked(self) -> int:
        """Tokens that it ever looked for there."""
        return int(self.figure("prefix_cache_queries_total"))

    def ask(self, path: str = "/v1/completions", **body: Any) -> Any:
        """Its answer to a request, which must be good."""
        return post(self.url + path, {"model": MODEL, **body})

    def forget(self) -> None:
        """Empty its prefix cache; the events say so with the next request."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/reset_prefix_cache", b""), timeout=20):
            pass

    def idle(self) -> bool:
        """Whether it has no request."""
        page = self.page()
        return not any(figure(page, f"vllm:num_requests_{each}") for each in ("running", "waiting"))

    @contextlib.contextmanager
    def busy(self, *models: str) -> Iterator[None]:
        """A slow request to each of these models for a while; given up at the end."""
        with contextlib.ExitStack() as stack:
            for number, model in enumerate(models):
                connection = stack.enter_context(
                    contextlib.closing(http.client.HTTPConnection(self.place.address, self.place.port, timeout=60))
                )
                body = {"model": model, "prompt": f"{number} {os.urandom(8).hex()}", "max_tokens": 2000}
                more = {"ignore_eos": True, "stream": True}
                connection.request("POST", "/v1/completions", json.dumps({**body, **more}), _JSON)
            yield
        wait(self.idle, f"{self.url} is idle again")


_JSON = {"content-type": "application/json"}


def figure(page: str, name: str, **labels: str) -> float:
    """Sum of the series of a metric on a page that have these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    series = re.findall(rf"^{re.escape(name)}(?:{{(.*)}})? (\S+)$", page, re.MULTILINE)
    return sum(float(value) for found, value in series if all(each in found for each in wanted))


def wait(condition: Any, what: str, seconds: float = 60.0) -> Any:
    """Call ``condition`` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@contextlib.contextmanager
def servers(places: Sequence[Place]) -> Iterator[list[Vllm]]:
    """Servers at these places, which start side by side. Raises LabError where vLLM cannot be installed."""
    python = environment("vllm", room=ROOM_BYTES)
    with tempfile.TemporaryDirectory(prefix="vllm-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        tinymodel.model(folder / MODEL)
        for number, adapter in enumerate(ADAPTERS):
            tinymodel.adapter(folder / adapter, seed=2 + number)
        started = [stack.enter_context(_started(python, folder, place)) for place in places]
        for each in started:
            _wait(each)
        yield started


@contextlib.contextmanager
def _started(python: Path, folder: Path, place: Place) -> Iterator[Vllm]:
    log = folder / f"{place.port}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command(python, folder, place),
            cwd=folder,
            env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Its workers are in its group, and end with it whatever happens to it.
            start_new_session=True,
        )
    try:
        yield Vllm(place, popen, log)
    finally:
        popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def command(python: Path, folder: Path, place: Place) -> list[str]:
    """How a server is started, with what stands in ``folder``."""
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{place.events_port}" if place.events_port else f"tcp://{place.listener}",
        "replay_endpoint": f"tcp://*:{place.replay_port}" if place.replay_port else None,
        "topic": f"kv@{place.hostport}@{MODEL}",
    }
    # The program `vllm` asks for the version of a package of that name, which vllm-cpu is not.
    module = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    listening = [f"--host={place.address}", f"--port={place.port}", "--disable-uvicorn-access-log"]
    model = [f"--model={folder / MODEL}", f"--served-model-name={MODEL}", "--dtype=float32", "--enforce-eager"]
    size = [f"--max-model-len={CONTEXT}", f"--max-num-seqs={SEATS}"]
    cache = [f"--block-size={BLOCK_TOKENS}", f"--num-gpu-blocks-override={BLOCKS}", "--enable-prefix-caching"]
    adapters = ["--enable-lora", f"--max-lora-rank={tinymodel.RANK}", f"--max-loras={SLOTS}", "--lora-modules"]
    adapters += [f"{each}={folder / each}" for each in ADAPTERS]
    return [
        *module,
        *listening,
        *model,
        *size,
        *cache,
        "--kv-events-config",
        json.dumps(events),
        *place.flags,
        *adapters,
    ]


def _wait(server: Vllm) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.popen.poll() is not None:
            raise AssertionError(f"vLLM ended with {server.popen.returncode}:\n{_tail(server.log)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"vLLM does not answer after {START_SECONDS:g} s:\n{_tail(server.log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
