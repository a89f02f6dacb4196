# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual environments made from locks, for one Python each, and kept as long as those do not change."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "gates"
CORES = ("2.20", "2.21")
PYTHONS = ("3.12", "3.13")
# Modules may run on older Pythons than ansible-core itself; ansible-test looks at each of these that is there.
MODULE_PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


class EnvironmentMissing(Exception):
    """This machine lacks something that only its owner can add; the text says what."""


class EnvironmentBroken(Exception):
    """An environment could not be made; the text is what the tool said."""


@dataclass(frozen=True)
class Environment:
    """An installed lock: ``bin`` holds its programs."""

    path: Path

    @property
    def bin(self) -> Path:
        return self.path / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    @property
    def site_packages(self) -> Path:
        return next((self.path / "lib").glob("python3*")) / "site-packages"


@cache
def interpreter(version: str) -> Path | None:
    """The machine's own Python of this minor version (``3.12``), None if it has none."""
    found = subprocess.run([ROOT / "tests/find-python", version], capture_output=True, text=True, check=False)
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def environment(lock: str, python: str) -> Environment:
    """The environment of ``requirements/<lock>.txt`` on Python ``python``; made first if it is not there or outdated.

    Raises EnvironmentMissing without that Python, and EnvironmentBroken if the lock cannot be installed.
    """
    base = interpreter(python)
    if base is None:
        raise EnvironmentMissing(f"no Python {python} with the module venv on this machine")
    requirements = ROOT / "requirements" / f"{lock}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + str(base).encode()).hexdigest()[:12]
    path = CACHE / "environments" / f"{lock}-py{python}"
    done = path / f".locked-{digest}"
    with _locked(CACHE / "environments"):
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)
            _run("uv", "venv", "--quiet", "--no-python-downloads", "--python", str(base), str(path))
            target = ("--python", str(path / "bin" / "python"))
            _run("uv", "pip", "sync", "--quiet", *target, "--require-hashes", str(requirements))
            done.touch()
    return Environment(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else makes environments meanwhile: neither another thread nor another process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    made = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    if made.returncode:
        raise EnvironmentBroken(f"`{' '.join(command)}` failed:\n{made.stderr}")
