# SPDX-License-Identifier: GPL-3.0-or-later
"""The same objects, brought to the same state by four tools; each run is checked for having done so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible_collections.inferops.cluster.plugins.module_utils.client import Client

ROOT = Path(__file__).parents[2]
COLLECTIONS = ROOT / ".cache" / "collections"
Json = dict[str, Any]
PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
}
DRIFT_EVERY = 10  # one of so many objects is changed by somebody else


def connect(kubeconfig: str) -> Client:
    """The collection's own client, for what is not measured."""
    sys.path.insert(0, str(COLLECTIONS))
    from ansible_collections.inferops.cluster.plugins.module_utils import access, client

    return client.Client(access.resolve({"kubeconfig": kubeconfig}))


def objects(count: int, namespace: str) -> list[Json]:
    """As many objects of four kinds in turn, about 1 kB each."""
    return [_object(number, namespace) for number in range(count)]


def _object(number: int, namespace: str) -> Json:
    kind = list(PATHS)[number % len(PATHS)]
    labels = {"app.kubernetes.io/name": "bench", "app.kubernetes.io/instance": f"o-{number}"}
    item: Json = {"apiVersion": "v1", "kind": kind}
    item["metadata"] = {"name": f"o-{number}", "namespace": namespace, "labels": labels}
    if kind == "ConfigMap":
        item["data"] = {"number": str(number), "text": "lorem ipsum " * 60}
    elif kind == "Secret":
        item["data"] = {"text": "bG9yZW0gaXBzdW0g" * 50}
    elif kind == "ServiceAccount":
        item["automountServiceAccountToken"] = False
    else:
        item["apiVersion"] = "rbac.authorization.k8s.io/v1"
        item["rules"] = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    return item


def path(item: Json) -> str:
    """The URL path of an object of the benchmark."""
    metadata = item["metadata"]
    return f"{PATHS[item['kind']].format(metadata['namespace'])}/{metadata['name']}"


def drift(client: Client, items: list[Json]) -> int:
    """Somebody else changes one of ten objects: a label gets another value. Returns how many."""
    chosen = items[::DRIFT_EVERY]
    patch = {"metadata": {"labels": {"app.kubernetes.io/name": f"drifted-{time.time_ns()}"}}}

    def change(item: Json) -> None:
        query = {"fieldManager": "somebody"}
        client.request("PATCH", path(item), query, patch, "application/merge-patch+json")

    client.map(change, chosen)
    return len(chosen)


@dataclass
class Outcome:
    """``seconds`` of the tool's own work; ``whole`` of the command, with the start of ansible-playbook."""

    seconds: float
    whole: float
    changed: bool


@dataclass(frozen=True)
class Tool:
    """One way to bring objects to their state.

    ``manager`` is the field manager it writes as; ``slow`` are numbers of objects that take it minutes, measured once.
    """

    name: str
    manager: str
    run: Callable[[str, Path, list[Json]], Outcome]
    largest: int = sys.maxsize  # objects; more take too long
    states: tuple[str, ...] = ("unchanged", "drifted")
    slow: tuple[int, ...] = ()


def _playbook(kubeconfig: str, folder: Path, tasks: list[Json]) -> Outcome:
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    play["vars"] = {"ansible_python_interpreter": sys.executable}
    book, seconds = folder / "play.yml", folder / "seconds.json"
    book.write_text(json.dumps([play]))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "task_seconds",
        "K8S_AUTH_KUBECONFIG": kubeconfig,
        "TASK_SECONDS": str(seconds),
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(book)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    whole = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"ansible-playbook failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    results = json.loads(seconds.read_text())
    return Outcome(sum(task["seconds"] for task in results), whole, any(task["changed"] for task in results))


def _apply_set(kubeconfig: str, folder: Path, items: list[Json]) -> Outcome:
    given = {"name": "bench", "objects": items, "force": True, "wait": False}
    return _playbook(kubeconfig, folder, [{"inferops.cluster.apply_set": given}])


def _k8s_list(kubeconfig: str, folder: Path, items: list[Json]) -> Outcome:
    return _playbook(kubeconfig, folder, [{"kubernetes.core.k8s": {"definition": items}}])


def _k8s_tasks(kubeconfig: str, folder: Path, items: list[Json]) -> Outcome:
    return _playbook(kubeconfig, folder, [{"kubernetes.core.k8s": {"definition": item}} for item in items])


def kubectl_tool(program: str) -> Tool:
    """``kubectl apply --server-side`` of one file, forced like the others."""

    def run(kubeconfig: str, folder: Path, items: list[Json]) -> Outcome:
        source = folder / "objects.json"
        source.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        command = [
            program,
            "--kubeconfig",
            kubeconfig,
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            str(source),
        ]
        versions = _versions(program, kubeconfig, items)
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"kubectl failed:\n{done.stderr[-3000:]}")
        # kubectl says "serverside-applied" whether something changed or not.
        return Outcome(seconds, seconds, _versions(program, kubeconfig, items) != versions)

    return Tool("kubectl", "kubectl", run)


def _versions(program: str, kubeconfig: str, items: list[Json]) -> list[str]:
    namespace = items[0]["metadata"]["namespace"]
    shown = "custom-columns=v:.metadata.resourceVersion"
    command = [program, "--kubeconfig", kubeconfig, "-n", namespace, "get", "cm,secret,sa,role", "-o", shown]
    return sorted(re.findall(r"\d+", subprocess.run(command, capture_output=True, text=True, check=True).stdout))


# The quickest first: what the time does not suffice for is left out.
APPLY_SET = Tool("apply_set", "inferops.cluster", _apply_set)
K8S_LIST = Tool("k8s, a list", "kubernetes-core", _k8s_list)
K8S_TASKS = Tool("k8s, a task per object", "kubernetes-core", _k8s_tasks, largest=200, slow=(200,))
