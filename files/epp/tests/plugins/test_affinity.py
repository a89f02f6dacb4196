# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins that look at who is asking, and at labels."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from epp.config import ConfigError
from epp.datalayer.sessions import Sessions
from epp.model import Decision

ROLES = ["prefill", "decode", "prefill-decode", "both", "encode", "encode-prefill", "encode-prefill-decode", "other"]


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("decode-filter", {"decode", "prefill-decode", "both", "encode-prefill-decode", None}),
        ("prefill-filter", {"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"}),
        ("encode-filter", {"encode", "encode-prefill", "encode-prefill-decode"}),
    ],
)
def test_roles(kit: Any, kind: str, kept: set[str | None]) -> None:
    pods = [kit.endpoint(number, **{"llm_d.ai__role": role}) for number, role in enumerate(ROLES)]
    pods.append(kit.endpoint(len(ROLES)))
    found = kit.make(kind).filter(kit.ask(), pods)
    assert {pod.labels.get("llm-d.ai/role") for pod in found} == kept
    assert found == [pod for pod in pods if pod in found], "the order stays"


@pytest.mark.parametrize(("unlabelled", "kept"), [(False, [0, 1]), (True, [0, 1, 3])])
def test_by_label(kit: Any, unlabelled: bool, kept: list[int]) -> None:
    pods = [kit.endpoint(0, gpu="h100"), kit.endpoint(1, gpu="h200"), kit.endpoint(2, gpu="l4"), kit.endpoint(3)]
    filter_ = kit.make("by-label", label="gpu", valid_values=("h100", "h200"), allows_no_label=unlabelled)
    assert filter_.filter(kit.ask(), pods) == [pods[number] for number in kept]


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        ("{}", [0, 1, 2]),
        ("{matchLabels: {gpu: h100}}", [0]),
        ("{matchLabels: {gpu: h100, zone: b}}", []),
        ("{matchExpressions: [{key: gpu, operator: In, values: [h100, l4]}]}", [0, 1]),
        ("{matchExpressions: [{key: gpu, operator: NotIn, values: [h100]}]}", [1, 2]),
        ("{matchExpressions: [{key: gpu, operator: Exists}]}", [0, 1]),
        ("{matchExpressions: [{key: gpu, operator: DoesNotExist}]}", [2]),
        ("{matchLabels: {zone: a}, matchExpressions: [{key: gpu, operator: Exists}]}", [0]),
    ],
)
@pytest.mark.parametrize("kind", ["label-selector-filter", "by-label-selector"])
def test_label_selector(kit: Any, kind: str, selector: str, kept: list[int]) -> None:
    pods = [kit.endpoint(0, gpu="h100", zone="a"), kit.endpoint(1, gpu="l4", zone="b"), kit.endpoint(2, zone="a")]
    rig = kit.rig(f"plugins:\n- type: {kind}\n  parameters: {selector}\n", pods)
    assert rig.plugin(kind).filter(kit.ask(), pods) == [pods[number] for number in kept]


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("{matchExpressions: [{key: a, operator: in, values: [b]}]}", "known are DoesNotExist, Exists, In, NotIn"),
        ("{matchExpressions: [{key: a, values: [b]}]}", "operator is missing"),
        ("{matchExpressions: [{key: a, operator: In}]}", "In and NotIn need some"),
        ("{matchExpressions: [{key: a, operator: Exists, values: [b]}]}", "the others none"),
    ],
)
def test_selectors_that_make_no_sense(kit: Any, selector: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        kit.parameters("label-selector-filter", selector)


@pytest.mark.parametrize(("kind", "text"), [("by-label", '{label: ""}'), ("context-length-aware", '{label: ""}')])
def test_a_label_is_needed(kit: Any, kind: str, text: str) -> None:
    with pytest.raises(ConfigError, match="label is empty"):
        kit.parameters(kind, text)


class TestHeaderLabel:
    def test_the_formula(self, kit: Any) -> None:
        scorer = kit.make("header-label-affinity-scorer", header_name="X-Zone", label_key="zone")
        pods = [kit.endpoint(0, zone="a"), kit.endpoint(1, zone="b"), kit.endpoint(2)]
        assert scorer.score(kit.ask(headers={"x-zone": "b"}), pods) == [0.0, 1.0, 0.0]
        assert scorer.score(kit.ask(headers={"x-zone": "c"}), pods) == [0.0, 0.0, 0.0]
        assert scorer.score(kit.ask(), pods) == [0.0, 0.0, 0.0]

    @pytest.mark.parametrize(
        ("stamp", "labels", "headers"),
        [(True, {"zone": "a"}, {"x-zone": "a"}), (True, {}, {}), (False, {"zone": "a"}, {})],
    )
    def test_the_answer(self, kit: Any, stamp: bool, labels: dict[str, str], headers: dict[str, str]) -> None:
        scorer = kit.make(
            "header-label-affinity-scorer", header_name="X-Zone", label_key="zone", stamp_response_header=stamp
        )
        assert scorer.response_received("", kit.ask(), Decision((kit.endpoint(**labels),))) == headers
        assert scorer.response_received("", None, None) == {}

    def test_names_are_needed(self, kit: Any) -> None:
        with pytest.raises(ConfigError, match="headerName and labelKey"):
            kit.parameters("header-label-affinity-scorer", '{headerName: "", labelKey: x}')


def token(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class TestSessionsByToken:
    @pytest.mark.parametrize(
        ("sent", "scores"),
        [
            (token("ns/e1"), [0.0, 1.0]),
            (token("ns/e9"), [0.0, 0.0]),
            (token("other/e1"), [0.0, 0.0]),
            ("no base64!", [0.0, 0.0]),
            (base64.b64encode(b"\xff\xfe").decode(), [0.0, 0.0]),
            ("", [0.0, 0.0]),
        ],
    )
    def test_the_formula(self, kit: Any, sent: str, scores: list[float]) -> None:
        pods = kit.endpoints(2)
        request = kit.ask(headers={"x-session-token": sent})
        assert kit.make("session-affinity-scorer").score(request, pods) == scores
        kept = kit.make("session-affinity-filter").filter(request, pods)
        assert kept == ([pods[1]] if 1.0 in scores else pods)

    def test_the_answer_has_the_token(self, kit: Any) -> None:
        scorer = kit.make("session-affinity-scorer")
        pods = kit.endpoints(2)
        decision = Decision(tuple(pods))
        assert scorer.response_received("", kit.ask(), decision) == {"x-session-token": token("ns/e0")}
        served = scorer.response_received(pods[1].hostport, kit.ask(), decision)
        assert served == {"x-session-token": token("ns/e1")}, "a fallback has answered"
        assert scorer.response_received("", None, None) == {}

    def test_another_header_and_another_profile(self, kit: Any) -> None:
        parameters = kit.parameters(
            "session-affinity-scorer",
            "{profileName: prefill, encodedEndpointHeaderConfig: {header: X-Prefiller}}",
        )
        scorer = kit.make("session-affinity-scorer", **vars(parameters))
        decoder, prefiller = kit.endpoints(2)
        split = Decision((decoder,), profiles={"decode": (decoder,), "prefill": (prefiller,)})
        assert scorer.response_received("", kit.ask(), split) == {"x-prefiller": token("ns/e1")}
        assert scorer.response_received("", kit.ask(), Decision((decoder,), profiles={"decode": (decoder,)})) == {}


CONFIG = """\
plugins:
- type: agent-identity
- type: session-id-producer
- type: session-affinity-filter
  parameters:
    strategy: session_id
    sessionIdConfig:
      sources: [{header: X-Session-Id}, {cookie: sid}, {attribute: agent-identity}, {attribute: session-id}]
      evictionTtlSeconds: 60
- type: random-picker
"""


class TestSessionsById:
    @pytest.mark.parametrize(
        "headers",
        [
            {"x-session-id": "s"},
            {"cookie": 'a=b; sid="s"; c=d'},
            {"x-claude-code-session-id": "s"},
            {"session_id": "s"},
        ],
        ids=["header", "cookie", "agent", "older agent"],
    )
    def test_a_session_stays(self, kit: Any, headers: dict[str, str]) -> None:
        rig = kit.rig(CONFIG, kit.endpoints(5))
        first = rig.send(kit.ask(headers=headers)).endpoints[0]
        assert {rig.send(kit.ask(headers=headers)).endpoints[0] for _ in range(20)} == {first}
        assert len({rig.send(kit.ask()).endpoints[0] for _ in range(40)}) == 5, "others go anywhere"

    def test_a_session_moves_when_its_endpoint_is_gone(self, kit: Any) -> None:
        rig = kit.rig(CONFIG, kit.endpoints(3))
        headers = {"x-session-id": "s"}
        first = rig.send(kit.ask(headers=headers)).endpoints[0]
        rig.datastore.replace([pod for pod in rig.endpoints if pod is not first])
        second = rig.send(kit.ask(headers=headers)).endpoints[0]
        assert second is not first
        rig.datastore.replace(rig.endpoints)
        assert {rig.send(kit.ask(headers=headers)).endpoints[0] for _ in range(20)} == {second}

    def test_a_session_moves_when_its_endpoint_is_no_candidate(self, kit: Any) -> None:
        rig = kit.rig(CONFIG, kit.endpoints(2))
        headers = {"x-session-id": "s"}
        first = rig.send(kit.ask(headers=headers)).endpoints[0]
        other = next(pod for pod in rig.endpoints if pod is not first)
        request = kit.ask(headers=headers)
        decision = rig.scheduler.schedule(request, [other])
        rig.scheduler.pre_request(request, decision)
        assert rig.send(kit.ask(headers=headers)).endpoints[0] is other

    def test_nothing_is_told_to_clients(self, kit: Any) -> None:
        rig = kit.rig(CONFIG, kit.endpoints(2))
        request = kit.ask(headers={"x-session-id": "s"})
        assert rig.scheduler.response_received("", request, rig.send(request)) == {}

    def test_one_place_per_source(self, kit: Any) -> None:
        for source in ("{}", "{header: a, cookie: b}"):
            with pytest.raises(ConfigError, match="name one place"):
                kit.parameters("session-affinity-scorer", f"{{sessionIdConfig: {{sources: [{source}]}}}}")

    def test_an_attribute_that_is_no_text(self, kit: Any) -> None:
        parameters = kit.parameters(
            "session-affinity-scorer", "{strategy: session_id, sessionIdConfig: {sources: [{attribute: media}]}}"
        )
        request = kit.ask()
        request.attributes["media"] = ()
        assert kit.make("session-affinity-scorer", **vars(parameters)).bound(request, kit.endpoints(1)) is None


class TestSessions:
    def test_they_expire_when_they_are_not_used(self, kit: Any) -> None:
        now = [100.0]
        sessions = Sessions(10, 100, clock=lambda: now[0])
        first, second = kit.endpoints(2)
        sessions.bind("a", first)
        sessions.bind("b", second)
        now[0] = 108.0
        assert sessions.endpoint("a") is first
        now[0] = 111.0
        assert sessions.endpoint("b") is None
        assert sessions.endpoint("a") is first
        assert (len(sessions), sessions.count(first), sessions.count(second)) == (1, 1, 0)

    def test_they_are_bounded(self, kit: Any) -> None:
        sessions = Sessions(10, 2)
        (pod,) = kit.endpoints(1)
        for name in "abc":
            sessions.bind(name, pod)
        assert sessions.endpoint("a") is None
        assert sessions.count(pod) == 2
        sessions.forget("nobody")
        sessions.drop(pod)
        assert (len(sessions), sessions.count(pod)) == (0, 0)


class TestSessionId:
    @pytest.mark.parametrize(
        ("parameters", "headers", "found"),
        [
            ({}, {"x-session-id": "s"}, "s"),
            ({"header_name": "X-Mine"}, {"x-mine": "s"}, "s"),
            ({"cookie_name": "sid"}, {"cookie": "other=1; sid=s"}, "s"),
            ({"cookie_name": "sid"}, {"cookie": "sid2=1"}, None),
            ({}, {}, None),
        ],
    )
    def test_where_it_stands(
        self, kit: Any, parameters: dict[str, str], headers: dict[str, str], found: str | None
    ) -> None:
        request = kit.ask(headers=headers)
        kit.make("session-id-producer", **parameters).produce(request, [])
        assert request.attributes.get("session-id") == found

    def test_not_both(self, kit: Any) -> None:
        with pytest.raises(ConfigError, match="exclude each other"):
            kit.parameters("session-id-producer", "{headerName: a, cookieName: b}")


class TestAgents:
    @pytest.mark.parametrize(
        ("headers", "agent"),
        [
            ({"x-claude-code-session-id": "1", "session-id": "2"}, "1"),
            ({"x-session-affinity": "1", "session-id": "2"}, "1"),
            ({"session-id": "1", "session_id": "2"}, "1"),
            ({"session_id": "1"}, "1"),
            ({"x-mine": "0", "session_id": "1"}, "0"),
            ({"x-claude-code-session-id": "", "session_id": "1"}, "1"),
        ],
    )
    def test_the_first_that_is_there(self, kit: Any, headers: dict[str, str], agent: str) -> None:
        plugin = kit.make("agent-identity", additional_session_headers=("X-Mine",))
        request = kit.ask(headers=headers)
        plugin.request_headers(request)
        assert (request.fairness_id, request.attributes["agent-identity"]) == (agent, agent)

    def test_a_fairness_header_wins(self, kit: Any) -> None:
        request = kit.ask(headers={"session-id": "1"}, fairness_id="team")
        kit.make("agent-identity").request_headers(request)
        assert (request.fairness_id, request.attributes["agent-identity"]) == ("team", "1")

    def test_nobody(self, kit: Any) -> None:
        request = kit.ask()
        kit.make("agent-identity").request_headers(request)
        assert (request.fairness_id, request.attributes) == ("default-flow", {})
