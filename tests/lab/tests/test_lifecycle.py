# SPDX-License-Identifier: GPL-3.0-or-later
"""The real lab, from nothing to nothing: what it brings up, what it survives, and that it leaves no trace.

It runs from copies of the package, so this checkout's own lab keeps its data; but a machine has one lab at a time, so
nothing here runs while one is up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import binaries, cgroups, cleanup, dns

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# A whole cluster with DNS, and only the two images that this takes.
_FULL = """
from lab import cluster, dns, loader, network
from lab.progress import Progress
from lab.state import FOLDERS
progress = Progress()
cluster.up(progress, control_plane=False, gpus=3, kwok=False)
dns.ensure(loader.ensure(progress, ["pause", "coredns"])["coredns"], network.load(FOLDERS.network), progress)
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of the lab's package, which has a state folder of its own."""

    root: Path

    def run(self, *words: str, code: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = ["-c", code] if code else ["-m", "lab", *words]
        environment = os.environ | {"PYTHONPATH": str(self.root / "tests")}
        result = subprocess.run(
            [sys.executable, *program], env=environment, capture_output=True, text=True, check=False, cwd="/"
        )
        if check:
            assert result.returncode == 0, result.stderr + result.stdout
        return result

    def kubectl(self, *words: str) -> str:
        return self.run("kubectl", *words).stdout

    def wait_for(self, wanted: str, *words: str) -> None:
        """Poll kubectl until its output is `wanted`."""
        deadline = time.monotonic() + 60
        while (said := self.run("kubectl", *words, check=False).stdout) != wanted:
            assert time.monotonic() < deadline, f"kubectl {' '.join(words)}: {said!r}, not {wanted!r}"
            time.sleep(0.5)

    def pids(self) -> dict[str, str]:
        """Component → process number on the machine."""
        rows = (line.split() for line in self.run("status", check=False).stdout.splitlines()[1:])
        return {row[0]: row[1] for row in rows if len(row) > 4 and row[1].isdecimal()}


def copy_checkout(folder: Path) -> Checkout:
    source = binaries.GO_DIR.parent
    shutil.copytree(source, folder / "tests" / "lab", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    return Checkout(folder)


@pytest.fixture(scope="module")
def free_machine() -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("the lab needs root on Linux")
    if found := cleanup.traces():
        pytest.skip(f"this machine has a lab ({'; '.join(found)}); run `python -m lab down` first")


@pytest.fixture
def checkout(free_machine: None, tmp_path: Path) -> Iterator[Checkout]:
    made = copy_checkout(tmp_path / "one")
    yield made
    made.run("down", "--purge")


def machine() -> dict[str, set[str]]:
    """All of the machine that a lab could have changed."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    store = str(binaries.cache_dir())
    links = json.loads(_said("ip", "-json", "link"))
    rules = [line for line in _said("iptables-save").splitlines() if not line.startswith(("#", ":"))]
    settings = (
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "kernel/panic",
        "kernel/panic_on_oops",
        "net/ipv4/ip_forward",
    )
    return {
        "processes": set(_lab_processes()),
        "mounts": {line.split()[4] for line in mounts if store not in line},
        "links": {link["ifname"] for link in links},
        "routes": set(_said("ip", "route").splitlines()),
        "iptables": set(rules),
        "groups": {str(group) for mount in cgroups.hierarchies() for group in mount.glob("*/")},
        "folders": {
            str(entry)
            for folder in ("/run", "/var/lib", "/var/log", "/opt", "/etc")
            for entry in Path(folder).iterdir()
        },
        "settings": {f"{name}={Path('/proc/sys', name).read_text().strip()}" for name in settings},
    }


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _lab_processes() -> Iterator[str]:
    """Every process, zombies too, that is in the lab's control group or works in its run folder."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Not the name of the program alone: anybody may run the lab's binaries from the cache.
            ours = cgroups.ROOT.encode() in (entry / "cgroup").read_bytes()
            ours |= b"/run/inferops-lab/" in (entry / "cmdline").read_bytes()
            zombie = "(zombie)" in (entry / "status").read_text(encoding="utf-8")
            name = (entry / "comm").read_text(encoding="utf-8").strip()
            if ours or (zombie and name.startswith(("kube", "etcd", "containerd", "coredns"))):
                yield f"{entry.name} {name}"


def at_rest() -> dict[str, set[str]]:
    """The machine before a test. The supervisor of a lab that was taken down a moment ago may still be ending."""
    deadline = time.monotonic() + 30
    while set(_lab_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return machine()


def assert_no_trace(before: dict[str, set[str]]) -> None:
    """The machine is as it was. The supervisor ends as a zombie, for as long as the machine's own init lets it lie."""
    deadline = time.monotonic() + 30
    while machine() != before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert machine() == before


def await_answer(server: str, address: str) -> None:
    """The cluster's DNS knows the API server; one question over UDP may get lost on a busy machine."""
    deadline = time.monotonic() + 30
    while (said := dns.resolve(server, "kubernetes.default.svc.cluster.local")) != address:
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def kill_everything() -> None:
    """What a crash does at its worst: SIGKILL to the supervisor and to all that it started, in no order."""
    assert cgroups.members()
    for pid in cgroups.members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_control_plane_comes_up_keeps_its_data_and_leaves_nothing(checkout: Checkout) -> None:
    before = at_rest()
    checkout.run("up", "--control-plane")
    assert checkout.run("status").returncode == 0
    assert list(checkout.pids()) == ["etcd", "kube-apiserver", "kube-controller-manager"]
    checkout.kubectl("create", "configmap", "kept")

    pids = checkout.pids()
    checkout.run("up", "--control-plane")
    assert checkout.pids() == pids, "a second `up` started something anew"

    checkout.run("down")
    assert_no_trace(before)
    said = checkout.run("status", check=False)
    assert (said.returncode, said.stdout) == (1, "down\n")

    checkout.run("up", "--control-plane")
    assert checkout.kubectl("get", "configmap", "kept", "-o", "name") == "configmap/kept\n"
    checkout.run("down", "--purge")
    assert not (checkout.root / ".lab").exists()
    assert_no_trace(before)


def test_a_whole_cluster_survives_the_death_of_anything(checkout: Checkout) -> None:
    before = at_rest()
    checkout.run(code=_FULL)
    plan = json.loads((checkout.root / ".lab" / "network.json").read_text())["octet"]
    server, api = f"10.{plan}.128.10", f"10.{plan}.128.1"
    await_answer(server, api)
    assert dns.resolve(server, "example.org") is None
    gpus = ("get", "node", "lab", "-o", "jsonpath={.status.allocatable.nvidia\\.com/gpu}")
    checkout.wait_for("3", *gpus)
    checkout.kubectl("create", "configmap", "kept")
    logs = checkout.kubectl("--namespace=kube-system", "logs", "deployment/coredns")
    assert "CoreDNS-" in logs

    # One component: it is started again, and what the kubelet forgets about the node is put back.
    pids = checkout.pids()
    os.kill(int(pids["kubelet"]), signal.SIGKILL)
    checkout.wait_for("3", *gpus)
    deadline = time.monotonic() + 30
    while checkout.run("status", check=False).returncode != 0:
        assert time.monotonic() < deadline, checkout.run("status", check=False).stdout
        time.sleep(0.2)
    after = checkout.pids()
    assert after["kubelet"] != pids["kubelet"]
    assert after | {"kubelet": ""} == pids | {"kubelet": ""}

    # Everything.
    kill_everything()
    assert "not cleanly" in checkout.run("status", check=False).stdout
    said = checkout.run(code=_FULL).stderr
    assert "killed without `down`" in said
    assert checkout.kubectl("get", "configmap", "kept", "-o", "name") == "configmap/kept\n"
    await_answer(server, api)

    checkout.run("up", "--control-plane", "--gpus", "0")
    checkout.wait_for("", *gpus)
    checkout.run("down")
    assert_no_trace(before)


def test_the_death_of_the_supervisor_alone_is_the_end_of_all(checkout: Checkout) -> None:
    before = at_rest()
    checkout.run("up", "--control-plane")
    owner = json.loads(Path("/run/inferops-lab/owner.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while cgroups.members():
        assert time.monotonic() < deadline, f"still there: {sorted(_lab_processes())}"
        time.sleep(0.05)
    checkout.run("down")
    assert_no_trace(before)


def test_one_lab_at_a_time_whichever_checkout_it_belongs_to(checkout: Checkout, tmp_path: Path) -> None:
    before = at_rest()
    other = copy_checkout(tmp_path / "two")
    checkout.run("up", "--control-plane")
    checkout.kubectl("create", "configmap", "of-the-first")

    said = other.run("up", "--control-plane").stderr
    assert f"belongs to {checkout.root}; taking it down" in said
    assert "of-the-first" not in other.kubectl("get", "configmaps", "-o", "name")
    assert f"belongs to {other.root}" in checkout.run("status", check=False).stdout

    # The remains of a killed one are as good as nothing, too.
    kill_everything()
    checkout.run("up", "--control-plane")
    assert "configmap/of-the-first\n" in checkout.kubectl("get", "configmaps", "-o", "name")
    other.run("down", "--purge")
    assert_no_trace(before)
