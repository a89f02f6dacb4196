# SPDX-License-Identifier: GPL-3.0-or-later
"""``epp bbr`` as a process: it starts without Kubernetes, answers on its ports, and ends well."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from benchmarks import rig
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)
from ports import free_port

SOURCE = rig.REPOSITORY / "files/epp/src"
ENVIRONMENT = {"PYTHONPATH": str(SOURCE), "KUBECONFIG": "", "HOME": "/nonexistent", "KUBERNETES_SERVICE_HOST": ""}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "epp", "bbr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)


@pytest.fixture(params=["grpcio", "h2"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[rig.Process, int, int]]:
    with serving([f"--transport={request.param}"]) as found:
        yield found


@contextmanager
def serving(flags: list[str]) -> Iterator[tuple[rig.Process, int, int]]:
    """A router in plaintext; the process, its ext_proc port and its metrics port."""
    grpc_port, health, metrics = free_port(), free_port(), free_port()
    ports = [f"--grpc-port={grpc_port}", f"--grpc-health-port={health}", f"--metrics-port={metrics}"]
    flags = [*ports, "--secure-serving=false", "--tracing=false", *flags]
    process = rig.Process("bbr", [sys.executable, "-m", "epp", "bbr", *flags], ENVIRONMENT)
    try:
        process.wait_for(partial(rig.connectable, metrics))
        yield process, grpc_port, metrics
    finally:
        process.close()


def exchange(port: int, data: bytes) -> list[ProcessingResponse]:
    """A request in BUFFERED, and the replies."""
    fields = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
    pairs = [HeaderValue(key=key, raw_value=value.encode()) for key, value in fields.items()]
    messages = [
        ProcessingRequest(request_headers=HttpHeaders(headers=HeaderMap(headers=pairs))),
        ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=True)),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            ProcessingRequest.SerializeToString,
            ProcessingResponse.FromString,
        )
        return list(call(iter(messages), timeout=30))


def test_it_serves_and_ends(served: tuple[rig.Process, int, int]) -> None:
    process, port, metrics = served
    first, second = exchange(port, b'{"model": "m"}')
    assert first.WhichOneof("response") == "request_headers"
    options = second.request_body.response.header_mutation.set_headers
    assert {each.header.key: each.header.raw_value for each in options} == {"X-Gateway-Model-Name": b"m"}
    page = rig.fetch(f"http://127.0.0.1:{metrics}/metrics").decode()
    assert "bbr_success_total 1.0" in page
    assert rig.fetch(f"http://127.0.0.1:{metrics}/healthz") == b"ok\n"
    assert "no base model is known" in process.tail()
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0


def test_wrong_arguments() -> None:
    done = run("--plugin=x")
    assert (done.returncode, "write TYPE:NAME" in done.stderr) == (2, True)


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--streaming" in done.stdout


def test_what_keeps_it_from_starting() -> None:
    done = run("--plugin=other:x", "--zap-encoder=json")
    assert done.returncode == 1
    assert any("unknown type" in json.loads(line)["msg"] for line in done.stderr.splitlines())


CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: PayloadProcessorConfig
plugins: [{type: body-field-to-header, parameters: {fieldName: user, headerName: X-User}}]
profiles: [{name: default, plugins: {request: [{pluginRef: body-field-to-header}]}}]
"""


@pytest.mark.parametrize("by_file", [True, False])
def test_by_configuration(tmp_path: Path, by_file: bool) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG if by_file else "no configuration")
    flags = [f"--config-file={file}", *([] if by_file else [f"--config-text={CONFIG}"])]
    with serving(flags) as (process, port, _):
        _, second = exchange(port, b'{"model": "m", "user": "u"}')
        options = second.request_body.response.header_mutation.set_headers
        assert {each.header.key: each.header.raw_value for each in options} == {"X-User": b"u"}
        assert "no base model is known" not in process.tail(), "nobody asks for one"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (CONFIG.replace("fieldName", "field"), "c.yaml:3: plugins[0].parameters.field: unknown field"),
        (None, "c.yaml: cannot be read"),
    ],
)
def test_a_broken_configuration(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    done = run(f"--config-file={file}", "--zap-encoder=console")
    assert (done.returncode, told in done.stderr) == (1, True), done.stderr


def test_debug_needs_no_endpoints(served: tuple[rig.Process, int, int]) -> None:
    _, _, metrics = served
    assert json.loads(rig.fetch(f"http://127.0.0.1:{metrics}/debug/endpoints")) == {"endpoints": []}
    with pytest.raises(urllib.error.HTTPError):
        rig.fetch(f"http://127.0.0.1:{metrics}/nothing")
