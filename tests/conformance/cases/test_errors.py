# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals: their status, text and dropped-reason header, and that the stream ends well after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conformance.kit import wire
from conformance.kit.grpc import Ended
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, ask, completion, refuse, route, talk
from conformance.kit.wait import eventually
from conformance.kit.world import DEFAULT, Pool, World

TEXT = "v1.3 says 'inference gateway' where later versions say 'inference error', and names some classes otherwise"
REASON = "v1.3 has no dropped-reason header"
OBJECTIVES = "v1.3.0 never looks whether the cluster has InferenceObjectives, and so never reads them"
FAMILY = "v1.3 knows the older family of headers only"
BAD = {
    "no JSON": b'{"model": "m", "prompt": ',
    "text": b"hello",
    "trailing comma": b'{"model": "m",}',
    "two documents": b'{"model": "m"} {}',
    "no UTF-8": b'{"model": "m\xff"',
}
NO_MODEL = {
    "no model": b'{"prompt": "x"}',
    "a number": b'{"model": 7, "prompt": "x"}',
    "null": b'{"model": null, "prompt": "x"}',
    "nested": b'{"inner": {"model": "m"}, "prompt": "x"}',
}


class TestBadRequest:
    @pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
    def test_what_is_no_json(self, picker: Picker, body: bytes) -> None:
        """What is no JSON: 400."""
        assert refuse(picker, body).status == 400

    @pytest.mark.parametrize("body", NO_MODEL.values(), ids=NO_MODEL.keys())
    def test_no_model(self, picker: Picker, body: bytes) -> None:
        """No model: 400, and it says that the model is not there."""
        found = refuse(picker, body)
        assert found.status == 400
        assert "model not found in request body" in found.body

    @pytest.mark.parametrize("body", [b"[1]", b"null", b'"m"', b"7"])
    def test_json_of_another_kind(self, picker: Picker, body: bytes) -> None:
        """JSON that is no object: 400."""
        assert refuse(picker, body).status == 400

    @pytest.mark.differs(go=TEXT)
    def test_text(self, picker: Picker) -> None:
        """The text names class and cause."""
        assert refuse(picker, BAD["no JSON"]).body.startswith("inference error: BadRequest - ")
        assert refuse(picker, NO_MODEL["no model"]).body == (
            "inference error: BadRequest - model not found in request body"
        )

    def test_an_empty_body(self, picker: Picker) -> None:
        """A body is announced, and then it is empty: 400."""
        with talk(picker) as one:
            one.stream.send(wire.request_headers(), wire.request_body(b""))
            immediate = one.stream.receive().immediate_response
        assert immediate is not None
        assert immediate.status is not None
        assert int(immediate.status.code) == 400

    def test_only_at_the_end(self, picker: Picker) -> None:
        """Nothing is refused before the body is complete."""
        with talk(picker) as one:
            one.stream.send(wire.request_headers(), wire.request_body(b"nonsense", end=False))
            assert one.stream.silent()

    def test_a_deep_document(self, picker: Picker) -> None:
        """A document nested a hundred thousand levels deep is refused or routed, and the picker lives."""
        deep = b'{"model":"m","prompt":"x","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        ask(picker, deep)
        assert isinstance(ask(picker), Routed)

    def test_the_error_is_text(self, picker: Picker) -> None:
        """A refusal says in words what is wrong."""
        assert refuse(picker, b"nonsense").body.isprintable()


class TestEnd:
    def test_the_stream_ends_well(self, picker: Picker) -> None:
        """After a refusal the stream ends with OK, without waiting for Envoy."""
        with talk(picker) as one:
            one.ask(b"nonsense")
            with pytest.raises(Ended) as ended:
                one.stream.receive()
        assert ended.value.status == "OK"

    def test_others_go_on(self, picker: Picker) -> None:
        """A refusal does no harm to another stream of the connection."""
        with talk(picker) as one:
            one.stream.send(wire.request_headers())
            refuse(picker, b"nonsense")
            one.stream.send(wire.request_body(completion()))
            assert wire.kind(one.stream.receive()) == "request_headers"

    @pytest.mark.differs(go="v1.3 decides about a body that has no headers before it")
    def test_a_body_without_headers(self, picker: Picker) -> None:
        """A stream that breaks the protocol is ended with an error."""
        with talk(picker) as one:
            one.stream.send(wire.request_body(completion()))
            with pytest.raises(Ended) as ended:
                one.stream.receive()
        assert ended.value.status not in ("OK", "TERMINATED")

    @pytest.mark.differs(go="v1.3 passes over messages without content")
    def test_an_empty_message(self, picker: Picker) -> None:
        """A message without content is an error of the protocol."""
        with talk(picker) as one:
            one.stream.send(wire.ProcessingRequest())
            with pytest.raises(Ended) as ended:
                one.stream.receive()
        assert ended.value.status not in ("OK", "TERMINATED")

    def test_nothing(self, picker: Picker) -> None:
        """A stream that ends before it begins ends well."""
        with talk(picker) as one:
            assert one.finish() == "OK"


@pytest.fixture(scope="module")
def empty(around: World) -> Iterator[Picker]:
    """A picker whose pool has no pods; objective ``empty-batch`` may be shed."""
    with around.pool("empty", engines=0), around.objective("empty", "empty-batch", -1), around.picker("empty") as found:
        yield found


class TestNoPods:
    def test_status(self, empty: Picker) -> None:
        """A pool without pods: 503."""
        assert refuse(empty).status == 503

    @pytest.mark.differs(go=TEXT)
    def test_text(self, empty: Picker) -> None:
        """The text says so."""
        assert refuse(empty).body == (
            "inference error: ServiceUnavailable - failed to find endpoint candidates for serving the request"
        )

    @pytest.mark.differs(go=REASON)
    def test_reason(self, empty: Picker) -> None:
        """The dropped-reason header says so."""
        assert refuse(empty).reason == "rejected-no-endpoints"

    @pytest.mark.differs(go="v1.3 answers 500 where the specification says 503")
    def test_without_a_body(self, empty: Picker) -> None:
        """A request without body is refused alike."""
        found = refuse(empty, b"", method="GET", path="/v1/models")
        assert found.status == 503
        assert found.reason == "rejected-no-endpoints"

    def test_bad_requests_first(self, empty: Picker) -> None:
        """A bad request is told so even where there are no pods."""
        assert refuse(empty, b"nonsense").status == 400

    @pytest.mark.differs(go=OBJECTIVES)
    def test_sheddable(self, empty: Picker) -> None:
        """A pool without pods counts as saturated: a sheddable request gets 429."""
        headers = {"x-gateway-inference-objective": "empty-batch"}
        found = eventually(lambda: refuse(empty, headers=headers), lambda found: found.status == 429)
        assert "system saturated, sheddable request dropped" in found.body

    def test_the_picker_is_ready(self, empty: Picker) -> None:
        """A pool without pods is known: the picker is ready to say no."""
        assert empty.health.check("") == "SERVING"


@pytest.fixture(scope="module")
def busy(around: World) -> Iterator[tuple[Picker, Pool]]:
    """A pool whose engines have long queues and full caches; ``busy-batch`` may be shed, ``busy-online`` not."""
    with (
        around.pool("busy", engines=2) as pool,
        around.objective("busy", "busy-batch", -1),
        around.objective("busy", "busy-online", 10),
        around.picker("busy") as found,
    ):
        yield found, pool


@pytest.fixture
def saturated(busy: tuple[Picker, Pool]) -> Picker:
    """The picker, and its engines saturated."""
    _load(busy, {"waiting": 50, "kv": 0.99})
    return busy[0]


def _load(busy: tuple[Picker, Pool], gauges: dict[str, Any]) -> None:
    """Show the same figures on both engines, and wait until the picker has seen them."""
    picker, pool = busy
    pool.show(gauges, gauges)
    wanted = len(pool.engines) * gauges["waiting"]
    eventually(lambda: picker.metrics().value("inference_pool_per_pod_queue_size", name="busy") == wanted)


SHED = {"x-gateway-inference-objective": "busy-batch"}


class TestSaturated:
    @pytest.mark.differs(go=OBJECTIVES)
    def test_sheddable(self, saturated: Picker) -> None:
        """Priority below zero: 429."""
        found = eventually(lambda: refuse(saturated, headers=SHED))
        assert found.status == 429
        assert "system saturated, sheddable request dropped" in found.body

    @pytest.mark.differs(go=TEXT)
    def test_text(self, saturated: Picker) -> None:
        """The text has the class ResourceExhausted."""
        found = eventually(lambda: refuse(saturated, headers=SHED))
        assert found.body == "inference error: ResourceExhausted - system saturated, sheddable request dropped"

    @pytest.mark.differs(go=REASON)
    def test_reason(self, saturated: Picker) -> None:
        """The dropped-reason header is there."""
        assert eventually(lambda: refuse(saturated, headers=SHED)).reason == "rejected-saturated"

    @pytest.mark.differs(go=FAMILY)
    def test_the_other_header(self, saturated: Picker) -> None:
        """x-llm-d-inference-objective means the same."""
        headers = {"x-llm-d-inference-objective": "busy-batch"}
        assert eventually(lambda: refuse(saturated, headers=headers)).status == 429

    @pytest.mark.parametrize("name", ["busy-online", "nobody", ""])
    def test_others_are_served(self, saturated: Picker, busy: tuple[Picker, Pool], name: str) -> None:
        """Priority zero and above, an unknown objective, none: routed."""
        assert route(saturated, headers={"x-gateway-inference-objective": name}).destination in busy[1].hostports

    @pytest.mark.differs(go=OBJECTIVES)
    @pytest.mark.parametrize("gauges", [{"waiting": 50, "kv": 0.1}, {"waiting": 0, "kv": 0.95}], ids=["queue", "cache"])
    def test_either_is_enough(self, busy: tuple[Picker, Pool], gauges: dict[str, Any]) -> None:
        """A long queue or a full cache, either saturates."""
        _load(busy, gauges)
        assert eventually(lambda: refuse(busy[0], headers=SHED)).status == 429

    def test_room_again(self, busy: tuple[Picker, Pool]) -> None:
        """When the engines have room, sheddable requests are served."""
        _load(busy, {"waiting": 0, "kv": 0.25})
        assert eventually(lambda: route(busy[0], headers=SHED)).destination in busy[1].hostports


FILTERED = DEFAULT.replace("- type: queue-scorer", "- type: header-based-testing-filter\n- type: queue-scorer").replace(
    "  - {pluginRef: queue-scorer", "  - pluginRef: header-based-testing-filter\n  - {pluginRef: queue-scorer"
)
SELECT = "test-epp-endpoint-selection"


@pytest.fixture(scope="module")
def filtered(around: World, main_pool: Pool) -> Iterator[Picker]:
    """A picker with the filter that takes its endpoints from a header."""
    with around.picker(main_pool.name, config=FILTERED) as found:
        yield found


class TestFiltered:
    """The plugin header-based-testing-filter, which gateways' conformance tests are made with."""

    def test_chosen(self, filtered: Picker, main_pool: Pool) -> None:
        """The header names the address."""
        for engine in main_pool.engines:
            assert route(filtered, headers={SELECT: engine.address}).destination == engine.hostport

    def test_with_a_port(self, filtered: Picker, main_pool: Pool) -> None:
        """Or address and port."""
        for hostport in main_pool.hostports:
            assert route(filtered, headers={SELECT: hostport}).destination == hostport

    def test_one_of_several(self, filtered: Picker, main_pool: Pool) -> None:
        """Several, with commas."""
        wanted = main_pool.hostports[:2]
        header = {SELECT: ", ".join(each.partition(":")[0] for each in wanted)}
        assert {route(filtered, headers=header).destination for _ in range(12)} <= set(wanted)

    def test_nobody(self, filtered: Picker) -> None:
        """Filters that leave nobody: 429."""
        found = refuse(filtered, headers={SELECT: "10.9.9.9"})
        assert found.status == 429
        assert "failed to find target" in found.body

    @pytest.mark.differs(go=TEXT)
    def test_text(self, filtered: Picker) -> None:
        """The text in full."""
        found = refuse(filtered, headers={SELECT: "10.9.9.9"})
        assert found.body.startswith("inference error: ResourceExhausted - failed to find target endpoint: ")

    @pytest.mark.differs(go=REASON)
    def test_reason(self, filtered: Picker) -> None:
        """The dropped-reason header."""
        assert refuse(filtered, headers={SELECT: "10.9.9.9"}).reason == "rejected-saturated"


class TestPrecondition:
    """``prefer: if-available``: serve only where the prompt's prefix is cached."""

    HEADERS = (("prefer", "if-available"),)

    @pytest.mark.differs(go="v1.3 does not know the header")
    def test_cold(self, picker: Picker) -> None:
        """Nobody knows the prompt: 412."""
        found = refuse(picker, None, dict(self.HEADERS))
        assert found.status == 412
        assert found.body.startswith("inference error: PreconditionFailed - ")

    def test_warm(self, picker: Picker) -> None:
        """Somebody knows it: routed there."""
        body = completion("a prompt that somebody has seen before " * 30 + "warm")
        known = route(picker, body).destination
        assert route(picker, body, dict(self.HEADERS)).destination == known
