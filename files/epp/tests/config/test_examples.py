# SPDX-License-Identifier: GPL-3.0-or-later
"""Configurations of the kinds that people bring along: each loads unchanged, makes a scheduler, and schedules."""

from __future__ import annotations

import pytest

from epp import config, plugins
from epp.datalayer import Datastore
from epp.model import Endpoint, InferenceRequest
from epp.observe import PoolRecorder, Recorder
from epp.scheduling import Scheduler

OLD = "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n"
NEW = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"

EXAMPLES = {
    "v1.3, the default written out": OLD
    + """\
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: kv-cache-utilization-scorer
    weight: 2
  - pluginRef: prefix-cache-scorer
    weight: 3
""",
    "v1.3, everything it has": OLD
    + """\
featureGates: [dataLayer, prepareDataPlugins]
plugins:
- name: cache
  type: prefix-cache-scorer
  parameters: {autoTune: false, blockSize: 64, maxPrefixBlocksToMatch: 256, lruCapacityPerServer: 31250}
- type: lora-affinity-scorer
- type: running-requests-size-scorer
- type: metrics-data-source
- type: model-server-protocol-metrics
- {type: weighted-random-picker, parameters: {maxNumOfEndpoints: 2}}
- type: single-profile-handler
schedulingProfiles:
- name: default
  plugins: [{pluginRef: cache, weight: 50}, {pluginRef: lora-affinity-scorer}, {pluginRef: weighted-random-picker}]
data:
  sources: [{pluginRef: metrics-data-source, extractors: [{pluginRef: model-server-protocol-metrics}]}]
saturationDetector: {queueDepthThreshold: 10, kvCacheUtilThreshold: 0.9, metricsStalenessThreshold: 300ms}
""",
    "v1.3, predicted latency": OLD
    + """\
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
- {type: predicted-latency-scorer, parameters: {headroomSelectionStrategy: least, streamingMode: true}}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: predicted-latency-scorer}]
""",
    "conformance of gateways": OLD
    + """\
plugins:
- type: header-based-testing-filter
- type: destination-endpoint-served-verifier
- type: random-picker
schedulingProfiles:
- {name: default, plugins: [{pluginRef: header-based-testing-filter}, {pluginRef: random-picker}]}
""",
    "scheduler 0.4, prefill and decode": OLD
    + """\
plugins:
- type: prefix-cache-scorer
  parameters: {blockSize: 5, maxPrefixBlocksToMatch: 256, lruCapacityPerServer: 31250}
- type: prefill-filter
- type: decode-filter
- type: max-score-picker
- type: prefill-header-handler
- type: pd-profile-handler
  parameters: {threshold: 10, hashBlockSize: 5, decodeProfile: decode, prefillProfile: prefill}
schedulingProfiles:
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: max-score-picker}, {pluginRef: prefix-cache-scorer, weight: 50}]
- name: decode
  plugins: [{pluginRef: decode-filter}, {pluginRef: max-score-picker}, {pluginRef: prefix-cache-scorer, weight: 50}]
""",
    "scheduler 0.4, its scorers": OLD
    + """\
plugins:
- {type: by-label, parameters: {label: "llm-d.ai/role", validValues: [decode], allowsNoLabel: true}}
- {type: by-label-selector, name: gpus, parameters: {matchLabels: {gpu: h100}}}
- {type: load-aware-scorer, parameters: {threshold: 100}}
- type: session-affinity-scorer
- {type: active-request-scorer, parameters: {requestTimeout: "2m"}}
- {type: no-hit-lru-scorer, parameters: {lruSize: 2048, prefixPluginName: prefix-cache-scorer}}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: by-label
  - {pluginRef: load-aware-scorer, weight: 10}
  - {pluginRef: session-affinity-scorer, weight: 5}
  - pluginRef: active-request-scorer
  - pluginRef: no-hit-lru-scorer
  - pluginRef: max-score-picker
""",
    "scheduler 0.4, precise prefixes": OLD
    + """\
plugins:
- type: single-profile-handler
- type: decode-filter
- type: precise-prefix-cache-scorer
  parameters:
    tokenProcessorConfig: {blockSize: 64, hashSeed: "42"}
    kvEventsConfig: {zmqEndpoint: "tcp://*:5557", topicFilter: "kv@"}
    indexerConfig:
      tokenizersPoolConfig: {hf: {tokenizersCacheDir: /tmp/tokenizers}}
      kvBlockIndexConfig: {enableMetrics: true}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: decode-filter
  - {pluginRef: precise-prefix-cache-scorer, weight: 50}
  - pluginRef: max-score-picker
""",
    "router, prefill and decode": NEW
    + """\
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
  - {pluginRef: prefill-filter}
  - {pluginRef: max-score-picker}
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - {pluginRef: queue-scorer, weight: 1}
- name: decode
  plugins:
  - {pluginRef: decode-filter}
  - {pluginRef: max-score-picker}
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - {pluginRef: queue-scorer, weight: 1}
""",
    "router, precise prefixes": NEW
    + """\
plugins:
- {type: token-producer, parameters: {modelName: org/model, vllm: {url: "http://localhost:8000"}}}
- type: endpoint-notification-source
- type: metrics-data-source
- type: core-metrics-extractor
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSizeTokens: 64}
    indexerConfig: {kvBlockIndexConfig: {enableMetrics: true}}
    kvEventsConfig: {discoverPods: true, podDiscoveryConfig: {socketPort: 5557}}
    speculativeIndexing: true
    speculativeTTL: 2s
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}
- type: kv-cache-utilization-scorer
- type: max-score-picker
dataLayer:
  sources:
  - {pluginRef: metrics-data-source, extractors: [{pluginRef: core-metrics-extractor}]}
  - {pluginRef: endpoint-notification-source, extractors: [{pluginRef: precise-prefix-cache-producer}]}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-scorer, weight: 2.0}
  - {pluginRef: kv-cache-utilization-scorer, weight: 1.0}
  - pluginRef: max-score-picker
""",
    "router, sticky until saturated": NEW
    + """\
plugins:
- type: approx-prefix-cache-producer
- type: inflight-load-producer
- {type: prefix-cache-affinity-filter, parameters: {affinityThreshold: 0.8, maxTTFTPenaltyMs: 5000}}
- {type: token-load-scorer, parameters: {inFlightLoadProducerName: inflight-load-producer}}
- {type: concurrency-detector, parameters: {concurrencyMode: tokens, maxTokenConcurrency: 1000000}}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: prefix-cache-affinity-filter}, {pluginRef: token-load-scorer}]}
flowControl: {saturationDetector: {pluginRef: concurrency-detector}}
""",
    "router, latency": NEW
    + """\
plugins:
- type: predicted-latency-producer
- type: prefix-cache-affinity-filter
  name: global
  parameters: {affinityThreshold: 0.99, ttftSource: latencyPredictor}
- type: slo-headroom-tier-filter
- type: latency-scorer
- type: latency-slo-admitter
- type: weighted-random-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: global
  - pluginRef: slo-headroom-tier-filter
  - pluginRef: latency-scorer
  - pluginRef: weighted-random-picker
""",
    "router, pictures": NEW
    + """\
plugins:
- type: token-producer
- {type: mm-embeddings-cache-producer, parameters: {cacheSizeInMBPerServer: 2048}}
- type: mm-embeddings-cache-scorer
- {type: always-disagg-multimodal-decider}
- {type: disagg-profile-handler, parameters: {deciders: {encode: always-disagg-multimodal-decider}}}
- type: encode-filter
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: mm-embeddings-cache-scorer, weight: 4}]}
- {name: encode, plugins: [{pluginRef: encode-filter}]}
""",
    "router, bursts and sessions": NEW
    + """\
plugins:
- {type: burst-prefix-cache-producer, parameters: {windowDurationMs: 100, maxPerReplica: -1}}
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: burst-prefix-cache-producer}}
- type: agent-identity
- type: session-affinity-filter
  parameters: {strategy: session_id, sessionIdConfig: {sources: [{header: x-session-id}, {attribute: agent-identity}]}}
- {type: probabilistic-admitter, parameters: {queueDepthThreshold: 5, power: 5, k: 300}}
""",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_loads_and_schedules(name: str) -> None:
    cfg = config.load(EXAMPLES[name], f"{name}.yaml")
    datastore = Datastore("pool")
    labels = {"gpu": "h100"}
    datastore.replace([Endpoint(f"e{i}", "ns", f"p{i}", f"10.0.0.{i + 1}", 8000, labels) for i in range(3)])
    scheduler = Scheduler.from_config(cfg, plugins.registry(), datastore, PoolRecorder(Recorder(), "pool"), seed=1)
    headers = {"test-epp-endpoint-selection": "10.0.0.1", "x-session-id": "s"}
    request = InferenceRequest("id", headers, model="m", prompt=b'"hello" ' * 200)
    scheduler.request_headers(request)
    decision = scheduler.schedule(request, datastore.endpoints())
    scheduler.pre_request(request, decision)
    assert decision.endpoints[0] in datastore.endpoints()


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_it_comes_to_is_the_same_again(name: str) -> None:
    cfg = config.load(EXAMPLES[name], f"{name}.yaml")
    assert config.load(config.effective(cfg), "again") == cfg
