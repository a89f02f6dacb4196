# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets that are easy to recognise go through roles and modules, and come out nowhere: no output, no process list."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from .conftest import ROOT, Installed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
CALLBACKS = ROOT / "tests" / "integration" / "playbooks" / "callbacks"
Json = dict[str, Any]

FAILING = ("Refused", "Odd", "Picker")
PASSING = (
    "Namespace",
    "Read",
    "Objects",
    "Changed",
    "Text",
    "File",
    "Template",
    "Apply LiteLLM",
    "Ask",
    "Ask with a header",
    "Remove LiteLLM",
    "Gone",
)


@dataclass
class Marks:
    """Secrets of one run, by what they are for."""

    values: dict[str, str] = field(default_factory=dict)

    def new(self, name: str) -> str:
        """A secret of its own for ``name``."""
        return self.values.setdefault(name, f"{name}-{secrets.token_hex(12)}")

    def seen(self, text: str) -> set[str]:
        """What ``text`` gives away, as it is or in base64."""
        encoded = {name: base64.b64encode(value.encode()).decode() for name, value in self.values.items()}
        return {name for name, value in self.values.items() if value in text or encoded[name] in text}


class ProcessList:
    """Looks at all processes' command lines as long as it is open, as any user of the machine may."""

    def __init__(self) -> None:
        self.lines: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> ProcessList:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.lines.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue


class Refusing(BaseHTTPRequestHandler):
    """An API that quotes the key that it refuses, as some do."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        body = json.dumps({"error": {"message": f"the key {key} is not valid"}}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def refusing() -> Iterator[str]:
    """Address of the API."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture
def namespace(kubeconfig: str) -> Iterator[str]:
    """A namespace that is deleted afterwards."""
    name = f"secrets-{secrets.token_hex(4)}"
    yield name
    configuration = client.Configuration()
    config.load_kube_config(kubeconfig, client_configuration=configuration)
    core = client.CoreV1Api(client.ApiClient(configuration))
    if name in {item.metadata.name for item in core.list_namespace().items}:
        core.delete_namespace(name)


def role(name: str) -> Json:
    """Run one task file of the role litellm, whether that ends well or not."""
    include = {"name": "inferops.cluster.litellm", "tasks_from": name}
    told = {"name": "Go on", "ansible.builtin.debug": {"msg": "failed, as expected without model servers"}}
    return {"block": [{"name": f"litellm {name}", "ansible.builtin.include_role": include}], "rescue": [told]}


def secret(name: str, value: str) -> Json:
    """A Secret that holds ``value`` in plain text."""
    data = {"value": value, "more": "text"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def credentials(kubeconfig: Json) -> dict[str, str]:
    """The secrets of a kubeconfig by their names, such as ``token``."""
    names = ("token", "password", "client-key-data")
    users = [entry["user"] for entry in kubeconfig["users"]]
    return {f"kubeconfig-{name}": user[name] for user in users for name in names if name in user}


def tasks(marks: Marks, namespace: str, refusing: str, folder: Path, kubeconfig: Json) -> list[Json]:
    """Each way in which a secret enters, and each in which it could come out: created, changed, refused, removed."""
    (folder / "given.yml").write_text(yaml.safe_dump(secret("src", marks.new("src"))))
    (folder / "given.yml.j2").write_text(yaml.safe_dump(secret("template", "{{ template_secret }}")))

    def applied(name: str, **options: Any) -> Json:
        failing = {"ignore_errors": True} if name in FAILING else {}
        options = {"name": "secrets", "namespace": namespace, "wait": False, **options}
        return {"name": name, "inferops.cluster.apply_set": options, **failing}

    patch = {"kind": "Secret", "name": "objects", "patch": {"stringData": {"more": marks.new("patch")}}}
    # The API server refuses the first one, and quotes what is wrong with it; the module itself refuses the second.
    refused = {**secret("wrong", marks.new("refused")), "data": {"other": f"{marks.values['refused']}!"}}
    odd = {"kind": "Secret", "stringData": {"value": marks.new("odd")}}
    home = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    query = {"api_version": "v1", "kind": "Namespace", "name": namespace}
    request = {"url": refusing, "model": "m", "prompts": ["hello"], "inference_key": marks.new("inference")}
    with_header = {"url": refusing, "model": "m", "prompts": ["hello"]}
    with_header["headers"] = {"Authorization": f"Bearer {marks.new('header')}"}
    # There is no such Service, so the token is of no use; it must not be told for that.
    picker = {"namespace": namespace, "name": "nobody", "token": marks.new("token")}
    return [
        applied("Namespace", objects=home, kubeconfig=kubeconfig),
        {"name": "Read", "inferops.cluster.objects_info": {"queries": [query], "kubeconfig": kubeconfig}},
        applied("Objects", objects=[secret("objects", marks.new("objects"))], patches=[patch]),
        applied("Changed", objects=[secret("objects", marks.new("changed"))]),
        applied("Text", objects=yaml.safe_dump(secret("text", marks.new("text")))),
        applied("File", src=[str(folder / "given.yml")]),
        applied("Template", templates=[str(folder / "given.yml.j2")]),
        applied("Refused", objects=[refused]),
        applied("Odd", objects=[odd]),
        role("main"),
        role("verify"),
        {"name": "Ask", "inferops.cluster.inference_request": request},
        {"name": "Ask with a header", "inferops.cluster.inference_request": with_header},
        {"name": "Picker", "inferops.cluster.epp_info": picker, "ignore_errors": True},
        role("remove"),
        applied("Gone", objects=[secret("objects", marks.values["changed"])], state="absent"),
    ]


def test_secrets_reach_no_output_and_no_process_list(
    newest: Installed, kubeconfig: str, namespace: str, refusing: str, tmp_path: Path
) -> None:
    marks = Marks()
    access = yaml.safe_load(Path(kubeconfig).read_text())
    marks.values.update(credentials(access))
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {"group/inferops.cluster.k8s": {"kubeconfig": kubeconfig}},
        "tasks": tasks(marks, namespace, refusing, tmp_path, access),
    }
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([play]))
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": str(newest.environment.python),
        "template_secret": marks.new("template"),
        "litellm_namespace": namespace,
        "litellm_create_namespace": False,
        "litellm_master_key": f"sk-{marks.new('master')}",
        "litellm_wait": False,
        "litellm_wait_timeout": 1,
        "litellm_models": [{"name": "m"}],
    }
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"localhost": None}, "vars": variables}}))
    results = tmp_path / "results.json"
    environment = {
        **newest.variables(),
        "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "task_results",
        "ANSIBLE_LOG_PATH": str(tmp_path / "ansible.log"),
        "TASK_RESULTS": str(results),
    }
    command = [newest.program("ansible-playbook"), "-vvv", "--diff", "-i", str(inventory), str(playbook)]
    with ProcessList() as processes:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=280
        )
    output = done.stdout + done.stderr
    outcomes = {task["task"].rpartition(" : ")[2]: task["outcome"] for task in json.loads(results.read_text())}
    # What is looked for has really been there: each way in was taken, and the two wrong ones were refused.
    for name in (*PASSING, *FAILING):
        assert outcomes[name] == ("ok" if name in PASSING else "failed"), f"{name}: {output}"
    assert any("ansible-playbook -vvv" in line for line in processes.lines)
    assert '"invocation"' in output or "invocation:" in output
    assert marks.seen(output) == set(), "in the output"
    assert marks.seen((tmp_path / "ansible.log").read_text()) == set(), "in the log file"
    assert marks.seen(results.read_text()) == set(), "in what callbacks get"
    assert marks.seen("\n".join(processes.lines)) == set(), "in the list of processes"


def test_a_secret_that_is_there_would_be_seen() -> None:
    marks = Marks()
    value = marks.new("one")
    assert marks.seen(f"it is {value}, or {base64.b64encode(value.encode()).decode()}") == {"one"}
    assert marks.seen("nothing") == set()
