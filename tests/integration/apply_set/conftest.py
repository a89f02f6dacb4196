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

from .objects import actions, custom, status_crd

ROOT = Path(__file__).parents[3]
Json = dict[str, Any]


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

    def status(self, kind: str, name: str, api_version: str, status: Json) -> Any:
        """Write the status of an object, as its controller would."""
        resource = self.api.resources.get(api_version=api_version, kind=kind)
        current = resource.get(name=name, namespace=self.namespace).to_dict()
        return resource.status.replace(name=name, namespace=self.namespace, body={**current, "status": status})

    def login(self, account: str, rules: list[Json]) -> Json:
        """Module options of a new service account that has these rights in the namespace."""
        token = self.token(account)
        rbac = client.RbacAuthorizationV1Api(self.api.client)
        role: Any = {"metadata": {"name": account}, "rules": rules}
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.namespace}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
        binding: Any = {"metadata": {"name": account}, "subjects": [subject], "roleRef": reference}
        rbac.create_namespaced_role(self.namespace, role)
        rbac.create_namespaced_role_binding(self.namespace, binding)
        access = self.api.client.configuration
        return {"kubeconfig": None, "host": access.host, "api_key": token, "ca_cert": access.ssl_ca_cert}

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


def _program(name: str, folder: Path, task: Json, check: bool, diff: bool) -> Json:
    """Run a module as the program that it is, and give back what it returned."""
    given = {**task, "_ansible_check_mode": check, "_ansible_diff": diff}
    arguments = folder / f"{secrets.token_hex(4)}.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    command = [sys.executable, str(ROOT / "plugins" / "modules" / f"{name}.py"), str(arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".cache" / "collections")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.stdout.strip(), done.stderr
    return {"failed": False, **json.loads(done.stdout)}


@pytest.fixture
def module(tmp_path: Path, kubeconfig: str) -> Run:
    """Run apply_set once for each task."""

    def run(*tasks: Json, check: bool = False, diff: bool = False) -> list[Json]:
        return [_program("apply_set", tmp_path, _options(task, kubeconfig), check, diff) for task in tasks]

    return run


@pytest.fixture
def waiter(tmp_path: Path, kubeconfig: str) -> Callable[..., Json]:
    """Run cluster_wait for these objects."""

    def run(*objects: Json, wait_timeout: int = 2, check: bool = False, **login: Any) -> Json:
        task = {"kubeconfig": kubeconfig, **login, "objects": list(objects), "wait_timeout": wait_timeout}
        given = {name: value for name, value in task.items() if value is not None}
        return _program("cluster_wait", tmp_path, given, check, False)

    return run


Info = Callable[..., Json]


@pytest.fixture
def info(tmp_path: Path, kubeconfig: str) -> Info:
    """Ask with objects_info."""

    def run(queries: list[Json], **options: Any) -> Json:
        return _program(
            "objects_info", tmp_path, {"kubeconfig": kubeconfig, "queries": queries, **options}, False, False
        )

    return run


@pytest.fixture
def playbook(tmp_path: Path, kubeconfig: str) -> Run:
    """Run tasks one after the other in one playbook, and give back what each returned.

    ``files`` are written beside the playbook first. A task with the key ``action`` is for another module of ours; the
    key ``environment`` is that of a task. ``python`` is the interpreter for modules.
    """
    numbers = itertools.count()

    def run(
        *tasks: Json,
        options: tuple[str, ...] = (),
        output: list[str] | None = None,
        files: dict[str, str] | None = None,
        python: str = sys.executable,
    ) -> list[Json]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        for name, text in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        steps: list[Json] = []
        for index, task in enumerate(tasks):
            action = task.get("action", "apply_set")
            given = {name: value for name, value in task.items() if name not in ("action", "environment")}
            given = _options(given, kubeconfig) if action == "apply_set" else {"kubeconfig": kubeconfig, **given}
            step = {f"inferops.cluster.{action}": given, "environment": task.get("environment", {})}
            steps.append({**step, "register": "result", "ignore_errors": True})
            answer = {"content": "{{ result | to_json }}", "dest": str(folder / f"{index}.json"), "mode": "0600"}
            steps.append({"ansible.builtin.copy": answer, "check_mode": False, "diff": False})
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": steps}
        play["vars"] = {"ansible_python_interpreter": python, "word": "rendered"}
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


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """Another interpreter, as far as paths tell."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def things(made: Cluster, module: Run) -> Iterator[str]:
    """The API group of a kind Thing, with an object ``a``."""
    group = f"{secrets.token_hex(4)}.example.com"
    items = [status_crd("Thing", group), custom("Thing", group, "a", 1)]
    created = module({"namespace": made.namespace, "objects": items, "wait": True})[0]
    assert actions(created) == ["created", "created"]
    yield group
    module({"namespace": made.namespace, "objects": items, "state": "absent"})


@dataclass
class Front:
    """A plain HTTP front of the API server that counts requests and can drop connections."""

    configuration: client.Configuration
    drop_every: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    watches: int = 0
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
                if "watch=true" in self.path and answer.status == 200:
                    self.stream(answer)
                    return
                data = answer.read()
                upstream.close()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, answer: http.client.HTTPResponse) -> None:
                """A watch: events are passed on as they come, until either side ends."""
                front.watches += 1
                self.close_connection = True
                self.send_response(200)
                self.end_headers()
                while chunk := answer.read1(65536):
                    try:
                        self.wfile.write(chunk)
                    except OSError:
                        return

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
