# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of a request from its bytes to its endpoint and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from epp.extproc import Director, DirectorOptions
from epp.extproc.director import Ticket
from epp.extproc.machine import NeedDecision
from epp.model import Rejection, Usage
from epp.requests import Parsers

BODY = b'{"model": "llama", "prompt": "hello", "max_tokens": 7, "stream": true, "cache_salt": "s"}'
PATH = {":path": "/v1/completions", "content-type": "application/json"}


def asked(body: bytes = BODY, subset: frozenset[str] | None = None, **headers: str) -> NeedDecision:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return NeedDecision({**PATH, **names}, body, subset)


def test_what_the_scheduler_sees(rooms: Any) -> None:
    rooms.director.decide(asked(x_request_id="r-1", x_gateway_inference_fairness_id="team"))
    (request,) = rooms.scheduler.seen
    assert rooms.scheduler.prompts == [b'"hello"']
    assert (request.model, request.target_model, request.request_id) == ("llama", "llama", "r-1")
    assert (request.stream, request.max_tokens, request.size, request.cache_salt) == (True, 7, len(BODY), "s")
    assert (request.fairness_id, request.objective, request.priority) == ("team", "", 0)
    assert request.prompt == b""  # let go of with the decision: an answer may take minutes


def test_new_header_names_win_over_old_ones(rooms: Any) -> None:
    old_and_new = {"x_llm_d_inference_fairness_id": "new", "x_gateway_inference_fairness_id": "old"}
    rooms.director.decide(asked(**old_and_new))
    assert rooms.scheduler.seen[0].fairness_id == "new"


def test_a_request_id_is_made_only_when_there_is_none(rooms: Any) -> None:
    made = rooms.director.decide(asked())
    assert made.route.headers == {"x-request-id": made.request.request_id}
    assert len(made.request.request_id) == 36
    assert rooms.director.decide(asked(x_request_id="mine")).route.headers == {}


def test_endpoint_is_held_until_the_answer_has_ended_and_given_back_once(rooms: Any) -> None:
    ticket = rooms.director.decide(asked())
    assert ticket.route.destination == "10.0.0.2:8000"
    assert rooms.inflight == [0, 1]
    usage = Usage(1, 2, 3)
    ticket.finish(10, usage)
    ticket.fail("ClientDisconnected")
    ticket.finish(10, None)
    assert rooms.inflight == [0, 0]
    assert rooms.scheduler.completed == [usage]
    assert rooms.recorder.named("finished") == [(10, usage)]
    assert rooms.recorder.named("failed") == []


def test_failed_requests_give_back_too(rooms: Any) -> None:
    ticket = rooms.director.decide(asked())
    ticket.fail("ModelServerError")
    assert rooms.inflight == [0, 0]
    assert rooms.scheduler.completed == [None]
    assert rooms.recorder.named("failed") == [("ModelServerError",)]


def test_a_refusal_because_of_headers_is_counted_with_its_model(rooms: Any) -> None:
    with pytest.raises(Rejection, match="who are you"):
        rooms.director.decide(asked(BODY.replace(b"llama", b"refused")))
    assert rooms.recorder.named("request")[0][0] == "refused"
    assert rooms.recorder.named("failed") == [("Unauthorized",)]
    assert rooms.scheduler.seen == []


def test_rewrite_by_header_changes_the_body(rooms: Any) -> None:
    ticket = rooms.director.decide(asked(x_gateway_model_name_rewrite="llama-v2"))
    assert ticket.route.body == BODY.replace(b'"llama"', b'"llama-v2"')
    assert (ticket.route.model, ticket.route.target_model) == ("llama", "llama-v2")
    assert rooms.recorder.named("request")[0][:3] == ("llama", "llama-v2", len(BODY))


def test_without_rewrite_the_body_is_not_touched(rooms: Any) -> None:
    assert rooms.director.decide(asked()).route.body is None
    assert rooms.director.decide(asked(x_gateway_model_name_rewrite="llama")).route.body is None


def test_unseen_bodies_have_the_model_of_the_header(rooms: Any) -> None:
    rooms.director.decide(asked(b"", x_gateway_model_name="llama"))
    assert rooms.scheduler.seen[0].model == "llama"


def test_a_body_that_cannot_be_rewritten_is_refused(rooms: Any) -> None:
    need = asked(b"not json", content_type="text/plain", x_gateway_model_name_rewrite="x")
    with pytest.raises(Rejection, match="model not found in request body"):
        rooms.director.decide(need)
    assert rooms.recorder.named("failed") == [("BadRequest",)]


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"{", "failed to parse request body: "), (b'{"prompt": "x"}', "model not found in request body")],
)
def test_bad_bodies(rooms: Any, body: bytes, text: str) -> None:
    with pytest.raises(Rejection) as error:
        rooms.director.decide(asked(body))
    assert (error.value.status, error.value.code, error.value.reason) == (400, "BadRequest", "")
    assert error.value.message.startswith(text)
    assert rooms.recorder.named("rejected") == [("BadRequest",)]
    assert rooms.inflight == [0, 0]


def test_a_truncated_body_is_read_as_far_as_it_goes(rooms: Any) -> None:
    need = NeedDecision(PATH, b'{"model": "llama", "prompt": "hel', None, truncated=True)
    rooms.director.decide(need)
    assert rooms.scheduler.seen[0].model == "llama"
    assert rooms.scheduler.prompts == [b'"hel']


def test_empty_pool(rooms: Any) -> None:
    rooms.datastore.replace([])
    with pytest.raises(Rejection) as error:
        rooms.director.decide(asked())
    assert (error.value.status, error.value.reason) == (503, "rejected-no-endpoints")
    assert rooms.recorder.named("failed") == [("ServiceUnavailable",)]


@pytest.mark.parametrize(
    ("subset", "destination"),
    [
        (frozenset({"10.0.0.1:8000"}), "10.0.0.1:8000"),
        (frozenset({"10.0.0.1"}), "10.0.0.1:8000"),
        (frozenset({"10.0.0.1", "10.0.0.2"}), "10.0.0.2:8000"),
        (None, "10.0.0.2:8000"),
    ],
)
def test_subset_by_address_and_by_address_with_port(
    rooms: Any, subset: frozenset[str] | None, destination: str
) -> None:
    assert rooms.director.decide(asked(subset=subset)).route.destination == destination


@pytest.mark.parametrize("subset", [frozenset(), frozenset({"10.0.0.1:9"}), frozenset({"10.9.9.9"})])
def test_a_subset_that_matches_nothing_leaves_nothing(rooms: Any, subset: frozenset[str]) -> None:
    with pytest.raises(Rejection) as error:
        rooms.director.decide(asked(subset=subset))
    assert error.value.status == 503


def test_subset_filter_can_be_switched_off(rooms_with: Any) -> None:
    rooms = rooms_with(DirectorOptions(subset_filter=False))
    assert rooms.director.decide(asked(subset=frozenset())).route.destination == "10.0.0.2:8000"


def test_scores_are_told_only_on_request(rooms: Any, rooms_with: Any) -> None:
    assert rooms.director.decide(asked()).route.scores == {}
    telling = rooms_with(DirectorOptions(emit_scores=True))
    assert telling.director.decide(asked()).route.scores == {"10.0.0.1:8000": 0.5, "10.0.0.2:8000": 0.5}


@pytest.mark.parametrize("where", ["scheduler", "hook"])
def test_broken_plugins_hold_nothing(rooms: Any, where: str) -> None:
    if where == "scheduler":
        rooms.scheduler.broken = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        rooms.director.decide(asked(b'{"model": "breaks-hooks"}' if where == "hook" else BODY))
    assert rooms.inflight == [0, 0]
    assert rooms.recorder.named("failed") == [("Internal",)]


def test_headers_that_plugins_set_and_take_away(rooms: Any) -> None:
    rooms.scheduler.headers = {"x-prefiller-host-port": "", "x-encoder-hosts-ports": "", "x-new": "1"}
    ticket = rooms.director.decide(asked(x_prefiller_host_port="10.6.6.6:1"))
    assert ticket.request.attributes["headers seen"]
    assert ticket.route.headers["x-new"] == "1"
    assert ticket.route.removed == ("x-prefiller-host-port",)
    assert "x-encoder-hosts-ports" not in ticket.route.headers


@dataclass
class Rules:
    """One model for another, by the cluster's word."""

    resource: str
    target: str

    def priority(self, objective: str, model: str) -> int:
        return {"batch": -1}.get(objective, 4 if model == "llama" else 0)

    def rewrite(self, model: str) -> Rules | None:
        return self if model == "llama" else None


def ruled(rooms: Any, resource: str = "canary") -> Director:
    return Director(rooms.scheduler, rooms.datastore, rooms.recorder, None, Rules(resource, "llama-v2"))


def test_a_rule_of_the_cluster_goes_before_the_header(rooms: Any) -> None:
    ticket = ruled(rooms).decide(asked(x_gateway_model_name_rewrite="mine"))
    assert isinstance(ticket, Ticket)
    assert ticket.route.body == BODY.replace(b'"llama"', b'"llama-v2"')
    assert rooms.recorder.named("rewritten") == [("canary", "llama", "llama-v2")]
    assert rooms.recorder.named("request")[0][:2] == ("llama", "llama-v2")


def test_models_without_a_rule(rooms: Any) -> None:
    ruled(rooms).decide(asked(b'{"model": "other"}', x_gateway_model_name_rewrite="mine"))
    assert rooms.scheduler.seen[0].target_model == "mine"
    assert rooms.recorder.named("rewritten") == []


def test_older_models_are_not_counted_as_rewrites(rooms: Any) -> None:
    ruled(rooms, resource="").decide(asked())
    assert rooms.scheduler.seen[0].target_model == "llama-v2"
    assert rooms.recorder.named("rewritten") == []


def test_priorities(rooms: Any) -> None:
    director = ruled(rooms)
    director.decide(asked(x_llm_d_inference_objective="batch"))
    director.decide(asked())
    assert [request.priority for request in rooms.scheduler.seen] == [-1, 4]


class TestInterfacesWithReaders:
    METHOD = "/vllm.grpc.engine.VllmEngine/Generate"
    BODY = b"\0\0\0\0\x09\x1a\x05hello\x28\x01"
    ANSWER = b"\0\0\0\0\x0a\x12\x08\x18\x0a\x20\x09\x28\x04\x40\x01"

    @pytest.fixture
    def rooms(self, rooms_with: Any) -> Any:
        return rooms_with(DirectorOptions(parsers=Parsers(["vllmgrpc-parser"])))

    def test_a_request(self, rooms: Any) -> None:
        headers = {":path": self.METHOD, "x-gateway-model-name": "llama"}
        ticket = rooms.director.decide(NeedDecision(headers, self.BODY, None))
        assert (ticket.request.model, ticket.request.stream, ticket.request.size) == ("llama", True, 14)
        assert rooms.scheduler.prompts == [b'"hello"']
        answer = ticket.route.follow()
        answer.feed(self.ANSWER)
        assert answer.usage() == Usage(10, 9, 4)

    @pytest.mark.parametrize("body", [BODY, b""])
    def test_a_rewrite_changes_no_body(self, rooms: Any, body: bytes) -> None:
        headers = {":path": self.METHOD, "x-gateway-model-name-rewrite": "target"}
        ticket = rooms.director.decide(NeedDecision(headers, body, None))
        assert ticket.route.body is None
        assert (ticket.route.model, ticket.route.target_model) == ("target", "target")
        assert ticket.request.target_model == "target"
