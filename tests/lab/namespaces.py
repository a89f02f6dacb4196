# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's namespaces: processes, mounts and network of its own, all ended by the kernel when its first process ends.

What the components insist on having at fixed places of the machine (kubelet's root, pod logs, the CNI's cache,
`/run`) is mounted over inside; the machine itself sees four empty folders, and only while the lab exists.
"""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from lab.errors import LabError
from lab.state import RUN, Folders

MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 12, 1 << 14, 1 << 18, 1 << 19, 1 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

_KUBELET = "/var/lib/kubelet"
_MOUNT_POINTS = (_KUBELET, "/var/lib/cni", "/var/log/pods", "/var/log/containers")
# The kubelet sets these for the whole machine when it finds other values. It finds these.
_KERNEL_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


def missing_mount_points() -> list[str]:
    """The folders that `make_mount_points` will make on this machine, and that the lab's end must remove."""
    return [folder for folder in _MOUNT_POINTS if not os.path.exists(folder)]


def make_mount_points() -> None:
    for folder in _MOUNT_POINTS:
        os.makedirs(folder, exist_ok=True)


def start(first: Callable[[], None], attach: Callable[[int], None]) -> int:
    """Fork the lab's first process, pid 1 of a new namespace with its own mounts and network; return its pid outside.

    attach: called outside with that pid once its network namespace exists; first: called inside after that, and the
    process ends when it returns. When the calling process dies, the kernel kills the first process, and with it every
    process of the lab. Raises LabError when the machine does not allow new namespaces.
    """
    try:
        os.unshare(os.CLONE_NEWPID)
    except OSError as error:
        raise LabError(
            f"This machine does not let root make namespaces ({error.strerror}); "
            "a container needs `--privileged` for the lab."
        ) from error
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready_read)
        os.close(go_write)
        _inside(first, ready_write, go_read)
    os.close(ready_write)
    os.close(go_read)
    # Later children of this process belong to the machine again: only the first one founds the namespace.
    with open("/proc/self/ns/pid") as own:
        os.setns(own.fileno(), os.CLONE_NEWPID)
    if not os.read(ready_read, 1):
        raise LabError("The lab's first process ended before its namespaces were ready; see supervisor.log.")
    attach(pid)
    os.write(go_write, b"1")
    os.close(go_write)
    os.close(ready_read)
    return pid


def _inside(first: Callable[[], None], ready: int, go: int) -> None:
    """The child's side of `start`."""
    status = 1
    try:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.unshare(os.CLONE_NEWNS | os.CLONE_NEWNET)
        os.write(ready, b"1")
        os.close(ready)
        if os.read(go, 1):
            first()
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def mount_all(folders: Folders) -> None:
    """Inside: put the lab's own folders where its programs look for the machine's."""
    # Slave: the machine's later mounts and unmounts arrive here, and none of ours arrives there. Shared: pods may
    # share theirs.
    _mount(None, "/", None, MS_REC | MS_SLAVE)
    _mount(None, "/", None, MS_REC | MS_SHARED)
    _mount("proc", "/proc", "proc", 0)
    _mount_run()
    _mount("tmpfs", "/var/lib/cni", "tmpfs", 0)
    for source, target in (
        (folders.kubelet, _KUBELET),
        (folders.log / "pods", "/var/log/pods"),
        (folders.log / "containers", "/var/log/containers"),
    ):
        source.mkdir(parents=True, exist_ok=True)
        _mount(str(source), target, None, MS_BIND)
        # A peer group of its own, or each pod's volumes would be mounted a second time below the state folder.
        _mount(None, target, None, MS_PRIVATE)
        _mount(None, target, None, MS_SHARED)
    _cover_kernel_settings(folders.config / "sysctl")


def _mount_run() -> None:
    """A fresh /run with the lab's run folder in it.

    containerd, runc and iptables keep sockets, state and locks at fixed paths there.
    """
    held = os.open(RUN, os.O_PATH)
    _mount("tmpfs", "/run", "tmpfs", 0)
    RUN.mkdir()
    _mount(f"/proc/self/fd/{held}", str(RUN), None, MS_BIND)
    os.close(held)


def _cover_kernel_settings(folder: Path) -> None:
    for name, value in _KERNEL_SETTINGS.items():
        setting = Path("/proc/sys", name)
        if setting.exists() and setting.read_text(encoding="ascii").strip() != str(value):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n", encoding="ascii")
            _mount(str(file), str(setting), None, MS_BIND)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    if _LIBC.mount(*encoded, ctypes.c_ulong(flags), None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source or 'propagation'} on {target}: {os.strerror(error)}")
