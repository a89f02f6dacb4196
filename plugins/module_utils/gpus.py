# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of a cluster, as nodes and pods tell of them: what there is, how it is cut and shared, and who has it.

Device plugins publish GPUs as extended resources of nodes, in whole numbers; GPU Feature Discovery, the GPU operator
and the MIG manager say more in labels. Nothing here asks a GPU itself.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

Json = Dict[str, Any]
Amounts = Dict[str, int]

VENDOR = "nvidia.com/"
MIG = f"{VENDOR}mig-"
SHARED = ".shared"  # added to a resource's name by the device plugin's renameByDefault
LABELS = ("nvidia.com/*", "amd.com/*", "gpu.intel.com/*", "habana.ai/*", "feature.node.kubernetes.io/pci-10de.*")
STRATEGIES = {"none": "none", "time-slicing": "time_slicing", "mps": "mps"}


class Inventory:
    """What nodes and pods say, put together. ``resources`` are globs of the names of extended resources."""

    def __init__(self, nodes: Sequence[Json], pods: Sequence[Json], resources: Sequence[str]) -> None:
        self._resources = resources
        users = [(pod, found) for pod in pods for found in [self._pick(requests(pod))] if found]
        placed: Dict[str, List[Json]] = {}
        waiting = []
        for pod, found in users:
            node = (pod.get("spec") or {}).get("nodeName")
            if node:
                placed.setdefault(node, []).append(_user(pod, found))
            else:
                waiting.append({**_user(pod, found), "reason": _why_waiting(pod)})
        self.nodes = [
            self._node(node, placed.get(node["metadata"]["name"], [])) for node in nodes if self.is_gpu_node(node)
        ]
        self.pending = waiting

    def is_gpu_node(self, node: Json) -> bool:
        """Does it offer such a resource, or do its labels say that it has GPUs (whose plugin may not run yet)?"""
        labels = node["metadata"].get("labels") or {}
        return bool(self._pick(_amounts(node, "capacity"))) or labels.get(f"{VENDOR}gpu.present") == "true"

    @property
    def totals(self) -> Dict[str, Amounts]:
        """For each resource, the sums over all nodes."""
        found: Dict[str, Amounts] = {}
        for node in self.nodes:
            for what in ("capacity", "allocatable", "requested", "free"):
                for name, amount in node[what].items():
                    sums = found.setdefault(name, {"capacity": 0, "allocatable": 0, "requested": 0, "free": 0})
                    sums[what] += amount
        return found

    def _node(self, node: Json, users: List[Json]) -> Json:
        metadata, labels = node["metadata"], node["metadata"].get("labels") or {}
        allocatable = self._pick(_amounts(node, "allocatable"))
        requested = _sum(user["requests"] for user in users)
        return {
            "name": metadata["name"],
            "ready": _is_ready(node),
            "schedulable": not (node.get("spec") or {}).get("unschedulable", False),
            "taints": (node.get("spec") or {}).get("taints") or [],
            "capacity": self._pick(_amounts(node, "capacity")),
            "allocatable": allocatable,
            "requested": requested,
            "free": {name: amount - requested.get(name, 0) for name, amount in allocatable.items()},
            "gpu": _hardware(labels),
            "driver": _driver(labels),
            "sharing": _sharing(labels, allocatable),
            "mig": _mig(labels, allocatable),
            "labels": {name: labels[name] for name in sorted(labels) if any(fnmatchcase(name, one) for one in LABELS)},
            "pods": users,
        }

    def _pick(self, amounts: Mapping[str, int]) -> Amounts:
        return {
            name: amount
            for name, amount in sorted(amounts.items())
            if any(fnmatchcase(name, glob) for glob in self._resources)
        }


def requests(pod: Json) -> Amounts:
    """What the scheduler counts for a pod: its containers and sidecars together, or an init container if that is more.

    Extended resources only: their requests are whole numbers, and equal to their limits.
    """
    spec = pod.get("spec") or {}
    together = _sum(_asked(container) for container in spec.get("containers") or [])
    sidecars: Amounts = {}
    most: Amounts = {}
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            sidecars = _sum([sidecars, _asked(container)])
            continue
        for name, amount in _sum([sidecars, _asked(container)]).items():
            most[name] = max(most.get(name, 0), amount)
    running = _sum([together, sidecars])
    return {name: max(running.get(name, 0), most.get(name, 0)) for name in {**running, **most}}


def _asked(container: Json) -> Amounts:
    resources = container.get("resources") or {}
    return _whole({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _amounts(node: Json, what: str) -> Amounts:
    return _whole((node.get("status") or {}).get(what) or {})


def _whole(quantities: Mapping[str, Any]) -> Amounts:
    """The extended resources among these, which have a domain in their names and are counted in whole numbers."""
    return {name: int(value) for name, value in quantities.items() if "/" in name and str(value).isdecimal()}


def _sum(parts: Iterable[Mapping[str, int]]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return total


def _user(pod: Json, found: Amounts) -> Json:
    metadata = pod["metadata"]
    owners = metadata.get("ownerReferences") or []
    owner = next((one for one in owners if one.get("controller")), None)
    return {
        "namespace": metadata.get("namespace"),
        "name": metadata["name"],
        "phase": (pod.get("status") or {}).get("phase"),
        "owner": f"{owner['kind']} {owner['name']}" if owner else "",
        "requests": found,
    }


def _why_waiting(pod: Json) -> str:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    return "the scheduler has not looked at it yet"


def _is_ready(node: Json) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _number(labels: Mapping[str, str], name: str) -> Optional[int]:
    value = labels.get(f"{VENDOR}{name}", "")
    return int(value) if value.isdecimal() else None


def _hardware(labels: Mapping[str, str]) -> Json:
    """What GPU Feature Discovery says about the GPUs; null where it says nothing."""
    major, minor = labels.get(f"{VENDOR}gpu.compute.major"), labels.get(f"{VENDOR}gpu.compute.minor")
    return {
        "product": labels.get(f"{VENDOR}gpu.product"),
        "count": _number(labels, "gpu.count"),
        "memory_mib": _number(labels, "gpu.memory"),
        "family": labels.get(f"{VENDOR}gpu.family"),
        "compute_capability": f"{major}.{minor}" if major and minor else None,
    }


def _driver(labels: Mapping[str, str]) -> Json:
    """Versions; newer feature discoveries write them whole, older ones in parts."""
    driver = labels.get(f"{VENDOR}cuda.driver-version.full") or _joined(
        labels, "cuda.driver", ("major", "minor", "rev")
    )
    cuda = labels.get(f"{VENDOR}cuda.runtime-version.full") or _joined(labels, "cuda.runtime", ("major", "minor"))
    return {"version": driver, "cuda_version": cuda}


def _joined(labels: Mapping[str, str], name: str, parts: Sequence[str]) -> Optional[str]:
    found = [labels.get(f"{VENDOR}{name}.{part}", "") for part in parts]
    return ".".join(part for part in found if part) or None


def _sharing(labels: Mapping[str, str], allocatable: Mapping[str, int]) -> Json:
    """How many pods get one GPU, and how. ``strategy`` is null when nothing on the node tells."""
    strategy = STRATEGIES.get(labels.get(f"{VENDOR}gpu.sharing-strategy", ""))
    replicas = _number(labels, "gpu.replicas")
    count = _number(labels, "gpu.count")
    plain = sum(allocatable.get(f"{VENDOR}{name}", 0) for name in ("gpu", f"gpu{SHARED}"))
    if replicas is None and count:
        replicas = max(1, plain // count)
    renamed = sorted(name for name in allocatable if name.endswith(SHARED))
    return {"strategy": strategy, "replicas": replicas, "shared_resources": renamed}


def _mig(labels: Mapping[str, str], allocatable: Mapping[str, int]) -> Json:
    """Slices: the layout that is asked for, whether it is there, and what the node offers of it."""
    profiles = {name[len(MIG) :]: amount for name, amount in allocatable.items() if name.startswith(MIG)}
    product = labels.get(f"{VENDOR}gpu.product", "")
    if "-MIG-" in product and not profiles:  # strategy single: slices go by the name of whole GPUs
        profiles = {product.rpartition("-MIG-")[2]: allocatable.get(f"{VENDOR}gpu", 0)}
    return {
        "capable": labels.get(f"{VENDOR}mig.capable") == "true",
        "strategy": labels.get(f"{VENDOR}mig.strategy"),
        "config": labels.get(f"{VENDOR}mig.config"),
        "state": labels.get(f"{VENDOR}mig.config.state"),
        "profiles": profiles,
    }
