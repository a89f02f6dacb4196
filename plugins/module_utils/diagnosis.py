# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why an object is not ready: what its pods wait for, and the last warnings about it and them."""

from __future__ import annotations

from typing import Any, Dict, List

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, UnreachableError

Json = Dict[str, Any]

PODS_SHOWN, EVENTS_SHOWN = 3, 3


def diagnosis(client: Client, item: Json) -> List[str]:
    """What the pods of a workload wait for, and the last warnings about it and them. Best effort: never raises."""
    namespace = item["metadata"].get("namespace")
    if not namespace:
        return []
    try:
        pods = _pods(client, item, namespace)
        warnings = client.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector="type=Warning", limit="500")
    except (ApiError, UnreachableError) as error:
        return [f"(its pods and events cannot be read: {error})"]
    return problem_lines(pods) + event_lines(warnings.get("items") or [], item["metadata"]["name"])


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
