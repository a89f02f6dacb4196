# SPDX-License-Identifier: GPL-3.0-or-later
"""Triton: the real `tritonserver` with its Python backend, and a model that only takes its time.

Both programs are taken from the wheel of PyTriton, without its Python code: Triton's own configuration is all there is.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import free_port

from engines.environment import environment
from engines.server import Server, started

MODEL = "slow"
SECONDS = 1.0
_CONFIG = """
name: "slow"
backend: "python"
max_batch_size: 0
input [{ name: "text", data_type: TYPE_INT32, dims: [1] }]
output [{ name: "answer", data_type: TYPE_INT32, dims: [1] }]
instance_group [{ count: 1, kind: KIND_CPU }]
"""
_CODE = f"""
import sys
import time

sys.path.insert(0, "PACKAGES")  # the backend wants numpy

import numpy
import triton_python_backend_utils as triton


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            time.sleep({SECONDS})
            # Through DLPack: the backend's other way knows only numpy 1.
            answer = triton.Tensor.from_dlpack("answer", numpy.array([7], dtype=numpy.int32))
            answers.append(triton.InferenceResponse([answer]))
        return answers
"""


@contextmanager
def triton(folder: Path) -> Iterator[Server]:
    """A Triton with one model, ready. `folder` is an empty one of its own."""
    python = environment("triton")
    packages = next((python.parents[1] / "lib").glob("python3.*/site-packages"))
    root = packages / "pytriton" / "tritonserver"
    backends = _backends(root, folder)
    _model(folder / "models", packages)
    port, metrics = free_port(), free_port()
    command = [
        root / "bin" / "tritonserver",
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics}",
        # Those of a CPU without GPUs only; the model's are always there.
        "--allow-gpu-metrics=false",
        "--metrics-interval-ms=200",
    ]
    variables = {
        "PYTHONHOME": sys.base_prefix,
        "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{os.environ.get('LD_LIBRARY_PATH', '')}",
    }
    body = {"inputs": [{"name": "text", "datatype": "INT32", "shape": [1], "data": [7]}]}
    with started("triton", command, variables, f"http://127.0.0.1:{port}/v2/health/ready") as process:
        yield Server("triton", port, f"/v2/models/{MODEL}/infer", body, 1, process, metrics)


def _backends(root: Path, folder: Path) -> Path:
    """The Python backend with the stub for our Python beside it, where it looks for one."""
    target = folder / "backends"
    shutil.copytree(root / "backends", target)
    stub = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(stub / "triton_python_backend_stub", target / "python")
    return target


def _model(repository: Path, packages: Path) -> None:
    version = repository / MODEL / "1"
    version.mkdir(parents=True)
    (repository / MODEL / "config.pbtxt").write_text(_CONFIG, encoding="utf-8")
    (version / "model.py").write_text(_CODE.replace("PACKAGES", str(packages)), encoding="utf-8")
