# SPDX-License-Identifier: GPL-3.0-or-later
"""Profile handlers with more than one stage, and what they tell the proxies beside the engines."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, completion, destinations, fresh, refuse, route
from conformance.kit.wait import eventually
from conformance.kit.world import Pool

pytestmark = pytest.mark.differs(go="plugins of later versions")

Pickers = Callable[[str], Picker]

PREFILL, ENCODE = "x-prefiller-host-port", "x-encoder-hosts-ports"
PROFILES = """\
- type: decode-filter
- type: prefill-filter
- type: encode-filter
schedulingProfiles:
- {name: encode, plugins: [{pluginRef: encode-filter}]}
- {name: prefill, plugins: [{pluginRef: prefill-filter}]}
- {name: decode, plugins: [{pluginRef: decode-filter}]}
"""


def stages(*plugins: str) -> str:
    """A configuration with these plugins and a profile for each stage."""
    return "plugins:\n" + "".join(f"- {plugin}\n" for plugin in plugins) + PROFILES


def removed(outcome: Routed) -> set[str]:
    """Headers that are taken from the request."""
    mutation = wire.common(outcome.replies[0]).header_mutation
    return set(mutation.remove_headers) if mutation is not None else set()


def long_prompt() -> bytes:
    """One that nobody knows, of some thousand tokens."""
    return fresh()[:-2] + b"w" * 4000 + b'"}'


def picture() -> bytes:
    """A chat with an image."""
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "http://x/1.png"}}]
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode()


CHAT = "/v1/chat/completions"
THREE = stages(
    "type: always-disagg-pd-decider",
    "type: always-disagg-multimodal-decider",
    "{type: disagg-profile-handler, parameters: "
    "{deciders: {prefill: always-disagg-pd-decider, encode: always-disagg-multimodal-decider}}}",
)
"""In the labelled pool, 0 decodes (and 3, which has no label), 1 prefills, 2 encodes."""


class TestThreeStages:
    def test_a_picture(self, by_label: Pickers, labelled: Pool) -> None:
        """An image: encoded, prefilled and decoded by three engines."""
        outcome = route(by_label(THREE), picture(), path=CHAT)
        assert outcome.destination in (labelled.hostports[0], labelled.hostports[3])
        assert outcome.headers[PREFILL] == labelled.hostports[1]
        assert outcome.headers[ENCODE] == labelled.hostports[2]

    def test_text(self, by_label: Pickers, labelled: Pool) -> None:
        """Text is not encoded."""
        outcome = route(by_label(THREE), long_prompt())
        assert outcome.headers[PREFILL] == labelled.hostports[1]
        assert ENCODE not in outcome.headers

    def test_clients_cannot_choose(self, by_label: Pickers, labelled: Pool) -> None:
        """What a client writes into these headers is replaced, or taken away."""
        outcome = route(by_label(THREE), long_prompt(), {PREFILL: "10.6.6.6:1", ENCODE: "10.6.6.6:2"})
        assert outcome.headers[PREFILL] == labelled.hostports[1]
        assert removed(outcome) == {ENCODE}

    def test_stages_are_counted(self, by_label: Pickers, labelled: Pool) -> None:
        """The metrics say which stages were given to engines of their own."""
        found = by_label(THREE)
        name = "llm_d_epp_disagg_decision_total"
        before = found.metrics().value(name, decision_type="encode-prefill-decode")
        route(found, picture(), path=CHAT)
        eventually(lambda: found.metrics().value(name, decision_type="encode-prefill-decode") == before + 1)

    def test_nobody_prefills(self, by_label: Pickers, labelled: Pool) -> None:
        """Without anybody to prefill, the decoding engine does it all."""
        hint = [labelled.hostports[0]]
        outcome = route(by_label(THREE), long_prompt(), hint=hint)
        assert outcome.destination == hint[0]
        assert PREFILL not in outcome.headers

    def test_nobody_decodes(self, by_label: Pickers, labelled: Pool) -> None:
        """Without anybody to decode: 429, and the reason."""
        outcome = refuse(by_label(THREE), long_prompt(), hint=[labelled.hostports[1]])
        assert (outcome.status, outcome.reason) == (429, "rejected-saturated")


def decided(parameters: str) -> str:
    """Prefill by prefix-based-pd-decider."""
    return stages(
        f"{{type: prefix-based-pd-decider, parameters: {parameters}}}",
        "{type: disagg-profile-handler, parameters: {deciders: {prefill: prefix-based-pd-decider}}}",
    )


class TestPrefixDecider:
    @pytest.mark.parametrize(
        ("parameters", "size", "splits"),
        [
            ("{nonCachedTokens: 500}", 4000, True),
            ("{nonCachedTokens: 500}", 400, False),
            ("{nonCachedTokens: 0}", 4000, False),
            ("{nonCachedTokens: 16, promptTokens: 2000}", 4000, False),
            ("{nonCachedTokens: 16, promptTokens: 500}", 4000, True),
        ],
    )
    def test_how_long(self, by_label: Pickers, labelled: Pool, parameters: str, size: int, splits: bool) -> None:
        """Prompts with so many new tokens are prefilled elsewhere."""
        outcome = route(by_label(decided(parameters)), completion("w" * size))
        assert (PREFILL in outcome.headers) is splits


class TestOlderHandler:
    def test_a_threshold(self, by_label: Pickers, labelled: Pool) -> None:
        """pd-profile-handler with a threshold, and prefill-header-handler."""
        found = by_label(
            stages("type: prefill-header-handler", "{type: pd-profile-handler, parameters: {threshold: 1000}}")
        )
        assert route(found, long_prompt()).headers[PREFILL] == labelled.hostports[1]
        assert PREFILL not in route(found, completion("hi")).headers

    def test_a_decider(self, by_label: Pickers, labelled: Pool) -> None:
        """pd-profile-handler with a decider, and disagg-headers-handler."""
        found = by_label(
            stages(
                "type: disagg-headers-handler",
                "{type: prefix-based-pd-decider, parameters: {nonCachedTokens: 100}}",
                "{type: pd-profile-handler, parameters: {deciderPluginName: prefix-based-pd-decider}}",
            )
        )
        body = long_prompt()
        first = route(found, body, hint=labelled.hostports[:2])
        assert first.headers[PREFILL] == labelled.hostports[1]
        assert PREFILL not in route(found, body, hint=labelled.hostports[:2]).headers


class TestHeaderProfile:
    CONFIG = stages("type: header-profile-handler")

    @pytest.mark.parametrize(("name", "who"), [("prefill", {1}), ("encode", {2}), ("decode", {0, 3}), ("", {0, 3})])
    def test_the_header_names_the_profile(self, by_label: Pickers, labelled: Pool, name: str, who: set[int]) -> None:
        """EPP-Profile says which profile runs; decode without it."""
        found = by_label(self.CONFIG)
        wanted = {labelled.hostports[number] for number in who}
        headers = {"epp-profile": name} if name else {}
        eventually(lambda: destinations(found, 12, headers=headers), lambda seen: seen == wanted)

    def test_a_profile_that_does_not_exist(self, by_label: Pickers, labelled: Pool) -> None:
        """A name that no profile has: 429."""
        assert refuse(by_label(self.CONFIG), headers={"epp-profile": "nope"}).status == 429


class TestNear:
    def test_prefill_near_the_decoder(self, by_label: Pickers, labelled: Pool) -> None:
        """topology-affinity-filter: whoever prefills is in the decoder's zone, if anybody is."""
        config = """\
plugins:
- {type: topology-extractor, parameters: {hostnameLabel: none, zoneLabel: zone}}
- {type: label-selector-filter, name: decoders, parameters: {matchLabels: {gpu: h200}}}
- {type: topology-affinity-filter, parameters: {minAffinity: zone}}
- type: random-picker
- type: always-disagg-pd-decider
- {type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: decoders}]}
- {name: prefill, plugins: [{pluginRef: topology-affinity-filter}, {pluginRef: random-picker}]}
"""
        found = by_label(config)
        seen = {route(found, long_prompt()).headers[PREFILL] for _ in range(20)}
        assert seen == {labelled.hostports[1], labelled.hostports[2]}
