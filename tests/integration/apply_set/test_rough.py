# SPDX-License-Identifier: GPL-3.0-or-later
"""Many objects, many writers, and a network that breaks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ansible_collections.inferops.cluster.plugins.module_utils.access import resolve
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.collateral import content
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ClusterError
from ansible_collections.inferops.cluster.plugins.module_utils.task import Task

from .conftest import ROOT, Cluster, Json, Run
from .objects import actions, condition, config_map, crd, custom, later

pytestmark = pytest.mark.cluster

WRITERS = 30
MANY = 2000
MEMORY = 300 * 2**20  # bytes that the module's process may take for so many objects


def measured(arguments: Path) -> tuple[Json, int]:
    """Run apply_set as a process of its own: what it returned, and the most memory it took, in bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".cache" / "collections")}
    program = str(ROOT / "plugins" / "modules" / "apply_set.py")
    with subprocess.Popen(
        [sys.executable, program, str(arguments)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        answer = process.stdout.read()
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return json.loads(answer), usage.ru_maxrss * 1024


def test_two_thousand_objects(made: Cluster, kubeconfig: str, tmp_path: Path) -> None:
    items = [config_map(f"cm-{number}", a=str(number), text="x" * 500) for number in range(MANY)]
    task = {"name": "many", "kubeconfig": kubeconfig, "namespace": made.namespace, "prune": True}

    def run(objects: list[Json]) -> Json:
        path = tmp_path / "arguments.json"
        path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {**task, "objects": objects}}))
        result, memory = measured(path)
        assert "msg" not in result, result["msg"]
        assert memory < MEMORY
        return result

    assert set(actions(run(items))) == {"created"}
    assert not run(items)["changed"]
    drifted = [config_map(f"cm-{number}", a="other") for number in range(10)]
    fewer = run([*drifted, *items[10 : MANY // 2]])
    found = actions(fewer)
    assert [found.count(action) for action in ("updated", "unchanged", "deleted")] == [10, MANY // 2 - 9, MANY // 2]
    assert made.get("ConfigMap", f"cm-{MANY - 1}") is None


def perform(kubeconfig: str, **params: Any) -> tuple[Task, str]:
    """One run of apply_set in this process: its task, and the failure, if any."""
    given: Json = {
        "kubeconfig": kubeconfig,
        "name": "writers",
        "src": None,
        "templates": None,
        "exclude": [],
        "patches": [],
        "foreseen": [],
    }
    given.update(
        state="present", prune=False, shared=[], force=False, repair=False, wait=False, wait_for=[], wait_timeout=60
    )
    given.update(field_manager="inferops.cluster")
    given.update(params)
    client = Client(resolve(given))
    task = Task(given, check_mode=False)
    try:
        task.run(client)
    except ClusterError as error:
        return task, str(error)
    finally:
        client.close()
    return task, ""


def test_a_definition_goes_while_a_namespace_is_looked_into(made: Cluster, kubeconfig: str) -> None:
    """What the server named among its kinds may be gone when its objects are asked for: then it has none."""
    group = f"{made.namespace}.example"
    gone, kept = crd("Gone", group), crd("Kept", group)
    perform(kubeconfig, namespace=made.namespace, objects=[gone, kept], wait=True)
    perform(kubeconfig, namespace=made.namespace, objects=[custom(kind, group, "a", 1) for kind in ("Gone", "Kept")])
    client = Client(resolve({"kubeconfig": kubeconfig}))
    try:
        discovery = Discovery(client)

        def inside() -> set[str]:
            return {item["kind"] for item in content(client, discovery, made.namespace)} & {"Gone", "Kept"}

        assert inside() == {"Gone", "Kept"}
        perform(kubeconfig, namespace=made.namespace, objects=[gone], state="absent", wait=True)
        assert inside() == {"Kept"}
    finally:
        client.close()


@pytest.mark.parametrize("force", [False, True])
def test_thirty_writers_want_the_same_field(made: Cluster, kubeconfig: str, force: bool) -> None:
    """Without force the first one wins, and all others are told whose the field is; with force the last one does."""

    def write(number: int) -> str:
        wanted = [config_map("shared", owner=str(number))]
        given = {"namespace": made.namespace, "objects": wanted, "field_manager": f"writer-{number}", "force": force}
        return perform(kubeconfig, **given)[1]

    with ThreadPoolExecutor(WRITERS) as pool:
        failures = list(pool.map(write, range(WRITERS)))
    live = made.get("ConfigMap", "shared")
    winner = int(live.data.owner)
    owners = [entry.manager for entry in live.metadata.managedFields if "f:owner" in str(entry.fieldsV1)]
    assert owners == [f"writer-{winner}"]
    losers = [failure for failure in failures if failure]
    assert not failures[winner]
    assert len(losers) == (0 if force else WRITERS - 1)
    assert all(f"other field managers hold .data.owner (managed by writer-{winner})" in failure for failure in losers)


def test_thirty_writers_of_other_fields_of_the_same_objects(made: Cluster, kubeconfig: str) -> None:
    """Nobody's write is lost, whoever comes in between."""
    names = [f"cm-{number}" for number in range(3)]
    perform(kubeconfig, namespace=made.namespace, objects=[config_map(name, round="none") for name in names])
    over = threading.Event()

    def write(number: int) -> int:
        count = 0
        while not over.is_set() or count == 0:
            count += 1
            for name in names:
                made.merge("ConfigMap", name, {"data": {f"w{number}": str(count)}}, f"writer-{number}")
        return count

    with ThreadPoolExecutor(WRITERS) as pool:
        counts = [pool.submit(write, number) for number in range(WRITERS)]
        rounds = []
        try:
            for number in range(8):
                wanted = [config_map(name, round=str(number)) for name in names]
                rounds.append(perform(kubeconfig, namespace=made.namespace, objects=wanted))
        finally:
            over.set()
    assert [failure for _task, failure in rounds] == [""] * 8
    assert [member.action for task, _failure in rounds for member in task.members] == ["updated"] * 24
    expected = {"round": "7", **{f"w{number}": str(count.result()) for number, count in enumerate(counts)}}
    for name in names:
        assert made.get("ConfigMap", name).data.to_dict() == expected


@dataclass
class Proxy:
    """A TCP proxy before the API server that ends every third connection in the midst of an answer."""

    host: str
    port: int
    accepted: int = 0
    dropped: int = 0
    listener: socket.socket = field(init=False)

    def start(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _address = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            # Far enough for the TLS handshake and a part of an answer.
            limit = 4000 if self.accepted % 3 == 0 else None
            far = socket.create_connection((self.host, self.port))
            threading.Thread(target=self._pump, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, limit), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                if limit is not None and passed > limit:
                    self.dropped += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # closing would wait for the thread of the other direction


@pytest.fixture
def proxy(kubeconfig: str, tmp_path: Path) -> Iterator[tuple[Proxy, str]]:
    """The proxy, and a kubeconfig that leads through it."""
    described = yaml.safe_load(Path(kubeconfig).read_text())
    cluster = described["clusters"][0]["cluster"]
    address = urlsplit(cluster["server"])
    made = Proxy(str(address.hostname), address.port or 443)
    made.start()
    cluster["server"] = f"https://127.0.0.1:{made.listener.getsockname()[1]}"
    cluster["tls-server-name"] = address.hostname
    if "certificate-authority" in cluster:
        cluster["certificate-authority"] = str(Path(kubeconfig).parent / cluster["certificate-authority"])
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(described))
    yield made, str(path)
    made.listener.close()


def test_every_third_connection_is_dropped(made: Cluster, module: Run, things: str, proxy: tuple[Proxy, str]) -> None:
    """Writes, reads, watches and deletions all come through, each once."""
    shaky, path = proxy
    items = [config_map(f"cm-{number}", a="x" * 400) for number in range(60)]
    items.append(custom("Thing", things, "a", 1))
    rules = [{"kind": "Thing", "conditions": [{"type": "Ready"}]}]
    task = {"kubeconfig": path, "namespace": made.namespace, "prune": True, "wait": True, "wait_timeout": 60}
    ready = {"conditions": [condition("Ready")]}
    with later(3.0, lambda: made.status("Thing", "a", f"{things}/v1", ready)):
        created = module({**task, "objects": items, "wait_for": rules, "force": True})[0]
    assert not created["failed"], created["msg"]
    assert actions(created).count("created") == 61  # all but the Thing, which was there
    again, fewer = module({**task, "objects": items}, {**task, "objects": items[30:]})
    assert not again["failed"], again["msg"]
    assert not again["changed"]
    assert not fewer["failed"], fewer["msg"]
    assert actions(fewer).count("deleted") == 30
    assert shaky.dropped >= 4
    assert made.get("ConfigMap", "cm-29") is None
    assert made.get("ConfigMap", "cm-59").data.a == "x" * 400
