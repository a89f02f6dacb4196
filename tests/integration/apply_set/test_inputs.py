# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the objects of a set may come from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .conftest import Cluster, Json, Run
from .objects import config_map

pytestmark = pytest.mark.cluster

TEMPLATE = """
{% for name in ['t1', 't2'] %}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ name }}
data:
  word: {{ word | to_json }}
{% endfor %}
"""


def text(name: str) -> str:
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n"


def names(result: Json) -> list[str]:
    return [entry["name"] for entry in result["objects"]]


def test_text_templates_files_and_folders(made: Cluster, playbook: Run) -> None:
    files = {
        "templates/set.yml.j2": TEMPLATE,
        "templates/off.yml.j2": "{% if false %}no{% endif %}\n",
        "templates/value.j2": "{{ {'apiVersion': 'v1', 'kind': 'ConfigMap', 'metadata': {'name': 'value'}} }}",
        "templates/folder/z.yml.j2": text("{{ word }}"),
        "files/single.yml": text("single"),
        "files/folder/b.yaml": text("b"),
        "files/folder/a.json": '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}',
    }
    task = {
        "namespace": made.namespace,
        "objects": ["\n---\n".join(text(name) for name in ("o1", "o2")), config_map("o3")],
        "src": ["single.yml", "folder"],
        "templates": ["set.yml.j2", "off.yml.j2", "value.j2", "folder"],
    }
    created, again = playbook(task, task, files=files)
    assert not created["failed"], created["msg"]
    assert names(created) == ["o1", "o2", "o3", "single", "a", "b", "t1", "t2", "value", "rendered"]
    assert not again["changed"]
    assert made.get("ConfigMap", "t2").data.word == "rendered"
    one = playbook({"namespace": made.namespace, "objects": text("o1")})[0]
    assert (names(one), one["changed"]) == (["o1"], False)


def test_what_cannot_be_found_or_rendered_is_named(made: Cluster, playbook: Run) -> None:
    given = {"namespace": made.namespace}
    files = {"templates/bad.yml.j2": text("{{ nobody_defined_this }}"), "templates/odd.yml.j2": "a: [\n"}
    missing, undefined, odd, absent = playbook(
        {**given, "templates": ["nowhere.j2"]},
        {**given, "templates": ["bad.yml.j2"]},
        {**given, "templates": ["odd.yml.j2"]},
        {**given, "src": ["nowhere.yml"]},
        files=files,
    )
    assert "cannot find 'nowhere.j2' among the templates of the role or play" in missing["msg"]
    assert "'nobody_defined_this' is undefined" in undefined["msg"]
    assert "odd.yml.j2, document 1, is not valid YAML: line 2" in odd["msg"]
    assert "cannot find 'nowhere.yml' among the files of the role or play" in absent["msg"]


def test_rendered_secrets_show_nowhere(made: Cluster, playbook: Run) -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: correct-horse}\n"
    files = {"templates/secret.yml.j2": secret, "files/secret.yml": secret.replace("name: s", "name: f")}
    output: list[str] = []
    task = {"namespace": made.namespace, "templates": ["secret.yml.j2"], "src": ["secret.yml"]}
    results = playbook(task, options=("--diff", "-vvvv"), output=output, files=files)
    assert results[0]["changed"]
    for word in ("correct-horse", "Y29ycmVjdC1ob3JzZQ=="):
        assert word not in output[0]
        assert word not in str(results)


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server of files, and its folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", tmp_path
    running.shutdown()
    running.server_close()


def test_a_url_is_downloaded(made: Cluster, module: Run, website: tuple[str, Path]) -> None:
    url, folder = website
    (folder / "set.yaml").write_text(f"{text('u1')}---\n{text('u2')}")
    task = {"namespace": made.namespace, "src": [f"{url}/set.yaml"]}
    created, missing = module(task, {**task, "src": [f"{url}/none.yaml"]})
    assert names(created) == ["u1", "u2"]
    assert f"cannot download src {url}/none.yaml: HTTP Error 404" in missing["msg"]
