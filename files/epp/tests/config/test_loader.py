# SPDX-License-Identifier: GPL-3.0-or-later
"""EndpointPickerConfig: what loads, what it comes to, and how it is refused."""

from __future__ import annotations

import pytest

from epp import config
from epp.config import ConfigError
from epp.config.document import duration, duration_text
from epp.plugins.prefix_cache_scorer import PrefixCacheScorerParameters

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def load(text: str) -> config.EndpointPickerConfig:
    return config.load(HEAD + text, "epp.yaml")


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(text, "epp.yaml")
    return str(caught.value)


def weights(cfg: config.EndpointPickerConfig, profile: int = 0) -> dict[str, float]:
    return {member.plugin: member.weight for member in cfg.profiles[profile].plugins}


def test_default_is_the_references() -> None:
    cfg = config.default()
    assert weights(cfg) == {
        "queue-scorer": 2,
        "kv-cache-utilization-scorer": 2,
        "prefix-cache-scorer": 3,
        "max-score-picker": 1,
    }
    assert cfg.profile_handler == "single-profile-handler"
    assert cfg.saturation_detector == "utilization-detector"
    assert cfg.sources[0].plugin == "metrics-data-source"
    assert cfg.sources[0].extractors == ("core-metrics-extractor",)
    producer = cfg.plugin("approx-prefix-cache-producer").parameters
    assert (producer.block_size_tokens, producer.lru_capacity_per_server, producer.auto_tune) == (16, 31250, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plugins: [{type: random-picker, name: dice}]\n",
        "saturationDetector: {queueDepthThreshold: 7, metricsStalenessThreshold: 1m30s}\n",
        "plugins: [{type: prefix-cache-scorer, parameters: {blockSize: 32, autoTune: false}}]\n",
        "dataLayer: {injectDefaults: false}\n",
        "plugins: [{type: core-metrics-extractor, parameters: {engineConfigs: [{name: a, kvUsageSpec: 'x{a=b}'}]}}]\n",
    ],
)
def test_effective_loads_to_the_same(text: str) -> None:
    cfg = load(text)
    again = config.load(config.effective(cfg), "effective")
    assert again == cfg
    assert config.effective(again) == config.effective(cfg)


def test_both_groups_and_json() -> None:
    old = "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n"
    assert config.load(old, "x") == load("")
    assert config.load('{"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}', "x") == load("")


def test_a_configuration_of_v13_loads() -> None:
    cfg = config.load(
        """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates: [dataLayer, flowControl=false]
plugins:
- type: prefix-cache-scorer
  parameters: {autoTune: false, blockSize: 5, maxPrefixBlocksToMatch: 256, lruCapacityPerServer: 31250}
- type: queue-scorer
- type: max-score-picker
  parameters: {maxNumOfEndpoints: 2}
- {type: single-profile-handler}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-scorer, weight: 50}
  - {pluginRef: queue-scorer}
  - {pluginRef: max-score-picker}
saturationDetector: {queueDepthThreshold: 10, kvCacheUtilThreshold: 0.9, metricsStalenessThreshold: 100ms}
""",
        "v13.yaml",
    )
    assert weights(cfg) == {"prefix-cache-scorer": 50, "queue-scorer": 1, "max-score-picker": 1}
    detector = cfg.plugin(cfg.saturation_detector).parameters
    assert detector.queue_depth_threshold == 10
    assert detector.kv_cache_util_threshold == 0.9
    assert detector.metrics_staleness_threshold == pytest.approx(0.1)
    assert all(spec.type != "approx-prefix-cache-producer" for spec in cfg.plugins), "it has an index of its own"


def test_without_profiles_one_has_everything_that_fits() -> None:
    cfg = load("plugins: [{type: queue-scorer}, {type: header-based-testing-filter}, {type: random-picker}]\n")
    assert [profile.name for profile in cfg.profiles] == ["default"]
    assert list(weights(cfg)) == ["queue-scorer", "header-based-testing-filter", "random-picker"]


def test_a_picker_that_is_there_is_used() -> None:
    text = "plugins: [{type: queue-scorer}, {type: max-score-picker, name: best, parameters: {maxNumOfEndpoints: 3}}]\n"
    cfg = load(text + "schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer}]}]\n")
    assert list(weights(cfg)) == ["queue-scorer", "best"]


def test_detector_by_reference() -> None:
    detector = "plugins: [{type: utilization-detector, name: full, parameters: {queueDepthThreshold: 9}}]\n"
    assert load(detector + "saturationDetector: {pluginRef: full}\n").saturation_detector == "full"
    assert load(detector + "flowControl: {saturationDetector: {pluginRef: full}}\n").saturation_detector == "full"
    assert load(detector).saturation_detector == "full"


def test_what_has_no_effect_is_said() -> None:
    (warning,) = load("flowControl: {maxRequests: 5, enableEviction: true}\n").warnings
    assert "maxRequests" in warning
    assert "the feature gate flowControl is off" in warning
    (warning,) = load(
        "plugins: [{type: queue-scorer}, {type: openai-parser}]\n"
        "schedulingProfiles: [{name: a, plugins: [{pluginRef: openai-parser}]}]\n"
    ).warnings
    assert "openai-parser" in warning


def test_no_sources_means_no_reading() -> None:
    assert not config.scrape_options(load("data: {injectDefaults: false}\n")).enabled


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "epp.yaml: is empty"),
        ("a: [1,", "epp.yaml:2: is not YAML"),
        ("- 1", "epp.yaml:1: must be a map, not a list"),
        ("kind: EndpointPickerConfig", "epp.yaml:1: apiVersion: must be llm-d.ai/v1alpha1 or"),
        ("apiVersion: llm-d.ai/v1alpha1\nkind: Pod", "epp.yaml:2: kind: must be EndpointPickerConfig, not 'Pod'"),
        (HEAD + "plugin: []", "epp.yaml:3: plugin: unknown field; did you mean 'plugins'?"),
        (HEAD + "plugins: {}", "epp.yaml:3: plugins: must be a list, not a map"),
        (HEAD + "plugins:\n- name: x", "epp.yaml:4: plugins[0].type: is missing; say of which type 'x' is"),
        (
            HEAD + "plugins:\n- type: queue-scorr",
            "epp.yaml:4: plugins[0].type: unknown plugin type 'queue-scorr'; did you",
        ),
        (
            HEAD + "plugins:\n- type: multicluster-queue-scorer",
            "the plugin type 'multicluster-queue-scorer' is not available in this version",
        ),
        (HEAD + "plugins:\n- type: custom-scorer\n  parameters: {custom-threshold: 64}", "unknown plugin type"),
        (
            HEAD + "plugins:\n- type: queue-scorer\n- type: queue-scorer",
            "epp.yaml:5: plugins[1].name: the name 'queue-scorer' is taken by the plugin of line 4",
        ),
        (
            HEAD + "plugins:\n- type: max-score-picker\n  parameters:\n    maxNumOfEndpoints: two",
            "epp.yaml:6: plugins[0].parameters.maxNumOfEndpoints: must be a whole number, not the string 'two'",
        ),
        (
            HEAD + "plugins:\n- type: max-score-picker\n  parameters:\n    maxNumOfEndpoints: 0",
            "epp.yaml:6: plugins[0].parameters.maxNumOfEndpoints: must be 1 or more, not 0",
        ),
        (
            HEAD + "plugins:\n- type: queue-scorer\n  parameters: {a: 1}",
            "epp.yaml:5: plugins[0].parameters.a: unknown field; nothing is allowed here",
        ),
        (
            HEAD + "plugins:\n- type: utilization-detector\n  parameters: {metricsStalenessThreshold: 5}",
            "must be a duration like 200ms, 5s or 1m30s, not 5",
        ),
        (
            HEAD + "plugins:\n- type: prefix-cache-scorer\n  parameters: {prefixMatchInfoProducerName: px}",
            "epp.yaml:5: plugins[0].parameters.prefixMatchInfoProducerName: no plugin is named 'px'",
        ),
        (
            HEAD + "plugins:\n- type: prefix-cache-scorer\n  parameters: {prefixMatchInfoProducerName: q}\n"
            "- {type: queue-scorer, name: q}",
            "epp.yaml:5: plugins[0].parameters.prefixMatchInfoProducerName: 'q' is of type queue-scorer, which",
        ),
        (
            HEAD + "plugins:\n- type: prefix-cache-scorer\n  parameters: {blockSize: 1, blockSizeTokens: 1}",
            "epp.yaml:5: plugins[0].parameters: blockSize and blockSizeTokens exclude each other",
        ),
        (
            HEAD + "plugins: [{type: metrics-data-source, parameters: {path: metrics}}]",
            "plugins[0].parameters: path must begin with /",
        ),
        (
            HEAD + "plugins: [{type: metrics-data-source, parameters: {scheme: ftp}}]",
            "plugins[0].parameters.scheme: 'ftp' is not possible; known are http, https",
        ),
        (
            HEAD + "plugins: [{type: core-metrics-extractor, parameters: {engineConfigs: [{name: a, loraSpec: '{'}]}}]",
            "plugins[0].parameters.engineConfigs[0]: '{' is not a metric",
        ),
        (
            HEAD + "schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: queue-scorer",
            "epp.yaml:6: schedulingProfiles[0].plugins[0].pluginRef: no plugin is named 'queue-scorer'",
        ),
        (
            HEAD + "plugins: [{type: queue-scorer}]\nschedulingProfiles:\n- name: a\n  plugins:\n"
            "  - {pluginRef: queue-scorer, weight: heavy}",
            "epp.yaml:7: schedulingProfiles[0].plugins[0].weight: must be a number, not the string 'heavy'",
        ),
        (HEAD + "schedulingProfiles: [{name: a}, {name: a}]", "the name 'a' is there twice"),
        (HEAD + "schedulingProfiles: [{name: a}, {name: b}]", "more than one profile needs a profile handler"),
        (
            HEAD + "plugins: [{type: single-profile-handler}]\nschedulingProfiles: [{name: a}, {name: b}]",
            "single-profile-handler works with 1 profile, and there are 2",
        ),
        (
            HEAD + "plugins: [{type: single-profile-handler}, {type: single-profile-handler, name: other}]",
            "more than one profile handler (single-profile-handler, other)",
        ),
        (HEAD + "plugins: [{type: random-picker}, {type: max-score-picker}]", "has more than one picker"),
        (
            HEAD + "featureGates: [flowcontrol]",
            "featureGates[0]: unknown feature gate 'flowcontrol'; did you mean 'flow",
        ),
        (HEAD + "featureGates: [dataLayer=yes]", "featureGates[0]: must end in =true or =false"),
        (HEAD + "flowControl: {defaultRequestTTL: 60}", "flowControl.defaultRequestTTL: must be a duration"),
        (HEAD + "flowControl: {saturationDetector: {pluginRef: x}}", "no plugin is named 'x'"),
        (HEAD + "dataLayer: {discovery: {pluginRef: x}}", "dataLayer.discovery: no plugin is named 'x'"),
        (HEAD + "dataLayer: {discovery: {}}", "dataLayer.discovery: name one plugin"),
        (
            HEAD + "plugins: [{type: queue-scorer}]\ndataLayer: {discovery: {pluginRef: queue-scorer}}",
            "which is not a Discovery",
        ),
        (HEAD + "plugins: [{type: file-discovery}]", "plugins[0].parameters.path: is missing"),
        (HEAD + "plugins: [{type: file-discovery, parameters: {path: ''}}]", "path is empty; name the endpoints file"),
        (HEAD + "dataLayer: {peerDiscovery: {pluginRef: x}}", "dataLayer.peerDiscovery: is not available"),
        (HEAD + "dataLayer: {}\ndata: {}", "data: is dataLayer's old name"),
        (
            HEAD + "plugins: [{type: queue-scorer}]\ndataLayer:\n  sources:\n  - pluginRef: queue-scorer",
            "epp.yaml:6: dataLayer.sources[0].pluginRef: 'queue-scorer' is of type queue-scorer, which is not a Data",
        ),
        (
            HEAD + "saturationDetector: {queueDepth: 1}",
            "epp.yaml:3: saturationDetector.queueDepth: unknown field; did you",
        ),
        (
            HEAD + "saturationDetector: {pluginRef: x, headroom: 1}",
            "saturationDetector.headroom: is not possible beside",
        ),
        (
            HEAD + "plugins: [{type: utilization-detector}]\nsaturationDetector: {queueDepthThreshold: 1}",
            "saturationDetector: the plugin 'utilization-detector' says the same",
        ),
        (HEAD + "parser: {pluginRef: queue-scorer}", "parser.pluginRef: no plugin is named"),
        (HEAD + "kind: EndpointPickerConfig", "epp.yaml:3: kind: is written twice"),
        ("a: &a [*a]", "is nested too deep or too large"),
    ],
)
def test_refused(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_aliases_of_aliases_do_not_explode() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "too large" in refused("\n".join(lines))


def test_options_flags_and_parameters() -> None:
    cfg = load("plugins: [{type: metrics-data-source, parameters: {path: /m, interval: 100ms}}]\n")
    flags: dict[str, str | int | float | bool] = {
        "refresh-metrics-interval": 0.2,
        "model-server-metrics-port": 9100,
        "model-server-metrics-path": "/ignored",
        "kv-cache-usage-percentage-metric": "my:usage{kind=kv}",
        "grpc-port": 9002,
    }
    options = config.scrape_options(cfg, flags)
    assert (options.path, options.interval, options.port, options.scheme) == ("/m", 0.1, 9100, "http")
    usage = options.mapper.engine({}).kv_usage
    assert usage is not None
    assert (usage.name, dict(usage.labels)) == ("my:usage", {"kind": "kv"})
    with pytest.raises(ConfigError, match="--lora-info-metric: '9x' is not a metric"):
        config.scrape_options(cfg, {"lora-info-metric": "9x"})


def test_unknown_default_engine_is_refused() -> None:
    cfg = load("plugins: [{type: core-metrics-extractor, parameters: {defaultEngine: vlm}}]\n")
    with pytest.raises(ConfigError, match="no engine is named 'vlm'"):
        config.scrape_options(cfg)


def test_v13_prefix_parameters_are_in_bytes() -> None:
    geometry = PrefixCacheScorerParameters(block_size=5, auto_tune=False).geometry()
    assert (geometry.block_bytes, geometry.max_blocks, geometry.capacity, geometry.auto_tune) == (5, 256, 31250, False)
    assert PrefixCacheScorerParameters(block_size_tokens=16).geometry().block_bytes == 64


@pytest.mark.parametrize(
    ("text", "seconds"), [("200ms", 0.2), ("1m30s", 90), ("0", 0), ("1h", 3600), (".5s", 0.5), ("1us", 1e-6)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)
    assert duration(duration_text(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "ms", "1 s", "-1s", "1s2"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        duration(text)
