# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about one run of the benchmark, for docs/."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PAGE = """# How long it takes to bring objects to their state

Written by `make bench-apply` on {date}; run it to have the figures of your own cluster.

The same objects (ConfigMaps, Secrets, ServiceAccounts and Roles in turn, about 1 kB each), unchanged and with one of
ten drifted, by the tools in turns. *Median s* is what the task itself takes, over *n* rounds with their fastest and
slowest; */ apply_set* is how many times as long as `apply_set` that is; *command s* is the whole command, with the
start of `ansible-playbook`. `kubectl` is `kubectl apply --server-side` of one file.

```
{table}

{last}
```

![chart](performance-apply.svg)

| | |
|---|---|
| cluster | Kubernetes {cluster}, API server and etcd on the same machine |
| machine | {cpus} cores ({model}); load average {load} at the end (about 2 are the benchmark's own) |
| software | ansible-core {core}, kubernetes.core {collection}, Python {python} |
"""


def page(table: Sequence[str], last: str, cluster: str) -> str:
    """The page as Markdown."""
    return PAGE.format(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        table="\n".join(table),
        last=last,
        cluster=cluster,
        cpus=os.cpu_count(),
        model=_processor(),
        load=f"{os.getloadavg()[1]:.1f}",
        core=metadata.version("ansible-core"),
        collection=_kubernetes_core(),
        python=platform.python_version(),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _kubernetes_core() -> str:
    """The version of the collection that the benchmark compares with."""
    listed = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-galaxy")), "collection", "list", "kubernetes.core"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return next(line.split()[1] for line in listed.splitlines() if line.startswith("kubernetes.core "))
