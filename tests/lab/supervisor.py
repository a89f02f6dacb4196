# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's supervisor: two processes.

The outer one belongs to the machine: it holds the marker, joins the lab's control group and waits. The inner one is
pid 1 of the lab's namespaces: it starts the components in order, restarts those that end, reaps orphans, keeps the
node's fake GPUs, answers the control socket, and stops everything in order. Whichever of the two is killed, the
kernel ends the whole lab.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from lab import cgroups, components, namespaces, network
from lab.api import Api
from lab.components import Component
from lab.control import ComponentStatus, Options, Status
from lab.state import CONTROL_SOCKET, FOLDERS, RUN, Folders, write_owner

_TICK_S = 0.1
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
# A component that ran this long has recovered: its backoff starts anew.
_STABLE_S = 60.0
_GPU_INTERVAL_S = 5.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Who must be ready before a component is started for the first time.
_AFTER = {
    "kube-apiserver": ("etcd",),
    "kube-controller-manager": ("kube-apiserver",),
    "kube-scheduler": ("kube-apiserver",),
    "kubelet": ("kube-apiserver", "containerd"),
    "kube-proxy": ("kube-apiserver",),
    "kwok": ("kube-apiserver",),
}
# First those that would start pods anew, then (after the pods) those that these need.
_STOP_FIRST = ("kubelet", "kwok", "kube-scheduler", "kube-controller-manager", "kube-proxy")
_STOP_LAST = ("kube-apiserver", "containerd", "etcd")


def supervise() -> int:
    """The outer process: run the lab of this checkout until it ends. Returns an exit status."""
    plan = network.load(FOLDERS.network)
    RUN.mkdir(mode=0o700, exist_ok=True)
    controllers = cgroups.controllers_to_enable()
    write_owner(namespaces.missing_mount_points(), controllers)
    namespaces.make_mount_points()
    cgroups.switch(controllers, on=True)
    cgroups.join()
    pid = namespaces.start(lambda: Supervisor(plan, FOLDERS).run(), lambda inner: network.attach(plan, inner))

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@dataclass
class Run:
    """The present life of one component. Times are `time.monotonic` seconds."""

    component: Component
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    started: float = 0.0
    restarts: int = 0
    failures: int = 0
    retry_at: float = 0.0


class Supervisor:
    """The inner process."""

    def __init__(self, plan: network.Plan, folders: Folders) -> None:
        self._plan = plan
        self._folders = folders
        self._options = Options.load(folders.root / "options.json")
        self._runs: dict[str, Run] = {}
        self._ever_ready: set[str] = set()
        self._stopping = False
        self._gpus_due = 0.0

    def run(self) -> None:
        """Everything from the first mount to the last process."""
        namespaces.mount_all(self._folders)
        network.configure_inside(self._plan)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._api = Api(components.api_server(self._plan), self._folders)
        self._want(self._options)
        with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
            CONTROL_SOCKET.unlink(missing_ok=True)
            listener.bind(str(CONTROL_SOCKET))
            listener.listen(8)
            selector.register(listener, selectors.EVENT_READ)
            while not self._stopping:
                if selector.select(_TICK_S):
                    self._serve(listener)
                self._reap()
                self._advance()
                self._keep_gpus()
        self._stop_all()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    # -- what is wanted

    def _want(self, options: Options) -> None:
        """Take components and GPUs into what the lab runs; nothing that runs is stopped by it."""
        names = [*self._options.components, *(n for n in options.components if n not in self._options.components)]
        gpus = self._options.gpus if options.gpus is None else options.gpus
        self._options = Options(names, gpus)
        self._options.save(self._folders.root / "options.json")
        programs = json.loads((self._folders.config / "programs.json").read_text(encoding="utf-8"))
        for name, component in components.build(self._plan, programs, self._folders).items():
            if name in names:
                self._runs.setdefault(name, Run(component))
        self._gpus_due = 0.0

    # -- children

    def _advance(self) -> None:
        now = time.monotonic()
        for name, run in self._runs.items():
            if run.process is None:
                if now >= run.retry_at and all(other in self._ever_ready for other in _AFTER.get(name, ())):
                    self._start(name, run)
            elif not run.ready and run.component.ready():
                run.ready = True
                self._ever_ready.add(name)
                _log(f"{name} is ready after {time.monotonic() - run.started:.1f} s")

    def _start(self, name: str, run: Run) -> None:
        with (self._folders.log / f"{name}.log").open("ab") as log:
            run.process = subprocess.Popen(
                run.component.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": _PATH, "HOME": "/"},
                start_new_session=True,
            )
        run.started = time.monotonic()
        run.ready = False
        _log(f"{name} started")

    def _reap(self) -> None:
        """Collect every ended child: components, and orphans that the kernel gave to pid 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, run in self._runs.items():
                if run.process is not None and run.process.pid == pid:
                    run.process.returncode = os.waitstatus_to_exitcode(status)
                    self._ended(name, run)

    def _ended(self, name: str, run: Run) -> None:
        assert run.process is not None
        lived = time.monotonic() - run.started
        run.failures = 0 if lived >= _STABLE_S else run.failures + 1
        delay = _BACKOFF_S[min(max(run.failures - 1, 0), len(_BACKOFF_S) - 1)]
        _log(f"{name} ended with {run.process.returncode} after {lived:.1f} s; see {name}.log; next start in {delay} s")
        run.process, run.ready = None, False
        run.restarts += 1
        run.retry_at = time.monotonic() + delay

    def _keep_gpus(self) -> None:
        """The kubelet drops resources that it does not know each time it registers; put them back."""
        run = self._runs.get("kubelet")
        if self._options.gpus is None or run is None or not run.ready or time.monotonic() < self._gpus_due:
            return
        self._gpus_due = time.monotonic() + _GPU_INTERVAL_S
        try:
            self._api.set_gpus(self._options.gpus)
        except OSError as error:
            _log(f"cannot set the node's GPUs yet: {error}")

    # -- control socket

    def _serve(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            connection.settimeout(2)
            try:
                answer = self._command(json.loads(stream.readline()))
            except (ValueError, KeyError, TypeError, OSError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            try:
                stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()
            except OSError as error:
                _log(f"control client went away: {error}")

    def _command(self, request: dict[str, object]) -> dict[str, object]:
        match request.pop("command"):
            case "status":
                return asdict(self._status())
            case "want":
                self._want(Options(**request))  # type: ignore[arg-type]
                return {}
            case "stop":
                self._stopping = True
                return {}
            case other:
                raise ValueError(f"no such command: {other!r}")

    def _status(self) -> Status:
        now = time.monotonic()
        found = []
        for name, run in self._runs.items():
            pid = run.process.pid if run.process else 0
            uptime = now - run.started if run.process else 0.0
            found.append(ComponentStatus(name, pid, self._state(run), run.restarts, _rss(pid), uptime))
        return Status(found, self._options.gpus, len(cgroups.members()), cgroups.memory_bytes())

    def _state(self, run: Run) -> str:
        if run.process is None:
            return "backoff" if run.restarts else "waiting"
        if not run.ready:
            return "starting"
        return "ready" if run.component.ready() else "unready"

    # -- the end

    def _stop_all(self) -> None:
        _log("stopping")
        self._end(_STOP_FIRST, 5)
        left = cgroups.kill(cgroups.PODS, signal.SIGTERM, 5)
        if left:
            _log(f"{len(left)} pod processes did not end within 5 s of SIGTERM; killing them")
            cgroups.kill(cgroups.PODS, signal.SIGKILL, 5)
        for name in _STOP_LAST:
            self._end((name,), 5)
        _log("stopped")

    def _end(self, names: tuple[str, ...], timeout_s: float) -> None:
        """SIGTERM, and SIGKILL to those that still run after `timeout_s`."""
        processes = {name: run.process for name in names if (run := self._runs.get(name)) and run.process}
        for process in processes.values():
            process.terminate()
        deadline = time.monotonic() + timeout_s
        for name, process in processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log(f"{name} did not end within {timeout_s} s of SIGTERM; killing it")
                process.kill()
                process.wait()


def _rss(pid: int) -> int:
    """Resident memory in bytes; 0: no such process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _log(text: str) -> None:
    """One line into supervisor.log, which is this process's standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def launch() -> subprocess.Popen[bytes]:
    """Start the outer process in the background, detached from this terminal, with a fresh set of log files."""
    FOLDERS.log.mkdir(parents=True, exist_ok=True)
    for name in (*components.FULL, "kwok", "supervisor"):
        current = FOLDERS.log / f"{name}.log"
        if current.exists():
            shutil.move(current, current.with_suffix(".log.1"))
    with (FOLDERS.log / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lab", "supervise"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            start_new_session=True,
        )
