# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a build command: its output goes to a log file, and the end of it into the error when it fails."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab import binaries
from lab.errors import LabError

_TAIL_LINES = 25
# Where debootstrap and the programs that it starts are; `su` without `-` leaves these folders out.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def build_log(name: str) -> Path:
    """The log file of one image's builds; appended to by `run`."""
    folder = binaries.cache_dir() / "log"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"image-{name}.log"


def run(command: Sequence[str], log: Path, what: str) -> None:
    """Run one command with its output appended to `log`. Raises LabError with the last lines when it fails.

    what: the name by which the error speaks of the command, for example `buildah`.
    """
    with log.open("ab") as stream:
        stream.write(f"$ {shlex.join(command)}\n".encode())
        stream.flush()
        start = stream.tell()
        environment = os.environ | {"PATH": PATH}
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, check=False
        )
    if result.returncode != 0:
        with log.open("rb") as stream:
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()
        tail = "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])
        status = f"{what} failed with status {result.returncode}"
        raise LabError(f"{status}; the whole output is in {log}. It ends with:\n{tail}")


def answer(command: Sequence[str]) -> str | None:
    """The standard output of a quick command, or None when it fails."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else None
