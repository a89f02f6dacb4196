# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that the picker answers itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp.extproc import AnsweringRouter, NeedDecision, StreamMachine
from epp.model import Endpoint, Rejection, Reply
from epp.plugins.models_responder import ModelsResponder


class Inner:
    """What comes after."""

    def decide(self, need: NeedDecision) -> Any:
        return "routed"

    def response_received(self, served: str) -> dict[str, str]:
        return {"served": served}


class Broken:
    """A responder that fails."""

    def respond(self, method: str, path: str, endpoints: Sequence[Endpoint]) -> Reply | None:
        raise ZeroDivisionError


def router(*endpoints: Endpoint, broken: bool = False) -> AnsweringRouter:
    responders: list[Any] = [ModelsResponder("models", None, None)]  # type: ignore[arg-type]
    return AnsweringRouter(Inner(), [Broken(), *responders] if broken else responders, lambda subset: endpoints)


def ask(one: AnsweringRouter, path: str = "/v1/models", method: str = "GET", announced: bool = False) -> Any:
    need = NeedDecision({":method": method, ":path": path}, b"", None)
    need.announced = announced
    return one.decide(need)


def endpoint(**models: bytes) -> Endpoint:
    found = Endpoint("e", "", "e", "10.0.0.1", 8000)
    found.models = models or None
    return found


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models?limit=3"])
@pytest.mark.parametrize("broken", [False, True])
def test_the_models(path: str, broken: bool) -> None:
    with pytest.raises(Reply) as caught:
        ask(router(endpoint(m=b'{"id":"m"}'), broken=broken), path)
    assert json.loads(caught.value.body()) == {"object": "list", "data": [{"id": "m"}]}
    assert (caught.value.status, caught.value.headers()) == (200, {"content-type": "application/json"})


def test_they_are_not_known_yet() -> None:
    with pytest.raises(Rejection, match="not known yet") as caught:
        ask(router(endpoint()))
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("path", "method", "announced"),
    [
        ("/v1/models", "POST", False),
        ("/v1/models", "GET", True),
        ("/v1/models/m", "GET", False),
        ("/v2/v1/models", "GET", False),
        ("", "GET", False),
    ],
)
def test_all_else_goes_on(path: str, method: str, announced: bool) -> None:
    assert ask(router(endpoint(m=b"{}")), path, method, announced) == "routed"


def test_an_empty_pool_is_refused_by_whoever_routes() -> None:
    assert ask(router()) == "routed"
    assert router().response_received("x") == {"served": "x"}


def test_on_the_wire() -> None:
    machine = StreamMachine()
    (data,) = machine.rejected(Reply("{}"))
    message = ProcessingResponse.FromString(data)
    immediate = message.immediate_response
    assert (immediate.status.code, immediate.body, immediate.details) == (200, b"{}", "")
    (header,) = immediate.headers.set_headers
    assert (header.header.key, header.header.raw_value) == ("content-type", b"application/json")
    assert machine.done
