# SPDX-License-Identifier: GPL-3.0-or-later
"""flowControl: what it comes to, how it is written back, and how it is refused."""

from __future__ import annotations

import pytest

from epp import config, flowcontrol, plugins
from epp.config import ConfigError, EndpointPickerConfig
from epp.config.flow import quantity
from epp.config.schema import BandSpec, EvictionSpec, FlowControlSpec
from epp.datalayer import Datastore
from epp.flowcontrol.api import Options
from epp.observe import PoolRecorder, Recorder
from epp.scheduling import Scheduler

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
ON = HEAD + "featureGates: [flowControl]\n"
STRICT, FCFS = "global-strict-fairness-policy", "fcfs-ordering-policy"
DEFAULT = BandSpec(STRICT, FCFS, 5000, 1_000_000_000)


def section(text: str) -> FlowControlSpec:
    found = config.load(ON + text, "epp.yaml").flow_control
    assert found is not None
    return found


def built(cfg: EndpointPickerConfig) -> Options:
    """The same as flow control is told."""
    recorder = PoolRecorder(Recorder(), "pool")
    scheduler = Scheduler.from_config(cfg, plugins.registry(), Datastore("pool"), recorder, 1)
    assert cfg.flow_control is not None
    return flowcontrol.options(cfg.flow_control, scheduler.plugin)


def test_defaults_are_the_references() -> None:
    expected = FlowControlSpec(DEFAULT, "static-usage-limit-policy")
    assert section("") == section("flowControl: {}") == section("flowControl:\n") == expected
    assert (expected.request_ttl, expected.no_endpoint_ttl) == (60.0, 60.0)
    assert (expected.max_requests, expected.max_bytes, expected.eviction) == (0, 0, None)


def test_off_unless_the_gate_is_on() -> None:
    assert config.load(HEAD, "x").flow_control is None
    assert config.load(HEAD + "flowControl: {maxRequests: 1}", "x").flow_control is None
    assert config.load(HEAD + "featureGates: [flowControl=false]", "x", ["flowControl"]).flow_control is not None


EVERYTHING = """\
plugins:
- {type: round-robin-fairness-policy, name: fair}
- {type: slo-deadline-ordering-policy}
- {type: priority-holdback-policy, name: hold, parameters: {minCeiling: 0.5}}
- {type: concurrency-detector}
- {type: sheddable-eviction-filter, name: shed}
flowControl:
  maxBytes: 2Gi
  maxRequests: 20k
  defaultRequestTTL: 1m30s
  noEndpointRequestTTL: 5m
  defaultPriorityBand: {maxRequests: 100, fairnessPolicyRef: fair}
  defaultNegativePriorityBand: {maxBytes: 1M, orderingPolicyRef: slo-deadline-ordering-policy}
  priorityBands:
  - {priority: 10, maxBytes: "0", maxRequests: 0}
  - {priority: -10, maxRequests: 7, fairnessPolicyRef: global-strict-fairness-policy}
  usageLimitPolicyPluginRef: hold
  saturationDetector: {pluginRef: concurrency-detector}
  enableEviction: true
"""


def test_everything() -> None:
    cfg = config.load(ON + EVERYTHING, "x")
    slo = "slo-deadline-ordering-policy"
    assert cfg.flow_control == FlowControlSpec(
        default_band=BandSpec("fair", FCFS, 100, 1_000_000_000),
        negative_band=BandSpec(STRICT, slo, 5000, 1_000_000),
        bands=((10, BandSpec("fair", FCFS, 0, 0)), (-10, BandSpec(STRICT, slo, 7, 1_000_000_000))),
        usage_limit="hold",
        max_requests=20_000,
        max_bytes=2 * 1024**3,
        request_ttl=90.0,
        no_endpoint_ttl=300.0,
        eviction=EvictionSpec("shed", "priority-then-time-eviction-order-policy"),
    )
    assert cfg.saturation_detector == "concurrency-detector"
    assert cfg.warnings == ()


def test_the_time_to_live_without_endpoints_follows_the_other_one() -> None:
    assert section("flowControl: {defaultRequestTTL: 5s}").no_endpoint_ttl == 5.0
    found = section("flowControl: {defaultRequestTTL: 0s, noEndpointRequestTTL: 1s}")
    assert (found.request_ttl, found.no_endpoint_ttl) == (0.0, 1.0)


@pytest.mark.parametrize("text", ["", "flowControl: {enableEviction: true}\n", EVERYTHING])
def test_it_is_written_back(text: str) -> None:
    cfg = config.load(ON + text, "x")
    assert config.load(config.effective(cfg), "again") == cfg


def test_what_flow_control_is_told() -> None:
    made = built(config.load(ON + EVERYTHING, "x"))
    assert made.default_band.fairness.name == "fair"
    assert made.negative_band is not None
    assert made.negative_band.ordering.TYPE == "slo-deadline-ordering-policy"
    assert (made.bands[10].max_requests, made.bands[-10].max_requests) == (0, 7)
    assert made.usage_limit.name == "hold"
    assert (made.max_requests, made.request_ttl, made.no_endpoint_ttl) == (20_000, 90.0, 300.0)
    assert made.eviction is not None
    assert made.eviction.filter.name == "shed"
    plain = built(config.load(ON, "x"))
    assert (plain.negative_band, plain.eviction, dict(plain.bands)) == (None, None, {})


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, 5),
        (0, 0),
        ("7", 7),
        ("512Mi", 512 * 1024**2),
        ("1.5Gi", 1536 * 1024**2),
        ("2k", 2000),
        ("3G", 3_000_000_000),
        ("1e9", 1_000_000_000),
        (".5k", 500),
    ],
)
def test_quantities(value: object, number: int) -> None:
    assert quantity(value) == number


@pytest.mark.parametrize("value", ["lots", "", "-1", -1, True, 1.5, None, "1 Gi", "5m", []])
def test_no_quantities(value: object) -> None:
    with pytest.raises(ValueError, match="must be a number or a quantity"):
        quantity(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flowControl:\n  maxBytes: lots", "epp.yaml:5: flowControl.maxBytes: must be a number or a quantity"),
        (
            "flowControl:\n  priorityBands:\n  - {priority: 1, maxRequests: -1}",
            "epp.yaml:6: flowControl.priorityBands[0].maxRequests: must be a number or a quantity",
        ),
        (
            "flowControl:\n  priorityBands:\n  - {priority: 1}\n  - {priority: 1}",
            "epp.yaml:7: flowControl.priorityBands[1].priority: the priority 1 is there twice; remove one",
        ),
        (
            "flowControl:\n  priorityBands:\n  - {maxRequests: 1}",
            "epp.yaml:6: flowControl.priorityBands[0].priority: is missing; say which priority the band is for",
        ),
        (
            "flowControl:\n  defaultPriorityBand:\n    priority: 1",
            "epp.yaml:6: flowControl.defaultPriorityBand.priority: has no meaning in a template for bands; remove it",
        ),
        (
            "flowControl:\n  defaultNegativePriorityBand:\n    fairnessPolicyRef: fcfs-ordering-policy",
            "epp.yaml:6: flowControl.defaultNegativePriorityBand.fairnessPolicyRef: 'fcfs-ordering-policy' is of type",
        ),
        (
            "plugins: [{type: round-robin-fairness-policy}]\n"
            "flowControl:\n  defaultPriorityBand:\n    fairnessPolicyRef: round-robin-fairnes-policy",
            "flowControl.defaultPriorityBand.fairnessPolicyRef: no plugin is named 'round-robin-fairnes-policy'; "
            "did you mean 'round-robin-fairness-policy'?",
        ),
        (
            "flowControl:\n  usageLimitPolicyPluginRef: fcfs-ordering-policy",
            "epp.yaml:5: flowControl.usageLimitPolicyPluginRef: 'fcfs-ordering-policy' is of type",
        ),
        ("flowControl:\n  defaultRequestTTL: soon", "epp.yaml:5: flowControl.defaultRequestTTL: must be a duration"),
        ("flowControl:\n  enableEviction: maybe", "epp.yaml:5: flowControl.enableEviction: must be true or false"),
        (
            "flowControl:\n  defaultRequestTtl: 5s",
            "epp.yaml:5: flowControl.defaultRequestTtl: unknown field; did you mean 'defaultRequestTTL'?",
        ),
        (
            "flowControl:\n  priorityBands:\n  - {priority: 1, queue: x}",
            "epp.yaml:6: flowControl.priorityBands[0].queue: unknown field",
        ),
        ("flowControl: []", "epp.yaml:4: flowControl: must be a map, not a list"),
    ],
)
def test_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        section(text)
    assert told in str(error.value)
