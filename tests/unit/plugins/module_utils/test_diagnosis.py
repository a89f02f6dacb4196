# SPDX-License-Identifier: GPL-3.0-or-later
"""The diagnosis of pods and events that a failed wait shows."""

from __future__ import annotations

from typing import Any

from ansible_collections.inferops.cluster.plugins.module_utils.diagnosis import event_lines, pod_problems, problem_lines


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "m-1"}, "status": status}


def test_an_image_that_cannot_be_pulled() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}}
    lines = pod_problems(pod(containerStatuses=[{"name": "c", "state": waiting}]))
    assert lines == ["pod m-1, container c: ImagePullBackOff: Back-off pulling image x"]


def test_a_crash_tells_the_last_exit_code() -> None:
    container = {
        "name": "c",
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    }
    assert pod_problems(pod(containerStatuses=[container]))[0].endswith("back-off (last exit code 137)")


def test_unscheduled_failed_and_unready_pods() -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    assert pod_problems(pod(conditions=[unscheduled])) == ["pod m-1 is not scheduled: 0/1 nodes are available"]
    ended = {"name": "i", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}
    assert pod_problems(pod(initContainerStatuses=[ended])) == ["pod m-1, container i: ended with exit code 2 (Error)"]
    running = {"name": "c", "state": {"running": {}}, "ready": False}
    assert pod_problems(pod(containerStatuses=[running])) == [
        "pod m-1, container c: runs, but is not ready (readiness probe)"
    ]


def test_a_healthy_or_starting_pod_is_no_problem() -> None:
    starting = {"name": "c", "state": {"waiting": {"reason": "ContainerCreating"}}}
    ready = {"name": "d", "state": {"running": {}}, "ready": True}
    assert pod_problems(pod(containerStatuses=[starting, ready])) == []


def test_pods_with_the_same_problem_are_told_once() -> None:
    def waiting(name: str, reason: str) -> dict[str, Any]:
        state = {"waiting": {"reason": reason, "message": f"back-off of {name}"}}
        return {"metadata": {"name": name}, "status": {"containerStatuses": [{"name": "c", "state": state}]}}

    lines = problem_lines([waiting("m-1", "ErrImagePull"), waiting("m-2", "ErrImagePull"), waiting("m-3", "Crash")])
    assert lines == [
        "pod m-1, container c: ErrImagePull: back-off of m-1 (and 1 more)",
        "pod m-3, container c: Crash: back-off of m-3",
    ]


def test_events_are_the_newest_of_the_object_and_its_parts() -> None:
    def event(name: str, reason: str, time: str) -> dict[str, Any]:
        return {
            "involvedObject": {"kind": "Pod", "name": name},
            "reason": reason,
            "message": "m",
            "lastTimestamp": time,
        }

    events = [event("m-1", "Old", "1"), event("m", "New", "9"), event("other", "Not", "8"), event("m-1", "Mid", "5")]
    events += [event("m-1", "Older", "0"), event("m-1", "New", "7")]
    assert event_lines(events, "m") == ["event New on Pod m: m", "event Mid on Pod m-1: m", "event Old on Pod m-1: m"]
