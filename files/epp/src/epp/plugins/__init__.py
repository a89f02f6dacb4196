# SPDX-License-Identifier: GPL-3.0-or-later
"""All plugins that can be named in an EndpointPickerConfig, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from epp.plugins.approx_prefix_cache_producer import ApproxPrefixCacheProducer
from epp.plugins.concurrency_detector import ConcurrencyDetector
from epp.plugins.core_metrics_extractor import CoreMetricsExtractor
from epp.plugins.destination_endpoint_served_verifier import DestinationEndpointServedVerifier
from epp.plugins.file_discovery import FileDiscovery
from epp.plugins.header_based_testing_filter import HeaderBasedTestingFilter
from epp.plugins.kv_cache_utilization_scorer import KVCacheUtilizationScorer
from epp.plugins.latency_slo_admitter import LatencySloAdmitter
from epp.plugins.lora_affinity_scorer import LoraAffinityScorer
from epp.plugins.max_score_picker import MaxScorePicker
from epp.plugins.metrics_data_source import MetricsDataSource
from epp.plugins.openai_parser import OpenAIParser
from epp.plugins.prefix_cache_scorer import PrefixCacheScorer
from epp.plugins.probabilistic_admitter import ProbabilisticAdmitter
from epp.plugins.queue_scorer import QueueScorer
from epp.plugins.random_picker import RandomPicker
from epp.plugins.running_requests_size_scorer import RunningRequestsSizeScorer
from epp.plugins.single_profile_handler import SingleProfileHandler
from epp.plugins.utilization_detector import UtilizationDetector
from epp.plugins.weighted_random_picker import WeightedRandomPicker
from epp.scheduling.api import Plugin

_ALL: tuple[type[Plugin], ...] = (
    ApproxPrefixCacheProducer,
    ConcurrencyDetector,
    CoreMetricsExtractor,
    DestinationEndpointServedVerifier,
    FileDiscovery,
    HeaderBasedTestingFilter,
    KVCacheUtilizationScorer,
    LatencySloAdmitter,
    LoraAffinityScorer,
    MaxScorePicker,
    MetricsDataSource,
    OpenAIParser,
    PrefixCacheScorer,
    ProbabilisticAdmitter,
    QueueScorer,
    RandomPicker,
    RunningRequestsSizeScorer,
    SingleProfileHandler,
    UtilizationDetector,
    WeightedRandomPicker,
)


def registry() -> Mapping[str, type[Plugin]]:
    """Plugin type, as written in the configuration, to the class that implements it."""
    return {name: plugin for plugin in _ALL for name in (plugin.TYPE, *plugin.ALIASES)}
