# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is an object ready? One rule per kind, on the object alone; ``observedGeneration`` must have caught up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

Json = Dict[str, Any]


@dataclass(frozen=True)
class State:
    """``reason`` says what is missing (empty when ready); ``final`` that waiting longer cannot help."""

    ready: bool
    reason: str = ""
    final: bool = False


READY = State(True)


def readiness(item: Json) -> State:
    """The state of a live object. Kinds without a rule are ready unless their status says otherwise."""
    if item["metadata"].get("deletionTimestamp"):
        return State(False, leaving(item))
    group = item["apiVersion"].rpartition("/")[0]
    rule = RULES.get((group, item["kind"]), _by_status)
    return rule(item)


def leaving(item: Json) -> str:
    """For an object that is being deleted: what keeps it."""
    unnamed = "what is in it" if item["kind"] == "Namespace" else "the garbage collector"
    holders = ", ".join(item["metadata"].get("finalizers") or []) or unnamed
    return f"is being deleted (held by {holders})"


def behind(item: Json) -> Optional[State]:
    """The state "controller is behind", or None when the status is about the current generation."""
    seen = (item.get("status") or {}).get("observedGeneration")
    if seen is None or seen < item["metadata"].get("generation", 0):
        return State(False, "its controller has not seen the change yet")
    return None


def _deployment(item: Json) -> State:
    status, wanted = item.get("status") or {}, _replicas(item)
    late = behind(item)
    if late:
        return late
    if item.get("spec", {}).get("paused"):
        return State(False, "its rollout is paused (spec.paused)")
    updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    available = status.get("availableReplicas", 0)
    stuck = _failed_progress(status)
    if updated < wanted:
        return State(False, f"{updated} of {wanted} replicas updated{stuck}")
    if total > updated:
        return State(False, f"{total - updated} old replicas still running{stuck}")
    if available < wanted:
        return State(False, f"{available} of {wanted} replicas available{stuck}")
    return READY


def _failed_progress(status: Json) -> str:
    for condition in status.get("conditions") or []:
        failed = condition.get("type") == "ReplicaFailure" and condition.get("status") == "True"
        stalled = condition.get("type") == "Progressing" and condition.get("status") == "False"
        if failed or stalled:
            return f" ({condition.get('reason')}: {condition.get('message')})"
    return ""


def _stateful_set(item: Json) -> State:
    status, wanted = item.get("status") or {}, _replicas(item)
    late = behind(item)
    if late:
        return late
    strategy = item["spec"].get("updateStrategy") or {}
    if strategy.get("type") != "OnDelete":
        partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
        due = max(0, wanted - partition)
        updated = status.get("updatedReplicas", 0)
        if status.get("currentRevision") != status.get("updateRevision") and updated < due:
            return State(False, f"{updated} of {due} replicas updated")
    ready = status.get("readyReplicas", 0)
    if ready < wanted:
        return State(False, f"{ready} of {wanted} replicas ready")
    return READY


def _daemon_set(item: Json) -> State:
    status = item.get("status") or {}
    late = behind(item)
    if late:
        return late
    wanted = status.get("desiredNumberScheduled", 0)
    rolling = (item["spec"].get("updateStrategy") or {}).get("type") != "OnDelete"
    updated = status.get("updatedNumberScheduled", 0)
    if rolling and updated < wanted:
        return State(False, f"{updated} of {wanted} nodes updated")
    available = status.get("numberAvailable", 0)
    if available < wanted:
        return State(False, f"available on {available} of {wanted} nodes")
    return READY


def _replica_set(item: Json) -> State:
    late = behind(item)
    if late:
        return late
    status, wanted = item.get("status") or {}, _replicas(item)
    ready = status.get("readyReplicas", 0)
    return READY if ready >= wanted else State(False, f"{ready} of {wanted} replicas ready")


def _replicas(item: Json) -> int:
    wanted = item.get("spec", {}).get("replicas")
    return 1 if wanted is None else int(wanted)


def _job(item: Json) -> State:
    for condition in (item.get("status") or {}).get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition.get("type") == "Complete":
            return READY
        if condition.get("type") == "Failed":
            return State(False, f"the job failed: {_told(condition)}", final=True)
    if item.get("spec", {}).get("suspend"):
        return State(False, "the job is suspended (spec.suspend)", final=True)
    status = item.get("status") or {}
    return State(False, f"{status.get('succeeded', 0)} of {item['spec'].get('completions') or 1} completions")


def _pod(item: Json) -> State:
    status = item.get("status") or {}
    if status.get("phase") == "Succeeded":
        return READY
    if status.get("phase") == "Failed":
        return State(False, f"the pod failed: {status.get('reason') or status.get('message') or 'see its logs'}", True)
    return _conditions(item, status.get("conditions") or [], ["Ready"])


def _claim(item: Json) -> State:
    phase = (item.get("status") or {}).get("phase")
    if phase == "Bound":
        return READY
    return State(False, f"the claim is {phase or 'not seen yet'}", final=phase == "Lost")


def _service(item: Json) -> State:
    if item.get("spec", {}).get("type") != "LoadBalancer":
        return READY
    if ((item.get("status") or {}).get("loadBalancer") or {}).get("ingress"):
        return READY
    return State(False, "no load balancer has given it an address; a cluster without one needs type ClusterIP")


def _namespace(item: Json) -> State:
    phase = (item.get("status") or {}).get("phase")
    return READY if phase == "Active" else State(False, f"the namespace is {phase or 'not active yet'}")


def _needs(*types: str) -> Callable[[Json], State]:
    """A rule: all these conditions are True."""
    return lambda item: _conditions(item, (item.get("status") or {}).get("conditions") or [], list(types))


def _route(item: Json) -> State:
    """Gateway API routes: every parent that the spec names has accepted the route and found its backends."""
    parents = (item.get("status") or {}).get("parents") or []
    wanted = item.get("spec", {}).get("parentRefs") or []
    answered = [entry.get("parentRef") or {} for entry in parents]
    missing = [ref.get("name") for ref in wanted if not any(_same_parent(ref, parent) for parent in answered)]
    if missing:
        return State(False, f"no controller has answered for its parent {missing[0]}")
    return _each(item, parents, ["Accepted", "ResolvedRefs"])


def _same_parent(wanted: Json, answered: Json) -> bool:
    return all(answered.get(part) == wanted[part] for part in ("name", "sectionName", "port") if wanted.get(part))


def _policy(item: Json) -> State:
    """Gateway API policies (GEP-713): accepted for every ancestor they reach."""
    ancestors = (item.get("status") or {}).get("ancestors") or []
    if not ancestors:
        return State(False, "no controller has answered for it")
    return _each(item, ancestors, ["Accepted"])


def _each(item: Json, entries: Iterable[Json], types: List[str]) -> State:
    for entry in entries:
        state = _conditions(item, entry.get("conditions") or [], types)
        if not state.ready:
            return state
    return READY


def _by_status(item: Json) -> State:
    """Unknown kinds: their observedGeneration and the first of the customary conditions, if they have any."""
    status = item.get("status")
    if not isinstance(status, dict):
        return READY
    if "observedGeneration" in status:
        late = behind(item)
        if late:
            return late
    conditions = status.get("conditions")
    if not isinstance(conditions, list):
        return READY
    present = {condition.get("type") for condition in conditions if isinstance(condition, dict)}
    for name in ("Ready", "Available", "Programmed", "Accepted"):
        if name in present:
            return _conditions(item, conditions, [name])
    return READY


def _conditions(item: Json, conditions: List[Json], types: List[str]) -> State:
    """All conditions of ``types`` are True and about the current generation; else the first that is not, and why."""
    for name in types:
        state = condition_state(item, conditions, name)
        if not state.ready:
            return state
    return READY


def condition_state(item: Json, conditions: Iterable[Json], name: str, status: str = "True", reason: str = "") -> State:
    """Ready when the condition ``name`` has this status, and reason if one is given, for the current generation."""
    condition = next((entry for entry in conditions if isinstance(entry, dict) and entry.get("type") == name), None)
    if condition is None:
        return State(False, f"its controller has not set the condition {name} yet")
    generation = item["metadata"].get("generation", 0)
    if condition.get("observedGeneration", generation) < generation:
        return State(False, f"its condition {name} is about an older generation")
    if condition.get("status") != status or (reason and condition.get("reason") != reason):
        return State(False, f"{name} is {condition.get('status')}: {_told(condition)}")
    return READY


def _told(condition: Json) -> str:
    parts = [str(condition[name]) for name in ("reason", "message") if condition.get(name)]
    return ": ".join(parts) or "no reason given"


def _always(_item: Json) -> State:
    return READY


GATEWAY, ENVOY = "gateway.networking.k8s.io", "gateway.envoyproxy.io"

RULES: Dict[Tuple[str, str], Callable[[Json], State]] = {
    ("", "Namespace"): _namespace,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "Pod"): _pod,
    ("", "Service"): _service,
    ("apps", "DaemonSet"): _daemon_set,
    ("apps", "Deployment"): _deployment,
    ("apps", "ReplicaSet"): _replica_set,
    ("apps", "StatefulSet"): _stateful_set,
    ("autoscaling", "HorizontalPodAutoscaler"): _always,  # its conditions speak of load, not of readiness
    ("batch", "Job"): _job,
    ("policy", "PodDisruptionBudget"): _always,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _needs("Established"),
    ("apiregistration.k8s.io", "APIService"): _needs("Available"),
    (GATEWAY, "GatewayClass"): _needs("Accepted"),
    (GATEWAY, "Gateway"): _needs("Accepted", "Programmed"),
    (GATEWAY, "BackendTLSPolicy"): _policy,
    **{(GATEWAY, f"{name}Route"): _route for name in ("HTTP", "GRPC", "TCP", "TLS", "UDP")},
    **{
        (ENVOY, name): _policy
        for name in (
            "BackendTrafficPolicy",
            "ClientTrafficPolicy",
            "EnvoyExtensionPolicy",
            "EnvoyPatchPolicy",
            "SecurityPolicy",
        )
    },
    (ENVOY, "Backend"): _needs("Accepted"),
    ("serving.kserve.io", "InferenceService"): _needs("Ready"),
    ("serving.kserve.io", "LLMInferenceService"): _needs("Ready"),
}
