# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cluster is chosen, and how an answer is read."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from target import cluster
from target.platform import exchange


def test_a_given_kubeconfig_wins(monkeypatch, tmp_path):
    path = tmp_path / "config"
    path.touch()
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setenv("INVENTORY", "inventories/lab")
    target = cluster.choose()
    assert target.name == "kubeconfig"
    assert target.inventory == cluster.ROOT / "inventories/lab"
    assert target.environment()["K8S_AUTH_KUBECONFIG"] == str(path)
    target.up()


def test_a_given_kubeconfig_that_is_no_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(cluster.TargetError, match="which is no file"):
        cluster.choose().up()


@pytest.mark.parametrize(("docker", "name"), [(True, "kind"), (False, "lab")])
def test_kind_where_docker_answers_else_the_lab(monkeypatch, docker, name):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(cluster, "docker_answers", lambda: docker)
    assert cluster.choose().name == name


def test_the_labs_own_kubeconfig_is_no_given_one(monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(cluster.Lab().kubeconfig))
    monkeypatch.setattr(cluster, "docker_answers", lambda: False)
    assert cluster.choose().name == "lab"


class Handler(BaseHTTPRequestHandler):
    """Answers a streamed completion, or hangs up in the middle of it."""

    protocol_version = "HTTP/1.0"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/gone":
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("llm_provider-x-gateway-destination-endpoint-served", "10.0.0.7:8000")
        self.end_headers()
        for word in ("Hello", " there"):
            event = {"choices": [{"delta": {"content": word}}]}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_streamed_answer_is_read(url):
    answer = exchange(url, "POST", "/v1/chat/completions", b"{}", {}, 5)
    assert (answer.status, answer.error) == (200, "")
    assert answer.served_by == "10.0.0.7:8000"
    assert answer.text() == "Hello there"
    assert 0 < answer.first <= answer.total


def test_a_connection_that_breaks_is_an_answer_with_an_error(url):
    answer = exchange(url, "POST", "/gone", b"{}", {}, 5)
    assert answer.status == 0
    assert answer.error
    assert not answer.body
