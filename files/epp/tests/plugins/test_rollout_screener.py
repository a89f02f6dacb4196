# SPDX-License-Identifier: GPL-3.0-or-later
"""disaggregatedset-rollout-screener: which revision a request gets, and what its answer says of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from epp.config import ConfigError
from epp.model import Endpoint, Rejection
from epp.plugins.disaggregatedset_rollout_screener import requirements

SET = "disaggregatedset.x-k8s.io/"
GATED = """\
plugins:
- type: disaggregatedset-rollout-screener
  name: rollout
  parameters:
    scope: {labelSelector: "disaggregatedset.x-k8s.io/name=my-set"}
    headerSelectors:
    - {name: revision, headerName: X-Disagg-Revision, labelKey: disaggregatedset.x-k8s.io/revision, mode: strict}
    - {name: slice, headerName: x-disagg-slice, labelKey: disaggregatedset.x-k8s.io/slice, mode: prefer}
    revisionGating: {mode: max-role, requireRoles: {values: [prefill, decode]}}
- type: random-picker
"""
SLICED = GATED.replace("mode: prefer", "mode: strict")


class Pods:
    """Endpoints with the labels of a DisaggregatedSet."""

    def __init__(self) -> None:
        self.all: list[Endpoint] = []

    def add(self, revision: str, ports: int = 1, name: str = "my-set", **roles: int) -> Pods:
        """So many pods of these roles."""
        for role, count in roles.items():
            for _ in range(count):
                number = len(self.all)
                labels = {SET + "name": name, SET + "revision": revision, SET + "role": role}
                labels[SET + "slice"] = str(number % 2)
                for port in range(ports):
                    where = (f"p{number}", f"10.0.0.{number + 1}", 8000 + port)
                    self.all.append(Endpoint(f"e{number}-{port}", "ns", *where, labels))
        return self


def revisions(kit: Any, text: str, pods: Pods, times: int = 1, **headers: str) -> Counter[str]:
    rig = kit.rig(text, pods.all)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = [rig.send(kit.ask(headers=named)).endpoints[0] for _ in range(times)]
    return Counter(each.labels[SET + "revision"] for each in found)


SHARES = [("max-role", {"a": 0.9, "b": 0.1}), ("sum", {"a": 11 / 13, "b": 2 / 13})]


@pytest.mark.parametrize(("mode", "shares"), SHARES)
def test_shares_of_the_documented_rollout(kit: Any, mode: str, shares: dict[str, float]) -> None:
    pods = Pods().add("a", prefill=2, decode=9).add("b", prefill=1, decode=1)
    counted = revisions(kit, GATED.replace("max-role", mode), pods, 3000)
    for revision, share in shares.items():
        assert counted[revision] / 3000 == pytest.approx(share, abs=0.03)


def test_shares_are_on_the_metrics_page(kit: Any) -> None:
    rig = kit.rig(GATED, Pods().add("a", prefill=2, decode=9).add("b", prefill=1, decode=1).add("c", decode=5).all)
    rig.send(kit.ask())
    page = rig.recorder.render().decode()
    where = 'mode="max-role",plugin_name="rollout",plugin_type="disaggregatedset-rollout-screener"'
    for revision, share in {"a": 0.9, "b": 0.1, "c": 0.0}.items():
        assert f'llm_d_epp_disaggregatedset_revision_gating_share{{{where},revision="{revision}"}} {share}\n' in page
    rig.datastore.replace([each for each in rig.endpoints if each.labels[SET + "revision"] == "a"])
    rig.send(kit.ask())
    page = rig.recorder.render().decode()
    assert f'{{{where},revision="a"}} 1.0\n' in page
    assert 'revision="b"' not in page, "one that is gone is forgotten"


def test_pods_count_and_not_their_ports(kit: Any) -> None:
    pods = Pods().add("a", ports=8, prefill=1, decode=1).add("b", prefill=1, decode=1)
    assert revisions(kit, GATED, pods, 1000)["a"] == pytest.approx(500, abs=80)


@pytest.mark.parametrize("mode", ["sum", "max-role"])
def test_an_incomplete_revision_gets_nothing(kit: Any, mode: str) -> None:
    pods = Pods().add("a", prefill=1, decode=1).add("b", decode=20).add("c", name="other", prefill=9, decode=9)
    text = GATED.replace("max-role", mode)
    assert set(revisions(kit, text, pods, 200)) == {"a"}
    with pytest.raises(Rejection) as error:
        revisions(kit, text, Pods().add("b", decode=20))
    assert (error.value.status, error.value.reason) == (503, "rejected-no-endpoints")
    with pytest.raises(Rejection):
        revisions(kit, text, pods, x_disagg_revision="b")


def test_only_revisions_with_candidates_are_chosen(kit: Any) -> None:
    """The gateway may allow but some of the pods."""
    pods = Pods().add("a", prefill=9, decode=9).add("b", prefill=1, decode=1)
    rig = kit.rig(GATED, pods.all)
    allowed = [each for each in rig.endpoints if each.labels[SET + "revision"] == "b"]
    for _ in range(50):
        assert rig.scheduler.schedule(kit.ask(), allowed).endpoints[0] in allowed


def test_a_header_names_the_revision(kit: Any) -> None:
    pods = Pods().add("a", prefill=9, decode=9).add("b", prefill=1, decode=1)
    assert set(revisions(kit, GATED, pods, 100, x_disagg_revision="b")) == {"b"}
    rig = kit.rig(GATED, pods.all)
    with pytest.raises(Rejection):
        rig.send(kit.ask(headers={"x-disagg-revision": "z"}))
    page = rig.recorder.render().decode()
    assert 'strict_header_no_match_total{plugin_name="rollout",plugin_type="disaggregatedset-rollout-screener",' in page


def test_other_strict_labels_belong_to_the_group(kit: Any) -> None:
    """Roles in two slices of a revision are no complete group; those in one are."""
    pods = Pods().add("a", decode=1, prefill=1)  # slices 0 and 1
    with pytest.raises(Rejection):
        revisions(kit, SLICED, pods)
    pods = Pods().add("b", decode=2, prefill=2)
    rig = kit.rig(SLICED, pods.all)
    seen = [rig.send(kit.ask(headers={"x-disagg-slice": "1"})).endpoints[0].labels[SET + "slice"] for _ in range(50)]
    assert set(seen) == {"1"}
    lacking = Endpoint("e", "ns", "x", "10.0.1.1", 8000, {SET + "name": "my-set", SET + "role": "decode"})
    rig.datastore.replace([*rig.endpoints, lacking])
    assert all(rig.send(kit.ask()).endpoints[0] is not lacking for _ in range(50))


def test_disabled(kit: Any) -> None:
    text = GATED.replace("{mode: max-role, requireRoles: {values: [prefill, decode]}}", "{mode: disabled}")
    pods = Pods().add("a", decode=2).add("b", decode=2)
    assert set(revisions(kit, text, pods, 100)) == {"a", "b"}
    assert set(revisions(kit, text, pods, 50, x_disagg_revision="b")) == {"b"}
    with pytest.raises(Rejection):
        revisions(kit, text, pods, x_disagg_revision="z")


def test_answers_say_what_was_chosen(kit: Any) -> None:
    rig = kit.rig(GATED, Pods().add("a", prefill=1, decode=1).all)
    request = kit.ask()
    decision = rig.send(request)
    told = rig.scheduler.response_received("", request, decision)
    assert told == {"x-disagg-revision": "a", "x-disagg-slice": decision.endpoints[0].labels[SET + "slice"]}
    assert rig.scheduler.response_received("") == {}


def test_both_profiles_stay_in_one_revision(kit: Any) -> None:
    text = GATED + (
        "- type: prefill-filter\n- type: decode-filter\n- type: always-disagg-pd-decider\n"
        "- {type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}\n"
        "schedulingProfiles:\n"
        "- {name: prefill, plugins: [{pluginRef: prefill-filter}, {pluginRef: random-picker}]}\n"
        "- {name: decode, plugins: [{pluginRef: decode-filter}, {pluginRef: random-picker}]}\n"
    )
    pods = Pods().add("a", prefill=2, decode=2).add("b", prefill=2, decode=2)
    for endpoint in pods.all:
        endpoint.labels = {**endpoint.labels, "llm-d.ai/role": endpoint.labels[SET + "role"]}
    rig = kit.rig(text, pods.all)
    seen = set()
    for _ in range(60):
        decision = rig.send(kit.ask())
        chosen = {each.labels[SET + "revision"] for picked in decision.profiles.values() for each in picked}
        assert len(decision.profiles) == 2
        assert len(chosen) == 1
        seen |= chosen
    assert seen == {"a", "b"}


def test_the_older_form(kit: Any) -> None:
    text = """\
plugins:
- type: disaggregatedset-rollout-screener
  parameters:
    scope: {labelSelector: "disaggregatedset.x-k8s.io/name=my-set"}
    revisionGating: {mode: sum, requiredRoles: [prefill, decode], revisionHeaderName: x-llm-d-disagg-revision}
- type: random-picker
"""
    pods = Pods().add("a", prefill=9, decode=9).add("b", prefill=1, decode=1)
    assert set(revisions(kit, text, pods, 60, x_llm_d_disagg_revision="b")) == {"b"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("mode: max-role, ", "", "mode is missing"),
        ("max-role", "most", "'most' is not possible"),
        (", requireRoles: {values: [prefill, decode]}", "", "mode max-role needs roles"),
        ("values: [prefill, decode]}", "values: [prefill]}, requiredRoles: [x]", "both are there"),
        ("mode: strict", "mode: hard", "known are prefer, strict"),
        ("headerName: X-Disagg-Revision, ", "", "headerName: is missing"),
        ("name: slice", 'name: ""', "are needed"),
        ('"disaggregatedset.x-k8s.io/name=my-set"', '"a b"', "is not a label selector"),
        ("    scope:", "    scopes:", "did you mean 'scope'"),
    ],
)
def test_mistakes(kit: Any, old: str, new: str, told: str) -> None:
    assert old in GATED
    with pytest.raises(ConfigError, match=told):
        kit.rig(GATED.replace(old, new, 1), [])


@pytest.mark.parametrize(
    ("selector", "labels", "holds"),
    [
        ("a=b", {"a": "b"}, True),
        ("a==b,c!=d", {"a": "b"}, True),
        ("a=b, c!=d", {"a": "b", "c": "d"}, False),
        ("a in (x, y),!old", {"a": "y"}, True),
        ("a in (x,y),!old", {"a": "y", "old": ""}, False),
        ("a notin (x,y)", {"a": "x"}, False),
        ("a notin (x,y)", {}, True),
        ("a", {"a": ""}, True),
        ("a", {}, False),
        ("example.com/a = b", {"example.com/a": "b"}, True),
        ("a=", {"a": ""}, True),
    ],
)
def test_selectors(selector: str, labels: dict[str, str], holds: bool) -> None:
    assert all(each.holds(labels) for each in requirements(selector)) == holds
