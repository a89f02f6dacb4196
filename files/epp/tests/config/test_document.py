# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML with lines, and its decoding into dataclasses, at the edges; and what v1.3 reads from the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from epp import config
from epp.config import ConfigError, with_environment
from epp.config.document import Decoder, duration, duration_text, parse
from epp.plugins.utilization_detector import UtilizationDetectorParameters
from epp.scheduling.api import param


@dataclass(frozen=True)
class Inner:
    needed: int


@dataclass(frozen=True)
class Everything:
    names: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    inner: Inner | None = None
    share: float = param(0.5, above=0, maximum=1)
    wait: float = param(1.0, duration=True)
    kind: str = param("a", choices=("a", "b"))
    flag: bool = False


def decode(text: str) -> Everything:
    decoded: Everything = Decoder("x").decode(Everything, parse(text, "x"), "")
    return decoded


def test_all_kinds() -> None:
    assert decode("{names: [a], counts: {x: 1}, inner: {needed: 2}, share: 1, wait: 1m30s, kind: b, flag: true}") == (
        Everything(("a",), {"x": 1}, Inner(2), 1.0, 90.0, "b", True)
    )
    assert decode("share: null") == Everything()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("names: a", "x:1: names: must be a list, not the string 'a'; begin each entry with '- '"),
        ("names: [1]", "x:1: names[0]: must be a string, not the number 1; put it in quotes"),
        ("names: [[]]", "x:1: names[0]: must be a string, not a list"),
        ("counts: [1]", "x:1: counts: must be a map, not a list"),
        ("counts: {x: true}", "x:1: counts.x: must be a whole number, not true/false true"),
        ("\ninner: {}", "x:2: inner.needed: is missing; add it"),
        ("inner: 2020-01-01", "x:1: inner: must be a map, not the string '2020-01-01'; write its fields below it"),
        ("share: 0", "x:1: share: must be more than 0, not 0.0"),
        ("share: 2", "x:1: share: must be 1 or less, not 2.0"),
        ("share: .inf", "x:1: share: must be a number, not the number inf"),
        ("wait: 5", "x:1: wait: must be a duration like 200ms, 5s or 1m30s, not 5"),
        ("wait: soon", "x:1: wait: must be a duration like 200ms, 5s or 1m30s, not 'soon'"),
        ("kind: c", "x:1: kind: 'c' is not possible; known are a, b"),
        ("flag: 1", "x:1: flag: must be true or false, not the number 1"),
        ("flag: [~]", "x:1: flag: must be true or false, not a list"),
        ("flagg: true", "x:1: flagg: unknown field; did you mean 'flag'?"),
        ("? [a]\n: b", "x:1: has a key that is not a plain word; use field names only"),
        ("flag: true\nflag: true", "x:2: flag: is written twice; remove one"),
        ("a: [" * 70, "is not YAML"),
        ("[" * 70 + "]" * 70, "is nested too deep or too large; write it plainly"),
        ("a: !!int x", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: b\n---\nc: d", "is not YAML"),
    ],
)
def test_mistakes(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        decode(text)
    assert told in str(error.value)


def test_aliases_of_aliases_do_not_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="too deep or too large"):
        parse("\n".join(lines), "x")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("1.5s", 1.5), ("2h3m", 7380.0), ("5us", 5e-6), ("5µs", 5e-6), ("7ns", 7e-9)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)
    assert duration(duration_text(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1s2", "-1s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)


class TestEnvironment:
    def detector(self, environment: dict[str, str]) -> UtilizationDetectorParameters:
        cfg = with_environment(config.default(), environment)
        assert len(cfg.warnings) == len(environment)
        parameters: UtilizationDetectorParameters = cfg.plugin(cfg.saturation_detector).parameters
        return parameters

    def test_saturation(self) -> None:
        environment = {
            "SD_QUEUE_DEPTH_THRESHOLD": "9",
            "SD_KV_CACHE_UTIL_THRESHOLD": "0.6",
            "SD_METRICS_STALENESS_THRESHOLD": "1s",
        }
        got = self.detector(environment)
        assert (got.queue_depth_threshold, got.kv_cache_util_threshold) == (9, 0.6)
        assert got.metrics_staleness_threshold == 1.0
        assert self.detector({}) == UtilizationDetectorParameters()

    @pytest.mark.parametrize("value", ["x", "0", "-1", ""])
    def test_values_without_meaning(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"SD_QUEUE_DEPTH_THRESHOLD: .* is not usable"):
            with_environment(config.default(), {"SD_QUEUE_DEPTH_THRESHOLD": value})

    def test_old_gates(self) -> None:
        cfg = with_environment(config.default(), {"ENABLE_EXPERIMENTAL_DATALAYER_V2": "true"})
        assert "there is only one data layer here" in cfg.warnings[0]
        assert with_environment(cfg, {"ENABLE_EXPERIMENTAL_FLOW_CONTROL_LAYER": "false"}) == cfg
        cfg = with_environment(config.default(), {"ENABLE_EXPERIMENTAL_FLOW_CONTROL_LAYER": "true"})
        assert "write flowControl into featureGates" in cfg.warnings[0]
        environment = {"ENABLE_EXPERIMENTAL_FLOW_CONTROL_LAYER": "true"}
        assert config.default(config.gates(environment)).flow_control is not None
        assert config.default(config.gates({})).flow_control is None


HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def load(text: str) -> Any:
    return config.load(HEAD + text, "x")


def test_file_discovery() -> None:
    plugin = "plugins: [{type: file-discovery, name: f, parameters: {path: /e.yaml}}]\n"
    for reference in ("{pluginRef: f}", "{endpoints: {pluginRef: f}}"):
        cfg = load(f"{plugin}dataLayer: {{discovery: {reference}}}")
        assert cfg.discovery == "f"
        assert cfg.plugin("f").parameters.path == "/e.yaml"
        assert config.load(config.effective(cfg), "again") == cfg
    with pytest.raises(KeyError):
        cfg.plugin("nobody")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "plugins: [{type: utilization-detector, name: u}]\nflowControl: {saturationDetector: {pluginRef: u}}\n"
            "saturationDetector: {queueDepthThreshold: 1}",
            "saturationDetector: is there twice, also in flowControl; remove this one",
        ),
        (
            "plugins: [{type: metrics-data-source}, {type: metrics-data-source, name: b}]\ndataLayer: {sources: "
            "[{pluginRef: metrics-data-source}, {pluginRef: b}]}",
            "dataLayer.sources: has more than one metrics-data-source; keep one",
        ),
        (
            "plugins: [{type: openai-parser}]\nrequestHandler: {parsers: [{pluginRef: openai-parser}]}\n"
            "parser: {pluginRef: openai-parser}",
            "parser: is requestHandler.parsers' old form, and both are there; remove one",
        ),
    ],
)
def test_said_twice(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(text)
    assert told in str(error.value)


def test_a_name_that_is_taken_gets_another() -> None:
    cfg = load("plugins: [{type: queue-scorer, name: max-score-picker}]")
    assert cfg.plugin("max-score-picker-default").type == "max-score-picker"


@pytest.mark.parametrize(
    ("flags", "told"), [({"lora-info-metric": "a{b"}, "--lora-info-metric"), ({}, "no engine is named 'nope'")]
)
def test_metrics_that_cannot_be_read(flags: dict[str, str], told: str) -> None:
    extractor = "" if flags else "plugins: [{type: core-metrics-extractor, parameters: {defaultEngine: nope}}]"
    with pytest.raises(ConfigError, match=told):
        config.scrape_options(load(extractor), flags)
