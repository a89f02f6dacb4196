# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers that tell a sidecar where the other halves of a request are, and the plugins that set them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, completion, fresh, route
from conformance.kit.world import Pool, World

pytestmark = pytest.mark.differs(go="plugins of later versions")

SPLIT = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: approx-prefix-cache-producer, parameters: {maxPrefixTokensToMatch: 16384, lruCapacityPerServer: 31250}}
- type: prefix-cache-scorer
- type: queue-scorer
- type: prefill-filter
- type: decode-filter
- type: max-score-picker
- {type: disagg-profile-handler, parameters: {deciders: {prefill: prefix-based-pd-decider}}}
- {type: prefix-based-pd-decider, parameters: {nonCachedTokens: 16}}
schedulingProfiles:
- name: prefill
  plugins:
  - pluginRef: prefill-filter
  - pluginRef: max-score-picker
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - {pluginRef: queue-scorer, weight: 1}
- name: decode
  plugins:
  - pluginRef: decode-filter
  - pluginRef: max-score-picker
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - {pluginRef: queue-scorer, weight: 1}
"""


@pytest.fixture(scope="module")
def split(around: World) -> Iterator[tuple[Picker, Pool]]:
    """A pool whose first pod only prefills, and whose others decode."""
    with around.pool("split") as pool:
        for number, role in enumerate(("prefill", "decode", "decode")):
            around.space.patch_pod(pool.pod(number), labels={"llm-d.ai/role": role})
        with around.picker("split", config=SPLIT) as found:
            yield found, pool


def long_prompt(found: Picker) -> Routed:
    """A prompt that nobody knows, of several hundred tokens."""
    return route(found, fresh()[:-2] + b"w" * 4000 + b'"}')


def test_a_long_prompt(split: tuple[Picker, Pool]) -> None:
    """A long new prompt: prefilled by the pod for that, decoded by another."""
    found, pool = split
    outcome = long_prompt(found)
    assert outcome.headers["x-prefiller-host-port"] == pool.hostports[0]
    assert outcome.destination in pool.hostports[1:]


def test_a_short_prompt(split: tuple[Picker, Pool]) -> None:
    """A short one is not worth it."""
    outcome = route(split[0], completion("hi"))
    assert "x-prefiller-host-port" not in outcome.headers
    assert outcome.destination in split[1].hostports[1:]


def test_a_known_prompt(split: tuple[Picker, Pool]) -> None:
    """Nor is one that the decoding pod knows already."""
    body = completion("a prompt that comes again " * 100)
    first = route(split[0], body)
    again = route(split[0], body)
    assert first.headers["x-prefiller-host-port"] == split[1].hostports[0]
    assert "x-prefiller-host-port" not in again.headers
    assert again.destination == first.destination


RANKS = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: max-score-picker
- {type: data-parallel-profile-handler, parameters: {primaryPort: 8000}}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer}, {pluginRef: max-score-picker}]
"""


def test_ranks(around: World) -> None:
    """data-parallel-profile-handler: requests go to the primary port, a header names the rank."""
    with (
        around.pool("parallel", engines=1, ports=(8000, 8001)) as pool,
        around.picker("parallel", config=RANKS) as found,
    ):
        outcomes = [route(found) for _ in range(30)]
    assert {each.destination for each in outcomes} == {pool.hostports[0]}
    assert {each.headers["x-data-parallel-host-port"] for each in outcomes} == set(pool.hostports)
