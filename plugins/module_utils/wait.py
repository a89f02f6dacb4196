# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for many objects at once under one deadline, and say why when some do not become ready."""

from __future__ import annotations

import time
from typing import Any, Dict, List

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, NotReadyError, UnreachableError
from ansible_collections.inferops.cluster.plugins.module_utils.members import Member
from ansible_collections.inferops.cluster.plugins.module_utils.readiness import READY, State, readiness

Json = Dict[str, Any]

FIRST_POLL, LAST_POLL = 0.3, 1.0  # seconds between looks at what is not ready
DIAGNOSED = 8  # objects whose pods and events are looked up for the failure message
PODS_SHOWN, EVENTS_SHOWN = 3, 3


def wait_ready(client: Client, members: List[Member], timeout: float) -> None:
    """Return when every member is ready. Raises NotReadyError with the reasons after ``timeout`` seconds, or as soon
    as a member cannot become ready any more (a failed Job)."""
    started = time.monotonic()
    for member in members:
        member.state = _state(client, member.after or {})
    interval = FIRST_POLL
    while True:
        unmet = [member for member in members if member.state is not None and not member.state.ready]
        if not unmet:
            return
        waited = time.monotonic() - started
        if waited >= timeout or any(member.state and member.state.final for member in unmet):
            raise NotReadyError(_failure(client, unmet, len(members), waited))
        time.sleep(min(interval, max(0.05, timeout - waited)))
        interval = min(LAST_POLL, interval * 1.2)
        client.map(lambda member: _look(client, member), unmet)


def _look(client: Client, member: Member) -> None:
    try:
        current = client.find(member.path)
    except (ApiError, UnreachableError) as error:
        member.state = State(False, f"cannot be read: {error}")
        return
    if current is None:
        member.state = State(False, "was deleted by somebody else while it was waited for", final=True)
        return
    member.after = current
    member.state = _state(client, current)


def _state(client: Client, item: Json) -> State:
    state = readiness(item)
    if not state.ready and item["kind"] == "PersistentVolumeClaim" and _binds_late(client, item):
        return READY
    return state


def _binds_late(client: Client, claim: Json) -> bool:
    """A claim of such a storage class is bound only when a pod uses it."""
    name = claim.get("spec", {}).get("storageClassName")
    if not name or (claim.get("status") or {}).get("phase") != "Pending":
        return False
    try:
        storage_class = client.find(f"/apis/storage.k8s.io/v1/storageclasses/{name}")
    except ApiError:
        return False
    return storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"


def _failure(client: Client, unmet: List[Member], total: int, waited: float) -> str:
    lines = [f"{len(unmet)} of {total} objects were not ready after {waited:.0f} s:"]
    for index, member in enumerate(unmet):
        lines.append(f"{member.title}: {member.state.reason if member.state else ''}")
        if index < DIAGNOSED:
            lines.extend(f"  {line}" for line in _diagnosis(client, member))
    return "\n".join(lines)


def _diagnosis(client: Client, member: Member) -> List[str]:
    """What the pods of a workload wait for, and the last warnings about it and them. Best effort: never raises."""
    namespace = member.namespace
    if not namespace or not member.after:
        return []
    try:
        pods = _pods(client, member.after, namespace)
        warnings = client.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector="type=Warning", limit="500")
    except (ApiError, UnreachableError) as error:
        return [f"(its pods and events cannot be read: {error})"]
    return problem_lines(pods) + event_lines(warnings.get("items") or [], member.wanted["metadata"]["name"])


def _pods(client: Client, item: Json, namespace: str) -> List[Json]:
    selector = (item.get("spec") or {}).get("selector")
    if item["kind"] == "Pod":
        return [item]
    labels = selector.get("matchLabels") if isinstance(selector, dict) else None
    if not labels or "template" not in item["spec"]:
        return []
    wanted = ",".join(f"{name}={value}" for name, value in labels.items())
    listing = client.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=wanted, limit="100")
    return listing.get("items") or []


def problem_lines(pods: List[Json]) -> List[str]:
    """The problems of these pods, each kind of problem once with the number of pods that share it."""
    seen: Dict[str, List[str]] = {}
    for pod in pods:
        for line in pod_problems(pod):
            # The server repeats the pod's name in some messages.
            seen.setdefault(line.replace(pod["metadata"]["name"], ""), []).append(line)
    return [
        alike[0] + (f" (and {len(alike) - 1} more)" if len(alike) > 1 else "")
        for alike in list(seen.values())[:PODS_SHOWN]
    ]


def pod_problems(pod: Json) -> List[str]:
    """Why a pod is not ready: unscheduled, or a container that waits, crashed or fails its probe."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    lines = []
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            lines.append(f"pod {name} is not scheduled: {condition.get('message') or condition.get('reason')}")
    for container in (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or []):
        state = container.get("state") or {}
        waiting = state.get("waiting")
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
        label = f"pod {name}, container {container.get('name')}"
        if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing"):
            text = f"{label}: {waiting.get('reason')}: {waiting.get('message') or ''}".rstrip(": ")
            lines.append(text + (f" (last exit code {ended.get('exitCode')})" if ended else ""))
        elif ended and ended.get("exitCode"):
            lines.append(f"{label}: ended with exit code {ended['exitCode']} ({ended.get('reason')})")
        elif "running" in state and not container.get("ready", True):
            lines.append(f"{label}: runs, but is not ready (readiness probe)")
    return lines


def event_lines(events: List[Json], name: str) -> List[str]:
    """The last warning of each reason about ``name`` and what its controller named after it, newest first."""
    about = [
        event
        for event in events
        if (event.get("involvedObject") or {}).get("name") == name
        or str((event.get("involvedObject") or {}).get("name", "")).startswith(f"{name}-")
    ]
    about.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", reverse=True)
    lines: Dict[str, str] = {}
    for event in about:
        source = event["involvedObject"]
        about_whom = f"{source.get('kind')} {source.get('name')}"
        text = f"event {event.get('reason')} on {about_whom}: {event.get('message')}"
        lines.setdefault(str(event.get("reason")), text)
    return list(lines.values())[:EVENTS_SHOWN]
