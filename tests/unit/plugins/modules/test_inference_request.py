# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to a real HTTP server on loopback that speaks as much of the OpenAI API as each test needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from ansible.module_utils import basic

from ansible_collections.inferops.cluster.plugins.module_utils import openai
from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.modules import inference_request


class Handler(BaseHTTPRequestHandler):
    """Answers by the name of the model, and remembers what it was sent."""

    seen: ClassVar[list[tuple[str, dict[str, str], dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, dict(self.headers), body))
        getattr(self, f"answer_{body['model']}")()

    def send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("X-Served", "10.0.0.1:8000")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def answer_whole(self) -> None:
        choice = {"message": {"content": "hello"}, "finish_reason": "stop"}
        self.send(200, "application/json", json.dumps({"choices": [choice], "usage": {"total_tokens": 3}}))

    def answer_pieces(self) -> None:
        pieces = [{"choices": [{"delta": {"content": text}}]} for text in ("", "hel", "lo")]
        self.send(200, "text/event-stream", "".join(f"data: {json.dumps(p)}\n\n" for p in pieces) + "data: [DONE]\n\n")

    def answer_cut(self) -> None:
        self.send(200, "text/event-stream", 'data: {"choices": [{"delta": {"content": "hel"}}]}\n\n')

    def answer_echo(self) -> None:
        """Quotes what it was sent, as some servers do with a key that they refuse."""
        told = f"not valid: {self.headers['Authorization']} {self.headers['X-Api-Key']}; tier {self.headers['X-Tier']}"
        self.send(401, "application/json", json.dumps({"error": {"message": told}}))

    def answer_bare(self) -> None:
        told = f"the key {self.headers['Authorization'].removeprefix('Bearer ')} is not valid"
        self.send(401, "application/json", json.dumps({"error": {"message": told}}))

    def answer_busy(self) -> None:
        self.send(503, "application/json", '{"error": {"message": "no pods"}}')

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests' output is theirs."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def params(url: str, model: str, **more: Any) -> dict[str, Any]:
    """The module's options, as Ansible fills them in."""
    options = {name: spec.get("default") for name, spec in inference_request.argument_spec().items()}
    return {**options, "url": url, "model": model, "prompts": ["hi"], "served_header": "X-Served", **more}


def test_a_whole_answer(url: str) -> None:
    (answer,) = inference_request.send_all(params(url, "whole", inference_key="sk-1", parameters={"max_tokens": 4}))
    assert (answer["status"], answer["text"], answer["error"]) == (200, "hello", "")
    assert (answer["served_by"], answer["finish_reason"]) == ("10.0.0.1:8000", "stop")
    assert answer["usage"] == {"total_tokens": 3}
    path, headers, body = Handler.seen[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer sk-1")
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert body["max_tokens"] == 4


def test_an_answer_piece_by_piece(url: str) -> None:
    (answer,) = inference_request.send_all(params(url, "pieces", stream=True))
    assert (answer["text"], answer["chunks"], answer["error"]) == ("hello", 3, "")
    assert 0 < answer["first_token_seconds"] <= answer["seconds"]


def test_an_answer_that_is_cut_off_is_an_error(url: str) -> None:
    (answer,) = inference_request.send_all(params(url, "cut", stream=True))
    assert (answer["status"], answer["text"]) == (200, "hel")
    assert "after the answer had begun" in answer["error"]


def test_an_error_is_told_with_its_message(url: str) -> None:
    (answer,) = inference_request.send_all(params(url, "busy"))
    assert (answer["status"], answer["error"]) == (503, "no pods")


def test_no_server_is_status_0() -> None:
    (answer,) = inference_request.send_all(params("http://127.0.0.1:1/v1", "whole"))
    assert answer["status"] == 0
    assert "refused" in answer["error"]


def test_every_prompt_has_its_answer(url: str) -> None:
    prompts = [f"question {number}" for number in range(12)]
    answers = inference_request.send_all(params(url, "whole", prompts=prompts, concurrency=4, path="completions"))
    assert [answer["status"] for answer in answers] == [200] * 12
    assert sorted(body["prompt"] for path, headers, body in Handler.seen) == sorted(prompts)


def test_an_address_that_is_none() -> None:
    with pytest.raises(InputError, match="no HTTP address"):
        openai.direct("llm.example.com", "", 1.0, None, True)


def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """What the module prints as its result."""
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        inference_request.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("model", "stream", "expect", "said"),
    [
        ("whole", False, {"served_by": ["10.0.0.1"], "text": "^hel+o$", "finish_reason": ["stop"]}, ""),
        ("whole", False, {"served_by": ["10.0.0.*:8000"], "max_seconds": 30}, ""),
        ("pieces", True, {"max_first_token_seconds": 30, "text": "hello"}, ""),
        ("busy", False, {"status": [429, 503]}, ""),
        ("busy", False, {}, "request 0: status 503 (no pods), expected 200"),
        ("cut", True, {}, "after the answer had begun"),
        ("whole", False, {"served_by": ["10.0.0.2"]}, "served by 10.0.0.1:8000, expected 10.0.0.2"),
        ("whole", False, {"text": "bye"}, "the text 'hello' does not match 'bye'"),
        ("whole", False, {"finish_reason": ["length", "tool_calls"]}, "ended by stop, expected length or tool_calls"),
        ("whole", False, {"max_seconds": 0}, "expected 0.0 s at most"),
        ("pieces", True, {"max_first_token_seconds": 0}, "the first token came after"),
        ("whole", False, {"min_servers": 2}, "1 servers answered, expected at least 2: 10.0.0.1:8000"),
        ("whole", False, {"text": "("}, "is no regular expression"),
        ("whole", False, {"max_first_token_seconds": 1}, "needs `stream: true`"),
    ],
)
def test_expectations(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    stream: bool,
    expect: dict[str, Any],
    said: str,
) -> None:
    given = {"url": url, "model": model, "prompts": ["hi"], "stream": stream, "served_header": "X-Served"}
    found = program(monkeypatch, capsys, **given, expect=expect)
    assert bool(found.get("failed")) == bool(said), found
    assert said in found.get("msg", "")


SECRET = {"Authorization": "Bearer very-secret-4711", "X-Api-Key": "another-secret-4712", "X-Tier": "10"}


@pytest.mark.parametrize("model", ["echo", "bare", "whole"])
@pytest.mark.parametrize("expect", [None, {"text": "something else"}])
def test_headers_are_in_no_output(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, expect: Any
) -> None:
    more = {"expect": expect} if expect else {}
    result = program(monkeypatch, capsys, url=url, model=model, prompts=["hi"], headers=SECRET, **more)
    assert all(Handler.seen[0][1][name] == value for name, value in SECRET.items()), "the server gets them"
    text = json.dumps(result)
    assert not [value for value in ("very-secret-4711", "another-secret-4712") if value in text]
    (answer,) = result["responses"]
    assert answer["status"] == (200 if model == "whole" else 401)
    assert answer["headers"]["x-served"] == "10.0.0.1:8000", "short values are no secrets"
    if model == "echo":
        assert "tier 10" in answer["error"]


def test_only_what_can_be_secret_is_guarded() -> None:
    values = {"short", "12345678", "Bearer a-long-token", "key"}
    inference_request.guard(values, {"A": "short", "B": "12345678", "C": "Bearer a-long-token", "D": 7, "E": "no key"})
    assert values == {"12345678", "Bearer a-long-token", "a-long-token", "key"}
