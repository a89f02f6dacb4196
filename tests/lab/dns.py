# SPDX-License-Identifier: GPL-3.0-or-later
"""Cluster DNS: CoreDNS as a Deployment of the lab."""

from __future__ import annotations

import hashlib
import socket
import string
import struct
import time
from pathlib import Path

from lab import cluster, network
from lab.errors import LabError
from lab.progress import Progress

_TEMPLATE = Path(__file__).parent / "templates" / "coredns.yaml"
_TIMEOUT_S = 90
_ANSWER_TIMEOUT_S = 15.0
_KNOWN_NAME = "kubernetes.default.svc.cluster.local"
_IN_NAMESPACE = ("--namespace=kube-system",)


def render(image: str, plan: network.Plan) -> str:
    """The manifest (YAML). image: CoreDNS's reference."""
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    # A changed configuration must reach the pods: its hash is part of their template.
    checksum = hashlib.sha256(template.template.encode()).hexdigest()[:12]
    return template.substitute(image=image, address=plan.dns, checksum=checksum)


def ensure(image: str, plan: network.Plan, progress: Progress) -> None:
    """Apply CoreDNS and wait until it answers. Raises LabError."""
    with progress.step("cluster DNS"):
        manifest = render(image, plan)
        apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=lab", "-f", "-"]
        cluster.kubectl(apply, stdin=manifest)
        try:
            cluster.kubectl([*_IN_NAMESPACE, "rollout", "status", "deployment/coredns", f"--timeout={_TIMEOUT_S}s"])
        except LabError as error:
            raise LabError(f"{error}\n{_warnings()}") from error
        _wait_for_answer(plan)


def _wait_for_answer(plan: network.Plan) -> None:
    """Until the Service answers, which a pod's readiness alone does not say: kube-proxy needs a moment more."""
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    while (said := resolve(plan.dns, _KNOWN_NAME)) != plan.first_service:
        if time.monotonic() > deadline:
            raise LabError(
                f"CoreDNS is ready, and {plan.dns} does not resolve {_KNOWN_NAME} to {plan.first_service} "
                f"(last answer: {said}); see kube-proxy.log."
            )
        time.sleep(0.1)


def resolve(server: str, name: str) -> str | None:
    """Ask a name server for an IPv4 address, once, over UDP. None: no such name; or no answer within half a second.

    From the machine, not from a pod: Python's resolver would ask the machine's servers.
    """
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    # One question (type A, class IN), recursion desired: RFC 1035 §4.1.
    query = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        try:
            client.connect((server, 53))
            client.send(query)
            answer = client.recv(512)
        except OSError:
            return None
    answers = int.from_bytes(answer[6:8], "big")
    # The record's data comes last: CoreDNS adds no further sections to a plain question.
    return socket.inet_ntoa(answer[-4:]) if answers else None


def _warnings() -> str:
    """What the cluster says about its system pods."""
    said = cluster.kubectl([*_IN_NAMESPACE, "get", "events", "--field-selector=type=Warning", "--no-headers"])
    return "\n".join(said.stdout.splitlines()[-3:]) or "There are no warning events in kube-system."
