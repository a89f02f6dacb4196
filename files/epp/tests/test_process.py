# SPDX-License-Identifier: GPL-3.0-or-later
"""The program as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import rig
from ports import free_port

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


def config(tmp_path: Path, text: str) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{text}")
    return f"--config-file={file}"


def test_endpoints_by_configuration(tmp_path: Path) -> None:
    endpoints = rig.write_endpoints(tmp_path / "endpoints.yaml", ["127.0.0.9:8000"])
    discovery = (
        f"plugins: [{{type: file-discovery, parameters: {{path: {endpoints}, watchFile: true}}}}]\n"
        "dataLayer: {discovery: {endpoints: {pluginRef: file-discovery}}}\n"
    )
    flag = config(tmp_path, discovery)
    with rig.epp(flag) as epp:
        assert [each["address"] for each in epp.endpoints()] == ["127.0.0.9:8000"]
    done = run(flag, f"--endpoints-file={endpoints}")
    assert done.returncode == 2
    assert "dataLayer.discovery says which endpoints to serve, and a flag does, too" in done.stderr
    done = run(flag, "--ha-enable-leader-election")
    assert "--ha-enable-leader-election needs Kubernetes" in done.stderr


def test_a_plugin_that_cannot_be_made_is_named(endpoints: str, tmp_path: Path) -> None:
    circle = "plugins: [{type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: nobody}}]\n"
    done = run(endpoints, config(tmp_path, circle))
    assert done.returncode == 1
    assert "no plugin is named 'nobody'" in message(done)


def test_warnings_are_logged_once(endpoints: str, tmp_path: Path) -> None:
    flow = config(tmp_path, "plugins: [{type: queue-scorer}]\nflowControl: {maxRequests: 5}\n")
    with rig.epp(endpoints, flow) as epp:
        assert epp.process.tail().count("flowControl (maxRequests) has no effect") == 1


def test_v13s_environment_counts(endpoints: str, tmp_path: Path) -> None:
    done = run(endpoints, SD_QUEUE_DEPTH_THRESHOLD="many")
    assert (done.returncode, "SD_QUEUE_DEPTH_THRESHOLD: 'many' is not usable" in message(done)) == (1, True)
    done = run(endpoints, OTEL_TRACES_SAMPLER="jaeger_remote")
    assert "OTEL_TRACES_SAMPLER=jaeger_remote: write always_on" in message(done)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--tls-cipher-suites=RC4"], "RC4 is not a cipher suite that HTTP/2 allows; known are TLS_ECDHE_ECDSA"),
        (["--tls-cipher-suites=TLS_AES_128_GCM_SHA256"], "only suites of TLS 1.3 are listed"),
    ],
)
def test_ciphers_that_do_not_exist(endpoints: str, flags: list[str], text: str) -> None:
    done = run(endpoints, *flags)
    assert (done.returncode, text in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("flags", "old", "new"),
    [
        ([], "ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.3"),
        (["--tls-min-version=VersionTLS13"], None, "TLSv1.3"),
        (
            ["--tls-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256"],
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "TLSv1.3",
        ),
    ],
)
def test_versions_and_ciphers(endpoints: str, flags: list[str], old: str | None, new: str) -> None:
    with rig.epp(endpoints, *flags) as epp:
        assert handshake(epp.grpc_port, ssl.TLSVersion.TLSv1_3)[0] == new
        if old is None:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                handshake(epp.grpc_port, ssl.TLSVersion.TLSv1_2)
        else:
            assert handshake(epp.grpc_port, ssl.TLSVersion.TLSv1_2) == ("TLSv1.2", old)


def handshake(port: int, maximum: ssl.TLSVersion) -> tuple[str | None, str]:
    """Version and cipher that a client gets which speaks at most this version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, maximum
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as secure:
        cipher = secure.cipher()
        assert cipher is not None
        return secure.version(), cipher[0]


def test_idle_with_four_pods_stays_small(tmp_path: Path) -> None:
    host = f"127.{64 + os.getpid() % 128}.9.1"
    with rig.sims(4, host, free_port(), "--model=llama") as hostports:
        file = rig.write_endpoints(tmp_path / "endpoints.yaml", hostports)
        with rig.epp(f"--endpoints-file={file}") as epp:
            epp.process.wait_for(lambda: all(each["metrics"]["ageSeconds"] is not None for each in epp.endpoints()))
            assert epp.metrics()
            assert epp.process.memory_bytes() < 120_000_000
