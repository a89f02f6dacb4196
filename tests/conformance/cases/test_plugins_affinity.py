# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins that look at who asks and what for: sessions, agents, labels, lengths, pictures, bursts, peers."""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, completion, destinations, fresh, refuse, route, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

pytestmark = pytest.mark.differs(go="plugins of later versions")

Pickers = Callable[[str], Picker]


def one(kind: str, parameters: str = "{}", *more: str) -> str:
    """A configuration with one plugin, and perhaps others."""
    return "plugins:\n" + "".join(f"- {each}\n" for each in (f"{{type: {kind}, parameters: {parameters}}}", *more))


def goes_to(found: Picker, wanted: set[str], make: Callable[[], bytes] = fresh, **more: Any) -> bool:
    """Wait until requests go to just these endpoints."""
    times = 8 if len(wanted) == 1 else 45
    return eventually(lambda: destinations(found, times, make, **more), lambda seen: seen == wanted) == wanted


def answered(found: Picker, headers: dict[str, str] | None = None, **more: Any) -> tuple[str, dict[str, str]]:
    """Where a request goes, and the headers that its answer gets."""
    with talk(found) as one_talk:
        outcome = one_talk.ask(None, headers, **more)
        assert isinstance(outcome, Routed)
        one_talk.stream.send(wire.response_headers(200, wire.JSON))
        return outcome.destination, wire.headers_of(one_talk.stream.receive())


class TestSessionToken:
    @pytest.mark.parametrize("kind", ["session-affinity-scorer", "session-affinity-filter"])
    def test_the_token_leads_back(self, configured: Pickers, pool: Pool, kind: str) -> None:
        """The answer has a token; a request with it goes to the same engine."""
        found = configured(one(kind, "{}", "type: max-score-picker"))
        first, headers = answered(found)
        assert goes_to(found, {first}, headers={"x-session-token": headers["x-session-token"]})
        assert goes_to(found, set(pool.hostports))

    def test_what_the_token_is(self, configured: Pickers, pool: Pool) -> None:
        """It is namespace and name of the endpoint, in base64."""
        found = configured(one("session-affinity-scorer"))
        place, headers = answered(found)
        namespace, name = base64.b64decode(headers["x-session-token"]).decode().split("/")
        assert namespace == pool.space.name
        assert name.startswith(pool.pod(pool.hostports.index(place)))

    @pytest.mark.parametrize("token", ["nonsense!", base64.b64encode(b"other/pod").decode(), ""])
    def test_a_token_that_leads_nowhere(self, configured: Pickers, pool: Pool, token: str) -> None:
        """Tokens that make no sense, or name nobody, are passed over."""
        found = configured(one("session-affinity-filter"))
        assert goes_to(found, set(pool.hostports), headers={"x-session-token": token})

    def test_another_header(self, configured: Pickers, pool: Pool) -> None:
        """The header's name can be chosen."""
        found = configured(one("session-affinity-filter", "{encodedEndpointHeaderConfig: {header: X-Mine}}"))
        first, headers = answered(found)
        assert goes_to(found, {first}, headers={"x-mine": headers["x-mine"]})

    def test_the_scorer_only_prefers(self, configured: Pickers, pool: Pool) -> None:
        """The scorer is outweighed by others, the filter is not."""
        token = answered(configured(one("session-affinity-scorer")), hint=[pool.hostports[0]])[1]["x-session-token"]
        pool.show({"kv": 0.9}, {"kv": 0.0}, {"kv": 0.9})
        profile = "schedulingProfiles:\n- {name: p, plugins: [{pluginRef: %s}, {pluginRef: kv, weight: 5}]}\n"
        for kind, best in (("session-affinity-scorer", 1), ("session-affinity-filter", 0)):
            found = configured(one(kind, "{}", "{type: kv-cache-utilization-scorer, name: kv}") + profile % kind)
            assert goes_to(found, {pool.hostports[best]}, headers={"x-session-token": token})


class TestSessionId:
    CONFIG = one(
        "session-affinity-filter",
        "{strategy: session_id, sessionIdConfig: {sources: "
        "[{header: x-session-id}, {cookie: sid}, {attribute: agent-identity}]}}",
        "type: agent-identity",
        "type: random-picker",
    )

    @pytest.mark.parametrize("name", ["x-session-id", "cookie", "x-claude-code-session-id", "session_id"])
    def test_a_session_stays(self, configured: Pickers, pool: Pool, name: str) -> None:
        """A session keeps its engine: by header, cookie, or an agent's own header."""
        value = uuid.uuid4().hex
        headers = {name: f"a=b; sid={value}; c=d" if name == "cookie" else value}
        found = configured(self.CONFIG)
        first = route(found, headers=headers).destination
        assert destinations(found, 12, headers=headers) == {first}
        assert goes_to(found, set(pool.hostports))

    def test_another_session(self, configured: Pickers, pool: Pool) -> None:
        """Sessions are spread."""
        found = configured(self.CONFIG)
        seen = {route(found, headers={"x-session-id": uuid.uuid4().hex}).destination for _ in range(40)}
        assert seen == set(pool.hostports)

    def test_an_engine_that_may_not_be_chosen(self, configured: Pickers, pool: Pool) -> None:
        """A session whose engine is not in the subset moves, and stays where it moved."""
        found = configured(self.CONFIG)
        headers = {"x-session-id": uuid.uuid4().hex}
        first = route(found, headers=headers).destination
        others = [each for each in pool.hostports if each != first]
        second = route(found, headers=headers, hint=others).destination
        assert second in others
        assert destinations(found, 12, headers=headers) == {second}


def test_an_agent_is_a_flow(configured: Pickers, pool: Pool) -> None:
    """agent-identity: requests of an agent's session have its identifier as their fairness ID."""
    found = configured(one("agent-identity", "{additionalSessionHeaders: [x-my-agent]}"))
    route(found, headers={"x-my-agent": "agent-7", "session-id": "no"})
    route(found, headers={"x-my-agent": "agent-8", "x-llm-d-inference-fairness-id": "team-1"})
    name = "llm_d_epp_request_total"
    eventually(lambda: found.metrics().value(name, fairness_id="agent-7") == 1)
    assert found.metrics().value(name, fairness_id="team-1") == 1
    assert found.metrics().value(name, fairness_id="agent-8") == 0


class TestLabels:
    @pytest.mark.parametrize(
        ("plugin", "kept"),
        [
            ("type: decode-filter", {0, 3}),
            ("type: prefill-filter", {1}),
            ("type: encode-filter", {2}),
            ("{type: by-label, parameters: {label: gpu, validValues: [h100, h200]}}", {0, 2}),
            ("{type: by-label, parameters: {label: gpu, validValues: [h100], allowsNoLabel: true}}", {0, 3}),
            ("{type: label-selector-filter, parameters: {matchLabels: {zone: b}}}", {1, 2}),
            ("{type: by-label-selector, parameters: {matchLabels: {zone: b, gpu: l4}}}", {1}),
            (
                "{type: label-selector-filter, parameters: "
                "{matchExpressions: [{key: gpu, operator: NotIn, values: [l4]}]}}",
                {0, 2, 3},
            ),
            (
                "{type: label-selector-filter, parameters: {matchExpressions: [{key: gpu, operator: DoesNotExist}]}}",
                {3},
            ),
        ],
        ids=["decode", "prefill", "encode", "values", "or none", "labels", "two labels", "not in", "does not exist"],
    )
    def test_filters(self, by_label: Pickers, labelled: Pool, plugin: str, kept: set[int]) -> None:
        """Pods by their labels."""
        found = by_label(f"plugins:\n- {plugin}\n")
        assert goes_to(found, {labelled.hostports[number] for number in kept})

    def test_filters_run_in_order_until_nobody_is_left(self, by_label: Pickers, labelled: Pool) -> None:
        """Two filters that have nobody in common: 429, and the reason."""
        zone = "{type: label-selector-filter, parameters: {matchLabels: {zone: a}}}"
        outcome = refuse(by_label(f"plugins:\n- {zone}\n- type: encode-filter\n"))
        assert (outcome.status, outcome.reason) == (429, "rejected-saturated")

    def test_labels_that_change(self, around: World, by_label: Pickers, labelled: Pool) -> None:
        """A pod that gets another label is another pod."""
        found = by_label("plugins:\n- {type: label-selector-filter, parameters: {matchLabels: {gpu: h100}}}\n")
        assert goes_to(found, {labelled.hostports[0]})
        around.space.patch_pod(labelled.pod(3), labels={"gpu": "h100"})
        try:
            assert goes_to(found, {labelled.hostports[0], labelled.hostports[3]})
        finally:
            around.space.patch_pod(labelled.pod(3), labels={"gpu": None})

    def test_a_header_names_a_label(self, by_label: Pickers, labelled: Pool) -> None:
        """header-label-affinity-scorer: the header's value is preferred; the answer says what it was."""
        found = by_label(one("header-label-affinity-scorer", "{headerName: X-GPU, labelKey: gpu}"))
        assert goes_to(found, {labelled.hostports[2]}, headers={"x-gpu": "h200"})
        assert answered(found, {"x-gpu": "h200"})[1]["x-gpu"] == "h200"
        assert goes_to(found, set(labelled.hostports), headers={"x-gpu": "none of them"})


class TestRollout:
    """disaggregatedset-rollout-screener, with zones for revisions: b has both roles, a lacks one."""

    CONFIG = """\
plugins:
- type: disaggregatedset-rollout-screener
  parameters:
    scope: {labelSelector: "zone in (a, b)"}
    headerSelectors: [{name: zone, headerName: x-zone, labelKey: zone, mode: strict}]
    revisionGating:
      mode: max-role
      requireRoles: {values: [prefill, encode]}
      revisionLabelKey: zone
      roleLabelKey: llm-d.ai/role
- type: random-picker
schedulingProfiles: [{name: default, plugins: [{pluginRef: random-picker}]}]
"""

    def test_one_revision(self, by_label: Pickers, labelled: Pool) -> None:
        """Requests go to revisions that have all roles; one that lacks a role is refused, and so is an unknown one."""
        found = by_label(self.CONFIG)
        assert destinations(found, 40) == {labelled.hostports[1], labelled.hostports[2]}
        assert route(found, headers={"x-zone": "b"}).destination in labelled.hostports[1:3]
        for zone in ("a", "z"):
            assert refuse(found, headers={"x-zone": zone}).status == 503

    def test_the_answer_names_it(self, by_label: Pickers, labelled: Pool) -> None:
        """Whoever asks the other role can ask for the same revision."""
        with talk(by_label(self.CONFIG)) as one:
            one.ask()
            one.stream.send(wire.response_headers(200, wire.JSON))
            assert wire.headers_of(one.stream.receive())["x-zone"] == "b"


class TestContextLength:
    @pytest.mark.parametrize(("size", "best"), [(100, 0), (4000, 1), (40_000, 2)])
    def test_the_narrowest_range_that_fits(self, by_label: Pickers, labelled: Pool, size: int, best: int) -> None:
        """A prompt goes to the engine whose range has it."""
        found = by_label(one("context-length-aware"))
        assert goes_to(found, {labelled.hostports[best]}, lambda: completion("w" * size))

    def test_as_a_filter(self, by_label: Pickers, labelled: Pool) -> None:
        """enableFiltering: only those whose range has it, and those without one."""
        found = by_label(one("context-length-aware", "{enableFiltering: true}", "type: random-picker"))
        assert goes_to(found, {labelled.hostports[1], labelled.hostports[3]}, lambda: completion("w" * 4000))


def picture(url: str, words: str) -> bytes:
    """A chat with an image."""
    parts = [{"type": "text", "text": words}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode()


def test_a_picture_goes_where_it_has_been(configured: Pickers, pool: Pool) -> None:
    """mm-embeddings-cache-scorer: the same image, other words, the same engine."""
    found = configured(one("mm-embeddings-cache-scorer"))
    for number in range(3):
        url = f"http://pictures/{uuid.uuid4()}/{number}.png"
        first = route(found, picture(url, "one"), path="/v1/chat/completions").destination
        again = {route(found, picture(url, str(each)), path="/v1/chat/completions").destination for each in range(6)}
        assert again == {first}


def test_a_burst_stays_together(configured: Pickers, pool: Pool) -> None:
    """burst-prefix-cache-producer: requests with one prompt that come together go to one engine."""
    found = configured(
        one(
            "burst-prefix-cache-producer",
            "{windowDurationMs: 20000}",
            "{type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: burst-prefix-cache-producer}}",
        )
    )
    for _ in range(3):
        body = completion(f"{uuid.uuid4()} " * 40)
        with contextlib.ExitStack() as stack:
            places = set()
            for _ in range(6):
                each = stack.enter_context(talk(found)).ask(body)
                assert isinstance(each, Routed)
                places.add(each.destination)
        assert len(places) == 1


class TestPeers:
    CONFIG = one("p2p-source-producer", "{}", "type: queue-scorer")
    HEADER = "x-kv-cache-source-host-port"

    def test_who_holds_the_prompt(self, configured: Pickers, pool: Pool) -> None:
        """The request names the engine that holds its prompt, if it goes to another."""
        found = configured(self.CONFIG)
        body = completion(f"{uuid.uuid4()} " * 100)
        assert self.HEADER not in route(found, body, hint=[pool.hostports[0]]).headers
        pool.show({"waiting": 400}, {"waiting": 0}, {"waiting": 0})
        assert goes_to(found, set(pool.hostports[1:]))
        outcome = route(found, body)
        assert outcome.destination != pool.hostports[0]
        assert outcome.headers[self.HEADER] == pool.hostports[0]

    def test_clients_cannot_say_so(self, configured: Pickers, pool: Pool) -> None:
        """What a client writes there is taken away."""
        found = configured(self.CONFIG)
        outcome = route(found, fresh(), {self.HEADER: "10.6.6.6:1"})
        mutation = wire.common(outcome.replies[0]).header_mutation
        assert mutation is not None
        assert self.HEADER in mutation.remove_headers


class TestReports:
    def last(self, found: Picker, answer: bytes) -> dict[str, Any]:
        """The dynamic metadata with the end of an answer."""
        with talk(found) as one_talk:
            one_talk.ask()
            one_talk.stream.send(wire.response_headers(200, wire.JSON))
            one_talk.stream.receive()
            one_talk.stream.send(wire.response_body(answer))
            return wire.metadata_of(one_talk.stream.receive())

    USAGE = b'{"usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}}'

    def test_what_it_cost(self, configured: Pickers, pool: Pool) -> None:
        """request-attribute-reporter: a figure from the usage goes with the last piece of the answer."""
        expression = "usage.prompt_tokens + 4.0 * usage.completion_tokens"
        attribute = f'{{key: {{name: x-gateway-inference-request-cost}}, expression: "{expression}"}}'
        found = configured(one("request-attribute-reporter", f"{{attributes: [{attribute}]}}"))
        assert self.last(found, self.USAGE) == {"envoy.lb": {"x-gateway-inference-request-cost": 180}}
        assert self.last(found, b"{}") == {}

    def test_only_if(self, configured: Pickers, pool: Pool) -> None:
        """A condition that does not hold: nothing is told."""
        attribute = '{key: {namespace: mine, name: c}, expression: "1", condition: "usage.total_tokens > %d.0"}'
        config = one("request-attribute-reporter", f"{{attributes: [{attribute % 119}]}}")
        assert self.last(configured(config), self.USAGE) == {"mine": {"c": 1}}
        config = one("request-attribute-reporter", f"{{attributes: [{attribute % 120}]}}")
        assert self.last(configured(config), self.USAGE) == {}
