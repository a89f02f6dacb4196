# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lab status`: what runs, where, and how much memory it takes."""

from __future__ import annotations

from pathlib import Path

from lab import cgroups, cleanup, cluster, control
from lab.progress import elapsed
from lab.state import FOLDERS, STATE, read_owner

_HEAD = ("COMPONENT", "PID", "STATE", "RESTARTS", "MEMORY", "UPTIME")


def show() -> int:
    """Print the status; returns 0 when the lab runs and every component is ready, else 1."""
    owner = read_owner()
    if owner is not None and owner.alive() and owner.state != str(STATE):
        print(f"down: the lab on this machine belongs to {Path(owner.state).parent}")
        return 1
    if owner is None or not owner.alive():
        found = cleanup.traces()
        print(
            f"down, but not cleanly: there is {'; '.join(found)}; `python -m lab up` or `down` removes that"
            if found
            else "down"
        )
        return 1
    try:
        status = control.status()
    except (OSError, ValueError) as error:
        print(f"the supervisor (process {owner.pid}) does not answer: {error}; `python -m lab up` starts it anew")
        return 1
    print(table(status, _outer_pids()))
    print()
    if any(component.name == "kubelet" for component in status.components):
        gpus = "" if status.gpus is None else f", {status.gpus} fake nvidia.com/gpu"
        print(f"node:       {cluster.api().node_state()}{gpus}")
    memory = "" if status.memory is None else f", {_megabytes(status.memory)} of memory"
    print(f"processes:  {status.processes}{memory} (all of the lab, pods included)")
    print(f"kubeconfig: {FOLDERS.kubeconfig}")
    print(f"logs:       {FOLDERS.log}")
    return 0 if all(component.state == "ready" for component in status.components) else 1


def table(status: control.Status, pids: dict[int, int]) -> str:
    """The components as a table. pids: number inside the lab → number on the machine."""
    rows = [_HEAD] + [
        (
            c.name,
            str(pids.get(c.pid, "-")),
            c.state,
            str(c.restarts),
            _megabytes(c.rss),
            elapsed(c.uptime_s),
        )
        for c in status.components
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _outer_pids() -> dict[int, int]:
    """Process number inside the lab's namespace → on the machine, for the lab's own components."""
    found = {}
    for pid in cgroups.members(cgroups.SYSTEM):
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
        if len(numbers) == 2:
            found[int(numbers[1])] = pid
    return found
