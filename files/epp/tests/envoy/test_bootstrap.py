# SPDX-License-Identifier: GPL-3.0-or-later
"""``epp envoy-bootstrap`` with the real Envoy: what it prints is what Envoy takes, and requests pass."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import rig
from ports import free_port

from epp.cli import main

pytestmark = pytest.mark.envoy


def printed(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["envoy-bootstrap", *flags]) == 0
    return capsys.readouterr().out


@contextlib.contextmanager
def started(config: str, folder: Path, port: int) -> Iterator[str]:
    """Envoy with this configuration; yields its URL."""
    file = folder / "envoy.yaml"
    file.write_text(config)
    process = rig.Process("envoy", [str(rig.envoy_binary()), "-c", str(file), "--disable-hot-restart", "-l", "warning"])
    try:
        process.wait_for(lambda: rig.connectable(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.close()


@pytest.mark.parametrize("static", [True, False])
async def test_requests_pass(
    static: bool,
    epp: rig.Epp,
    endpoints: Path,
    mirror: Any,
    client: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    flags = [f"--listen=127.0.0.1:{port}", f"--admin=127.0.0.1:{free_port()}", f"--epp=127.0.0.1:{epp.grpc_port}"]
    if static:
        flags.append(f"--endpoints-file={endpoints}")
    with started(printed(capsys, *flags), tmp_path, port) as url:
        served = set()
        for number in range(12):
            body = {"model": "llama", "prompt": f"{number} is a number"}
            async with client.post(f"{url}/v1/completions", json=body) as response:
                assert response.status == 200, await response.text()
                served.add((await response.json())["served"])
        assert served <= set(mirror.hostports)


async def test_the_gateway_says_who_served(
    mirror: Any, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first choice refuses connections, Envoy goes to the fallback, and tells the EPP so."""
    host = mirror.hostports[0].rpartition(":")[0]
    dead = f"{host}:{free_port(host)}"
    file = rig.write_endpoints(tmp_path / "endpoints.yaml", [dead, mirror.hostports[0]])
    config = tmp_path / "config.yaml"
    config.write_text(TEST_CONFIG)
    port = free_port()
    with rig.epp(f"--endpoints-file={file}", f"--config-file={config}") as epp:
        flags = [f"--listen=127.0.0.1:{port}", f"--admin=127.0.0.1:{free_port()}"]
        flags += [f"--epp=127.0.0.1:{epp.grpc_port}", f"--endpoints-file={file}"]
        with started(printed(capsys, *flags), tmp_path, port) as url:
            monkeypatch.setattr(mirror, "pause", 0.3)  # so that the answer still goes on when the counts are read
            body = {"model": "llama", "prompt": "x", "stream": True}
            headers = {"test-epp-endpoint-selection": f"{dead},{mirror.hostports[0]}"}
            async with client.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                assert response.status == 200
                first = await response.content.readline()
                assert mirror.hostports[0].encode() in first
                assert response.headers["x-conformance-test-served-endpoint"] == mirror.hostports[0]
                assert {each["address"]: each["inflight"] for each in epp.endpoints()} == {
                    dead: 0,
                    mirror.hostports[0]: 1,
                }
                await response.read()


TEST_CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: header-based-testing-filter
- {type: max-score-picker, parameters: {maxNumOfEndpoints: 2}}
- type: destination-endpoint-served-verifier
dataLayer: {injectDefaults: false}
"""


@pytest.mark.parametrize(
    "flags",
    [
        ["--epp=epp.example.internal:9002", "--secure-serving=false"],
        ["--epp=[::1]:9002", "--request-body-mode=buffered", "--response-body-mode=none"],
        ["--retries=0", "--timeout=30s", "--max-request-bytes=1000000"],
    ],
)
def test_envoy_accepts_every_shape(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(printed(capsys, "--listen=127.0.0.1:0", *flags))
    done = subprocess.run(
        [rig.envoy_binary(), "--mode", "validate", "-c", file], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--listen=8080"], "--listen=8080: write ADDRESS:PORT"),
        (["--timeout=soon"], "--timeout=soon: write a duration like 30s or 1h"),
        (["--endpoints-file=/nowhere"], "--endpoints-file=/nowhere: cannot be read"),
    ],
)
def test_mistakes(flags: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envoy-bootstrap", *flags]) == 1
    told = capsys.readouterr()
    assert (told.out, text in told.err) == ("", True)


def test_a_file_without_endpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rig.write_endpoints(tmp_path / "endpoints.yaml", [])
    assert main(["envoy-bootstrap", f"--endpoints-file={file}"]) == 1
    assert "has no endpoints" in capsys.readouterr().err
    file.write_text("endpoints: 3")
    assert main(["envoy-bootstrap", f"--endpoints-file={file}"]) == 1
    assert "must be a map with one field, endpoints" in capsys.readouterr().err


def test_serving_does_not_load_envoys_types() -> None:
    code = (
        "import sys, epp.cli, epp.serve; print([name for name in sys.modules if name.startswith('envoy_data_plane')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(rig.REPOSITORY / "files/epp/src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
