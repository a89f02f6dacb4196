# SPDX-License-Identifier: GPL-3.0-or-later
"""The program as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import rig

SOURCE = rig.REPOSITORY / "files/epp/src"


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The EPP with flags that keep it from starting; standard error is its log."""
    ports = ("--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0")
    command = [sys.executable, "-m", "epp", *ports, "--zap-encoder=json", *flags]
    variables = {"PATH": "", "PYTHONPATH": str(SOURCE), "HOME": "/nonexistent", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables, check=False)


@pytest.fixture
def endpoints(tmp_path: Path) -> str:
    return f"--endpoints-file={rig.write_endpoints(tmp_path / 'endpoints.yaml', [])}"


def message(done: subprocess.CompletedProcess[str]) -> str:
    """The one JSON line that says why."""
    (line,) = done.stderr.splitlines()
    text: str = json.loads(line)["msg"]
    return text


def test_a_broken_configuration_is_refused_by_line_and_field(endpoints: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "plugins: [{type: max-score-picker}]\nschedulingProfilez: []\n"
    )
    done = run(endpoints, f"--config-file={config}")
    assert done.returncode == 1
    assert f"{config}:4" in message(done)
    assert "schedulingProfiles" in message(done)


def test_a_missing_endpoints_file_is_named() -> None:
    done = run("--endpoints-file=/nonexistent.yaml")
    assert (done.returncode, "/nonexistent.yaml: cannot be read" in message(done)) == (1, True)


def test_kubernetes_that_cannot_be_found() -> None:
    done = run("--pool-name=llama")
    assert done.returncode == 1
    assert "no Kubernetes API server" in message(done)
    assert "--endpoints-file" in message(done)


def test_a_missing_certificate_is_named(endpoints: str, tmp_path: Path) -> None:
    done = run(endpoints, f"--cert-path={tmp_path}")
    assert (done.returncode, f"{tmp_path}/tls.key: cannot be read" in message(done)) == (1, True)


@pytest.mark.parametrize("flag", ["--grpc-port", "--grpc-health-port", "--metrics-port"])
def test_a_taken_port_is_named(endpoints: str, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(endpoints, f"{flag}={port}")
    assert done.returncode == 1
    assert "cannot listen on" in message(done)
    assert str(port) in message(done)


def test_starts_answers_and_ends(endpoints: str) -> None:
    with rig.epp(endpoints) as epp:
        assert rig.fetch(f"http://127.0.0.1:{epp.metrics_port}/healthz") == b"ok\n"
        assert epp.endpoints() == []
        assert "inference_pool_ready_pods" in epp.metrics()
        assert epp.process.memory_bytes() < 120_000_000
        assert epp.process.stop() == 0
        assert "NOT_SERVING" in epp.process.tail()
        assert "Traceback" not in epp.process.tail()
