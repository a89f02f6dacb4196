# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual environments of the engines, one each, from `requirements/engines-<name>.txt`.

They are kept beside the lab's programs in the user's cache folder. An environment's folder is named by everything that
shapes it: its lock, the Python and the platform. So a changed lock is installed beside the old one, and a finished
environment is never made twice. One that was interrupted is thrown away and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.binaries import cache_dir, check_disk
from lab.errors import LabError
from lab.images.commands import build_log
from lab.progress import Progress, Step

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
_ROOM_BYTES = 3 * 10**9
_TICK_S = 2.0
_TAIL_LINES = 25


def lock_file(name: str) -> Path:
    """The lock of an engine's environment; `make lock` writes it."""
    return REQUIREMENTS / f"engines-{name}.txt"


def environment(
    name: str,
    variables: Mapping[str, str] | None = None,
    room: int = _ROOM_BYTES,
    tools: Sequence[str] = (),
) -> Path:
    """The Python of an engine's environment, which is made first when the cache lacks it.

    `variables` are set while it is installed (for packages that are compiled) and are part of its key, `tools` are
    commands that this needs; `room` is the space in bytes that it may take. Raises LabError, which says what to do.
    """
    variables = dict(variables or {})
    folder = cache_dir() / "engines" / f"{name}-{_key(name, variables)}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A virtual environment cannot be moved, so a mark inside says that it is complete.
        if not (folder / ".complete").exists():
            check_disk(folder.parent, room, f"the environment of {name}")
            if missing := [tool for tool in tools if shutil.which(tool) is None]:
                raise LabError(f"{name} is compiled, and that needs {' and '.join(missing)}: install it.")
            _make(name, folder, variables)
            (folder / ".complete").touch()
            _sweep(name, folder)
    return python


def _key(name: str, variables: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    try:
        digest.update(lock_file(name).read_bytes() + b"\0")
    except FileNotFoundError:
        raise LabError(f"{lock_file(name)} is missing: write its .in file, and run `make lock`.") from None
    for part in (platform.machine(), platform.python_version(), sys.base_prefix, repr(sorted(variables.items()))):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:12]


def _make(name: str, folder: Path, variables: Mapping[str, str]) -> None:
    uv = _uv()
    python = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    log = build_log(f"engines-{name}")
    with Progress().step(f"environment of {name}") as step:
        step.note("the first time only")
        _run([uv, "venv", "--quiet", "--python", str(base), str(folder)], log, variables, step)
        sync = [uv, "pip", "sync", "--no-progress", "--python", str(python), "--require-hashes", str(lock_file(name))]
        _run(sync, log, variables, step)


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")
    if found is None:
        raise LabError("uv is missing, which installs the engines: run `make env` (or `pip install uv`).")
    return found


def _run(command: list[str], log: Path, variables: Mapping[str, str], step: Step) -> None:
    """Run a command with its output in a log; the step shows the log's last line."""
    with log.open("ab") as output:
        ours = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        process = subprocess.Popen(
            ["nice", "-n", "5", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**ours, **variables},
            # What it starts, such as compilers, is in its group and ends with it.
            start_new_session=True,
        )
        try:
            while True:
                try:
                    code = process.wait(_TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    if lines := _lines(log):
                        step.note(lines[-1].strip()[:100])
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if code != 0:
        tail = "\n".join(f"  {line}" for line in _lines(log)[-_TAIL_LINES:])
        raise LabError(f"{' '.join(command[:3])} failed with status {code}; all that it said is in {log}:\n{tail}")


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").strip().splitlines()


def _sweep(name: str, keep: Path) -> None:
    """Remove the environments of earlier locks: they are large, and nothing asks for them any more."""
    for old in keep.parent.glob(f"{name}-{'[0-9a-f]' * 12}"):
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)
