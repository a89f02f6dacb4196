# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP client against a real server on loopback that misbehaves on purpose."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils import client as client_module
from ansible_collections.inferops.cluster.plugins.module_utils.access import Access
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, InputError, UnreachableError

Answer = tuple[int, dict[str, str], Any]
CUT: Answer = (0, {}, None)  # the server closes the connection instead of answering


class Server:
    """Answers each request with the next of ``answers``; ``seen`` records what was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.connections = 0
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                server.seen.append((self.command, self.path, dict(self.headers.items()), body))
                status, headers, content = server.answers.pop(0) if server.answers else (200, {}, {"kind": "Status"})
                if not status:
                    self.close_connection = True
                    return
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def connect(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Client]]:
    monkeypatch.setattr(client_module, "_backoff", lambda attempt: 0.001 * attempt)
    made: list[Client] = []

    def make(**options: Any) -> Client:
        made.append(Client(Access(server=server.url, **options)))
        return made[-1]

    yield make
    for client in made:
        client.close()


def status(code: int, reason: str, message: str = "no", **details: Any) -> Answer:
    return code, {}, {"kind": "Status", "reason": reason, "message": message, "details": details}


def test_one_connection_serves_many_requests(server: Server, connect: Callable[..., Client]) -> None:
    client = connect(authorization=lambda: "Bearer t", impersonation=(("Impersonate-User", "jane"),))
    for number in range(5):
        client.get(f"/api/v1/{number}", limit="1")
    assert server.connections == 1
    method, path, headers, _body = server.seen[-1]
    assert (method, path) == ("GET", "/api/v1/4?limit=1")
    assert (headers["Authorization"], headers["Impersonate-User"]) == ("Bearer t", "jane")


def test_apply_is_strict_and_names_its_manager(server: Server, connect: Callable[..., Client]) -> None:
    connect().apply("/x", {"a": 1}, "me", dry_run=True)
    method, path, headers, body = server.seen[0]
    assert method == "PATCH"
    assert path == "/x?fieldManager=me&fieldValidation=Strict&force=false&dryRun=All"
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert body == {"a": 1}


@pytest.mark.parametrize(
    "trouble",
    [
        CUT,
        status(429, "TooManyRequests"),
        status(503, "ServiceUnavailable"),
        status(500, "InternalError", 'failed calling webhook "x": connection refused'),
        status(409, "Conflict", "the object has been modified"),
        status(403, "Forbidden", 'error looking up service account n/default: serviceaccount "default" not found'),
    ],
)
def test_passing_trouble_is_outlived(server: Server, connect: Callable[..., Client], trouble: Answer) -> None:
    client = connect()
    client.get("/first")
    server.answers = [trouble, trouble, (200, {}, {"kind": "X"})]
    assert client.apply("/x", {}, "me") == {"kind": "X"}
    assert len(server.seen) == 4


def test_retry_after_is_obeyed(server: Server, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.answers = [(429, {"Retry-After": "7"}, {}), (200, {}, {})]
    connect().get("/x")
    assert slept == [7.0]


@pytest.mark.parametrize(
    "refusal",
    [
        status(403, "Forbidden"),
        status(422, "Invalid"),
        status(500, "InternalError", "field not declared in schema"),
        status(409, "Conflict", causes=[{"reason": "FieldManagerConflict", "field": ".spec.a", "message": "m"}]),
    ],
)
def test_a_refusal_is_told_at_once(server: Server, connect: Callable[..., Client], refusal: Answer) -> None:
    server.answers = [refusal]
    with pytest.raises(ApiError) as caught:
        connect().apply("/x", {}, "me")
    assert (caught.value.status, len(server.seen)) == (refusal[0], 1)


def test_trouble_without_end_ends(server: Server, connect: Callable[..., Client]) -> None:
    server.answers = [status(503, "ServiceUnavailable")] * 20
    with pytest.raises(ApiError):
        connect().get("/x")
    assert len(server.seen) == client_module.ATTEMPTS


def test_what_is_absent_is_none_and_deleting_it_again_is_fine(server: Server, connect: Callable[..., Client]) -> None:
    client = connect()
    server.answers = [status(404, "NotFound"), status(404, "NotFound"), (200, {}, {})]
    assert client.find("/x") is None
    assert client.delete("/x", "Background") is False
    assert client.delete("/x", "Foreground", uid="u") is True
    assert server.seen[-1][3]["preconditions"] == {"uid": "u"}
    assert server.seen[-1][3]["propagationPolicy"] == "Foreground"


def test_warnings_are_kept_once_each(server: Server, connect: Callable[..., Client]) -> None:
    client = connect()
    server.answers = [(200, {"Warning": '299 - "v1beta1 is \\"old\\""'}, {})] * 2
    client.get("/x")
    client.get("/y")
    assert list(client.warnings) == ['v1beta1 is "old"']


def test_map_keeps_the_order_and_raises_the_first_failure(connect: Callable[..., Client]) -> None:
    client = connect()
    assert client.map(lambda number: number * 2, range(20)) == [number * 2 for number in range(20)]
    with pytest.raises(ZeroDivisionError):
        client.map(lambda number: 1 // number, [1, 0, 2])


def test_no_server_is_told_with_its_address(server: Server, connect: Callable[..., Client]) -> None:
    client = connect()
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UnreachableError, match=rf"{server.url} cannot be reached at all: Connection refused"):
        client.get("/x")


def test_addresses_and_certificates_that_cannot_work_are_refused() -> None:
    with pytest.raises(InputError, match="names no host"):
        Client(Access(server="https://"))
    with pytest.raises(InputError, match="cannot use the CA certificate /nowhere"):
        Client(Access(server="https://h", ca_file="/nowhere"))
    with pytest.raises(InputError, match="cannot use the client certificate of the kubeconfig"):
        Client(Access(server="https://h", verify=False, cert_data="no", key_data="no"))


def test_a_list_is_read_page_by_page_and_anew_when_it_expired(server: Server, connect: Callable[..., Client]) -> None:
    def page(name: str, following: str = "") -> Answer:
        metadata = {"resourceVersion": "7", **({"continue": following} if following else {})}
        return 200, {}, {"metadata": metadata, "items": [{"metadata": {"name": name}}]}

    server.answers = [page("old", "p2"), status(410, "Expired"), page("a", "p2"), page("b")]
    items, version = connect().snapshot("/x", labelSelector="l=1")
    assert ([item["metadata"]["name"] for item in items], version) == (["a", "b"], "7")
    assert server.seen[-1][1] == "/x?limit=500&labelSelector=l%3D1&continue=p2"


def test_a_watch_yields_events_until_it_ends(server: Server, connect: Callable[..., Client]) -> None:
    server.answers = [(200, {}, {"type": "ADDED", "object": {"metadata": {"name": "a"}}})]
    # The server writes no line end here: what is cut off is no event.
    assert list(connect().watch("/x", "7", 5)) == []
    assert server.seen[0][1] == "/x?watch=true&resourceVersion=7&timeoutSeconds=5"
    server.answers = [status(403, "Forbidden")]
    with pytest.raises(ApiError):
        list(connect().watch("/x", "7", 5))
    server.answers = [CUT]
    with pytest.raises(UnreachableError):
        list(connect().watch("/x", "7", 5))
