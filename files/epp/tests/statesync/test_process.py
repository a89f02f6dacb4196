# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real EPPs of one pool: a prompt that one of them has sent somewhere is sent there by the other, too."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import rig
from benchmarks.client import Client
from ports import free_port

HOSTS = tuple(f"127.81.0.{number}" for number in range(1, 9))
PROMPTS = 40


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with rig.upstreams(HOSTS, tmp_path_factory.mktemp("endpoints")) as file:
        yield file


def same(endpoints: Path, *, sync: bool) -> float:
    """The share of prompts that the second replica sends where the first one did."""
    ports = free_port(), free_port()
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    with contextlib.ExitStack() as stack:
        clients = []
        for port in ports:
            flags = [f"--endpoints-file={endpoints}", "--secure-serving=false"]
            flags += [f"--statesync-peers={peers}", f"--statesync-port={port}"] if sync else []
            epp = stack.enter_context(rig.epp(*flags))
            clients.append(stack.enter_context(Client(epp.grpc_port)))
        first, second = clients
        asked = [f"{uuid.uuid4()} " * 60 for _ in range(PROMPTS)]
        before = [first.decide(prompt).destination for prompt in asked]
        assert len(set(before)) > 2, "prompts that are new go everywhere"
        return (
            sum(second.decide(prompt).destination == where for prompt, where in zip(asked, before, strict=True))
            / PROMPTS
        )


def test_a_prefix_is_known_to_both(endpoints: Path) -> None:
    assert same(endpoints, sync=True) >= 0.9


def test_without_peers_each_is_alone(endpoints: Path) -> None:
    assert same(endpoints, sync=False) <= 0.6
