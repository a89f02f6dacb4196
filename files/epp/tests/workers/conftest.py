# SPDX-License-Identifier: GPL-3.0-or-later
"""A picker of two workers before real model servers."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import rig
from benchmarks.client import Client

HOSTS = tuple(f"127.84.0.{number}" for number in range(1, 9))
CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: active-request-scorer}
- {type: prefix-cache-scorer}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: active-request-scorer, weight: 1}, {pluginRef: prefix-cache-scorer, weight: 2}]
"""
Start = Callable[..., contextlib.AbstractContextManager["Picker"]]


class Picker:
    """A running one, and what it says of itself."""

    def __init__(self, epp: rig.Epp) -> None:
        self.epp = epp
        self.process = epp.process

    def get(self, path: str) -> bytes:
        return rig.fetch(f"http://127.0.0.1:{self.epp.metrics_port}{path}")

    def healthy(self) -> bool:
        try:
            return self.get("/healthz").startswith(b"ok")
        except urllib.error.HTTPError:
            return False

    def whole(self) -> bool:
        """All workers serve."""
        return self.healthy() and b"worker" not in self.get("/healthz")

    def value(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.epp.metrics().splitlines() if line.partition("{")[0].partition(" ")[0] == name]
        assert lines, f"no {name}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def decisions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.get("/debug/decisions"))["decisions"]
        return found

    def per_worker(self) -> Counter[int]:
        """Decisions by worker."""
        return Counter(each["worker"] for each in self.decisions())

    def workers(self) -> list[int]:
        """Their process ids."""
        pid = self.process.popen.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def client(self, **options: Any) -> Client:
        return Client(self.epp.grpc_port, **options)

    @contextlib.contextmanager
    def clients(self, count: int) -> Iterator[list[Client]]:
        """So many connections, all open."""
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(self.client()) for _ in range(count)]
            for each in found:
                each.decide(prompt())
            yield found


def prompt() -> str:
    """One that was never asked before."""
    return f"{uuid.uuid4()} " * 60


@pytest.fixture(scope="session")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with rig.upstreams(HOSTS, tmp_path_factory.mktemp("endpoints")) as file:
        yield file


@pytest.fixture(scope="session")
def start(endpoints: Path) -> Start:
    """Starts a picker with these flags, plaintext unless they say otherwise."""

    @contextlib.contextmanager
    def started(*flags: str) -> Iterator[Picker]:
        own = (f"--endpoints-file={endpoints}", f"--config-text={CONFIG}", "--secure-serving=false")
        with rig.epp(*own, "--workers=2", "--transport=h2", *flags) as epp:
            picker = Picker(epp)
            epp.process.wait_for(picker.whole)
            epp.process.wait_for(lambda: picker.epp.endpoints()[-1]["metrics"]["ageSeconds"] is not None)
            yield picker

    return started


@pytest.fixture(scope="module")
def picker(start: Start) -> Iterator[Picker]:
    with start() as found:
        yield found
