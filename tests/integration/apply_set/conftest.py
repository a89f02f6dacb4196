# SPDX-License-Identifier: GPL-3.0-or-later
"""apply_set, in playbooks and alone, against a real API server that is looked at with another client."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import secrets
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

ROOT = Path(__file__).parents[3]
Json = dict[str, Any]


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """The cluster that KUBECONFIG names, else the lab's."""
    path = os.environ.get("KUBECONFIG") or str(ROOT / ".lab" / "kubeconfig")
    if not Path(path).exists():
        pytest.fail(f"no cluster: {path} does not exist. Start the lab (make lab-up), or set KUBECONFIG", pytrace=False)
    return path


@pytest.fixture(scope="session")
def configuration(kubeconfig: str) -> client.Configuration:
    found = client.Configuration()
    config.load_kube_config(kubeconfig, client_configuration=found)  # type: ignore[no-untyped-call]
    return found


@pytest.fixture(scope="session")
def api(configuration: client.Configuration) -> DynamicClient:
    """An independent client."""
    return DynamicClient(client.ApiClient(configuration))  # type: ignore[no-untyped-call]


@dataclass
class Cluster:
    """One namespace of the cluster, and what a test wants to know about it."""

    api: DynamicClient
    namespace: str

    def get(self, kind: str, name: str, api_version: str = "v1") -> Any:
        """The live object, or None."""
        try:
            return self.api.resources.get(api_version=api_version, kind=kind).get(name=name, namespace=self.namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def merge(self, kind: str, name: str, patch: Json, manager: str, api_version: str = "v1") -> Any:
        """Change an object as somebody else."""
        resource = self.api.resources.get(api_version=api_version, kind=kind)
        return resource.patch(
            name=name,
            namespace=self.namespace,
            body=patch,
            content_type="application/merge-patch+json",
            field_manager=manager,
        )

    def delete(self, kind: str, name: str, api_version: str = "v1") -> None:
        self.api.resources.get(api_version=api_version, kind=kind).delete(name=name, namespace=self.namespace)

    def token(self, account: str) -> str:
        """A token of a new service account, which has no rights."""
        core = client.CoreV1Api(self.api.client)
        body: Any = {"metadata": {"name": account}}
        core.create_namespaced_service_account(self.namespace, body)
        request: Any = {"spec": {"expirationSeconds": 600}}
        granted: Any = core.create_namespaced_service_account_token(account, self.namespace, request)
        return str(granted.status.token)

    def version(self, kind: str, name: str, api_version: str = "v1") -> str:
        """The resourceVersion: it stays the same as long as nobody writes."""
        return str(self.get(kind, name, api_version).metadata.resourceVersion)


@pytest.fixture
def cluster(api: DynamicClient) -> Iterator[Cluster]:
    """A namespace name of the test's own. The test's set makes the namespace; it is deleted afterwards."""
    name = f"apply-set-{secrets.token_hex(4)}"
    yield Cluster(api, name)
    try:
        api.resources.get(api_version="v1", kind="Namespace").delete(name=name)
    except ApiException as error:
        if error.status != 404:
            raise


@pytest.fixture
def made(cluster: Cluster) -> Cluster:
    """A cluster whose namespace exists already."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}}
    cluster.api.resources.get(api_version="v1", kind="Namespace").create(body=body)
    return cluster


Run = Callable[..., list[Json]]


def _options(task: Json, kubeconfig: str) -> Json:
    """The module's options: defaults of these tests, the task's own on top, None to leave one out."""
    given = {"name": "test", "kubeconfig": kubeconfig, "wait": False, **task}
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture
def module(tmp_path: Path, kubeconfig: str) -> Run:
    """Run the module as the program that it is, once for each task, and give back what it returned."""
    program = ROOT / "plugins" / "modules" / "apply_set.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".cache" / "collections")}

    def run(*tasks: Json, check: bool = False, diff: bool = False) -> list[Json]:
        results = []
        for task in tasks:
            given = {**_options(task, kubeconfig), "_ansible_check_mode": check, "_ansible_diff": diff}
            arguments = tmp_path / "arguments.json"
            arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
            command = [sys.executable, str(program), str(arguments)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            assert done.stdout.strip(), done.stderr
            results.append({"failed": False, **json.loads(done.stdout)})
        return results

    return run


@pytest.fixture
def playbook(tmp_path: Path, kubeconfig: str) -> Run:
    """Run apply_set tasks, one after the other in one playbook, and give back what each returned."""
    numbers = itertools.count()

    def run(*tasks: Json, options: tuple[str, ...] = (), output: list[str] | None = None) -> list[Json]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        steps: list[Json] = []
        for index, task in enumerate(tasks):
            given = _options(task, kubeconfig)
            steps.append({"inferops.cluster.apply_set": given, "register": "result", "ignore_errors": True})
            answer = {"content": "{{ result | to_json }}", "dest": str(folder / f"{index}.json"), "mode": "0600"}
            steps.append({"ansible.builtin.copy": answer, "check_mode": False, "diff": False})
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": steps}
        play["vars"] = {"ansible_python_interpreter": sys.executable}
        (folder / "play.yml").write_text(json.dumps([play]))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", *options, "play.yml"]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(ROOT / ".cache" / "collections")
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110)
        if output is not None:
            output.append(done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads((folder / f"{index}.json").read_text()) for index in range(len(tasks))]

    return run


@dataclass
class Front:
    """A plain HTTP front of the API server that counts requests and can drop connections."""

    configuration: client.Configuration
    drop_every: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> ThreadingHTTPServer:
        parts = urlsplit(self.configuration.host)
        context = ssl.create_default_context(cafile=self.configuration.ssl_ca_cert)
        if self.configuration.cert_file:
            context.load_cert_chain(self.configuration.cert_file, self.configuration.key_file)
        token = self.configuration.get_api_key_with_prefix("authorization", alias="BearerToken")
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if front.refuses(self.command):
                    self.close_connection = True
                    return
                names = ("Content-Type", "Accept")
                headers = {name: self.headers[name] for name in names if self.headers.get(name)}
                if token:
                    headers["Authorization"] = token
                upstream = http.client.HTTPSConnection(str(parts.hostname), parts.port or 443, context=context)
                upstream.request(self.command, self.path, body or None, headers)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = do_DELETE = relay

            def log_message(self, format: str, *args: Any) -> None:
                pass

        running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        return running

    def refuses(self, verb: str) -> bool:
        """Count a request; True when its connection is to be dropped."""
        with self._lock:
            self.counts[verb] += 1
            drop = bool(self.drop_every) and self.counts.total() % self.drop_every == 0
            self.dropped += drop
            return drop


@pytest.fixture
def front(configuration: client.Configuration) -> Iterator[tuple[Front, Json]]:
    """The front, and the module options that lead through it."""
    made = Front(configuration)
    running = made.start()
    url = f"http://127.0.0.1:{running.server_address[1]}"
    yield made, {"kubeconfig": None, "host": url, "api_key": "unused"}
    running.shutdown()
    running.server_close()
