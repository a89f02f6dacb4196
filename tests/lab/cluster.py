# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing the lab up and taking it down: the order of things."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab import binaries, cleanup, components, control, network, preflight, supervisor
from lab.api import Api
from lab.control import Options
from lab.errors import LabError
from lab.progress import Progress
from lab.state import FOLDERS, STATE, read_owner

_START_TIMEOUT_S = 180.0


def up(progress: Progress, *, control_plane: bool, gpus: int | None, kwok: bool) -> None:
    """Bring the lab to run what is asked, from whatever state the machine is in. Raises LabError.

    control_plane: etcd, API server and controller manager are enough. gpus: fake GPUs of the node (None: leave them).
    What runs already stays as it is.
    """
    wanted = [*(components.CONTROL_PLANE if control_plane else components.FULL), *(["kwok"] if kwok else [])]
    preflight.machine()
    preflight.packages(progress, with_images=not control_plane)
    preflight.disk()
    STATE.mkdir(mode=0o755, exist_ok=True)
    programs = _programs(wanted, progress)
    if not _running(progress):
        cleanup.remove_lab(progress)
        _start(progress, Options(wanted, gpus), programs)
    else:
        _write_programs(programs)
        control.ask("want", components=wanted, gpus=gpus)
    _wait_components(wanted, progress)
    if not control_plane:
        _wait_node(progress)


def down(progress: Progress, *, purge: bool) -> None:
    """Stop this machine's lab and leave nothing of it behind. Caches stay. Raises LabError.

    purge: remove this checkout's state folder too.
    """
    preflight.machine()
    owner = read_owner()
    if owner is not None and owner.state != str(STATE):
        progress.say(f"The lab on this machine belongs to {Path(owner.state).parent}; taking it down.")
    cleanup.remove_lab(progress)
    if purge and STATE.exists():
        shutil.rmtree(STATE)


def api() -> Api:
    """A client of the lab's API server. Raises LabError when this checkout has no lab."""
    if not FOLDERS.network.exists():
        raise LabError("This checkout has no lab yet; run `python -m lab up`.")
    return Api(components.api_server(network.load(FOLDERS.network)), FOLDERS)


def _programs(wanted: Sequence[str], progress: Progress) -> dict[str, str]:
    """Name → path of every program wanted and of kubectl; those not cached are built."""
    built = binaries.ensure([name for name in wanted if name != "containerd"] + ["kubectl"], progress)
    programs = {name: str(path) for name, path in built.items() if name != "kubectl"}
    if "containerd" in wanted:
        programs["containerd"] = shutil.which("containerd") or "/usr/bin/containerd"
    return programs


def _write_programs(programs: dict[str, str]) -> None:
    FOLDERS.config.mkdir(parents=True, exist_ok=True)
    (FOLDERS.config / "programs.json").write_text(json.dumps(programs, indent=1) + "\n", encoding="utf-8")


def _running(progress: Progress) -> bool:
    """Whether this checkout's lab runs and listens. Says so when the lab is another one, or is broken."""
    owner = read_owner()
    if owner is None:
        if found := cleanup.traces():
            progress.say(f"Found the remains of a lab ({'; '.join(found)}); removing them.")
        return False
    if owner.state != str(STATE):
        progress.say(
            f"The lab on this machine belongs to {Path(owner.state).parent}; taking it down, one runs at a time."
        )
        return False
    if not owner.alive():
        progress.say("This checkout's lab was killed without `down`; cleaning up, its data stays.")
        return False
    try:
        control.status()
    except (OSError, ValueError) as error:
        progress.say(f"This checkout's lab does not answer ({error}); starting it anew.")
        return False
    return True


def _start(progress: Progress, options: Options, programs: dict[str, str]) -> None:
    """Write the configuration and start the supervisor."""
    with progress.step("configure and start the supervisor"):
        plan = network.load(FOLDERS.network)
        components.write_configuration(plan)
        _write_programs(programs)
        previous = Options.load(FOLDERS.root / "options.json")
        # GPUs are the node's, and the node is remembered; which components run is this command's choice.
        Options(options.components, previous.gpus if options.gpus is None else options.gpus).save(
            FOLDERS.root / "options.json"
        )
        process = supervisor.launch()

        def listens() -> bool:
            if process.poll() is not None:
                raise LabError(f"The lab's supervisor ended at once: {_tail(FOLDERS.log / 'supervisor.log', 3)}")
            try:
                control.status()
            except (OSError, ValueError):
                return False
            return True

        _wait(listens, 20, lambda: f"The lab's supervisor does not answer; see {FOLDERS.log / 'supervisor.log'}.")


def _wait_components(wanted: Sequence[str], progress: Progress) -> None:
    with progress.step("start components") as step:

        def ready() -> bool:
            status = control.status()
            waiting = [c.name for c in status.components if c.name in wanted and c.state != "ready"]
            step.note(f"waiting for {', '.join(waiting)}" if waiting else ", ".join(wanted))
            return status.ready(list(wanted))

        _wait(ready, _START_TIMEOUT_S, _why_not_ready)


def _why_not_ready() -> str:
    late = [component for component in control.status().components if component.state != "ready"]
    parts = [
        f"{c.name} is {c.state} (started {c.restarts + 1} times): {_tail(FOLDERS.log / f'{c.name}.log', 2)}"
        for c in late
    ]
    return f"After {_START_TIMEOUT_S:.0f} s the lab is not ready. " + "\n".join(parts)


def _wait_node(progress: Progress) -> None:
    client = api()
    with progress.step("wait for the node") as step:

        def ready() -> bool:
            state = client.node_state()
            step.note(state)
            return state == "Ready"

        _wait(
            ready,
            60,
            lambda: f"The node is not ready after 60 s: {client.node_state()}; see {FOLDERS.log / 'kubelet.log'}.",
        )


def _wait(done: Callable[[], bool], timeout_s: float, why: Callable[[], str]) -> None:
    """Poll until `done`; raise LabError with `why` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise LabError(why())
        time.sleep(0.1)


def _tail(file: Path, lines: int) -> str:
    """The last lines of a log, in one."""
    if not file.exists():
        return f"no {file.name}"
    return " | ".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def kubectl(arguments: Sequence[str], *, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the lab's kubectl as administrator and return what it said. Raises LabError when it fails."""
    command = [str(kubectl_path()), "--kubeconfig", str(FOLDERS.kubeconfig), *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"`kubectl {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result


def kubectl_path() -> Path:
    return binaries.path("kubectl", Progress())
