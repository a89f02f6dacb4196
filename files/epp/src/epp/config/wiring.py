# SPDX-License-Identifier: GPL-3.0-or-later
"""What the configuration says to the data layer, in the data layer's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from epp.config.errors import ConfigError
from epp.config.schema import DataSourceSpec, EndpointPickerConfig
from epp.datalayer.exposition import MetricSpec
from epp.datalayer.http import ClientTls
from epp.datalayer.mapping import ENGINE_LABELS, ENGINES, CustomMetric, EngineMetrics, Mapper
from epp.datalayer.models import ModelsOptions
from epp.datalayer.scrape import ScrapeOptions
from epp.plugins.core_metrics_extractor import CoreMetricsExtractorParameters, EngineConfig
from epp.plugins.metrics_data_source import MetricsDataSourceParameters
from epp.plugins.model_server_protocol_metrics import ModelServerProtocolMetricsParameters
from epp.plugins.models_data_source import ModelsDataSourceParameters

METRIC_FLAGS = {
    "total-queued-requests-metric": "waiting",
    "total-running-requests-metric": "running",
    "kv-cache-usage-percentage-metric": "kv_usage",
    "lora-info-metric": "lora",
    "cache-info-metric": "cache_info",
}
"""Flags that name a metric of the default engine, and which one."""

PROTOCOL_METRICS = {
    "total-queued-requests-metric": "queued_requests_spec",
    "total-running-requests-metric": "running_requests_spec",
    "kv-cache-usage-percentage-metric": "kv_usage_spec",
    "lora-info-metric": "lora_spec",
    "cache-info-metric": "cache_info_spec",
}
"""The parameters of v1.3's extractor say what these flags say."""

OPTION_FLAGS = {
    "refresh-metrics-interval": "interval",
    "model-server-metrics-scheme": "scheme",
    "model-server-metrics-path": "path",
    "model-server-metrics-port": "port",
    "model-server-metrics-https-insecure-skip-verify": "insecure_skip_verify",
}


def scrape_options(
    cfg: EndpointPickerConfig, flags: Mapping[str, str | int | float | bool] | None = None
) -> ScrapeOptions:
    """How to read metrics.

    ``flags`` are those that a person gave, by name without dashes in front: ``refresh-metrics-interval`` in seconds,
    the five metric names, ``model-server-metrics-{scheme,path,port,https-insecure-skip-verify}``; others are ignored.
    Flags win over defaults, and the configuration's own parameters over flags. Raises ConfigError.
    """
    flags = flags or {}
    source = _source(cfg, MetricsDataSourceParameters)
    if source is None:
        return ScrapeOptions(enabled=False)
    given: dict[str, Any] = {OPTION_FLAGS[name]: flags[name] for name in OPTION_FLAGS if name in flags}
    parameters: MetricsDataSourceParameters = cfg.plugin(source.plugin).parameters
    own = {
        "scheme": parameters.scheme,
        "path": parameters.path,
        "port": parameters.port,
        "insecure_skip_verify": parameters.insecure_skip_verify,
        "interval": parameters.interval,
    }
    given.update({name: value for name, value in own.items() if value is not None})
    extractor = CoreMetricsExtractorParameters()
    for name in source.extractors:
        found = cfg.plugin(name).parameters
        if isinstance(found, CoreMetricsExtractorParameters):
            extractor = found
        elif isinstance(found, ModelServerProtocolMetricsParameters):
            specs = {flag: getattr(found, field) for flag, field in PROTOCOL_METRICS.items() if getattr(found, field)}
            flags = {**flags, **specs}
    return ScrapeOptions(
        ca_cert_path=parameters.ca_cert_path,
        client_cert_path=parameters.client_cert_path,
        client_key_path=parameters.client_key_path,
        mapper=_mapper(extractor, flags, cfg.source),
        **given,
    )


def models_options(cfg: EndpointPickerConfig) -> ModelsOptions | None:
    """How to ask endpoints for their models; None when nobody wants to know."""
    source = _source(cfg, ModelsDataSourceParameters)
    if source is None:
        return None
    given: ModelsDataSourceParameters = cfg.plugin(source.plugin).parameters
    tls = ClientTls(
        given.scheme, given.insecure_skip_verify, given.ca_cert_path, given.client_cert_path, given.client_key_path
    )
    return ModelsOptions(given.interval, path=given.path, port=given.port, tls=tls)


def _source(cfg: EndpointPickerConfig, kind: type[Any]) -> DataSourceSpec | None:
    """The source with parameters of this kind."""
    return next((each for each in cfg.sources if isinstance(cfg.plugin(each.plugin).parameters, kind)), None)


def _mapper(
    extractor: CoreMetricsExtractorParameters, flags: Mapping[str, str | int | float | bool], source: str
) -> Mapper:
    engines = dict(ENGINES)
    for config in extractor.engine_configs:
        engines[config.name] = _engine(config)
    default = extractor.default_engine
    if default not in engines:
        message = f"no engine is named {default!r}; known are {', '.join(sorted(engines))}"
        raise ConfigError(source, 0, "defaultEngine", message)
    for flag, field in METRIC_FLAGS.items():
        if flag not in flags:
            continue
        text = str(flags[flag])
        try:
            spec = MetricSpec.parse(text) if text else None
        except ValueError as error:
            raise ConfigError(f"--{flag}", 0, "", str(error)) from error
        changed: dict[str, Any] = {field: spec}
        engines[default] = replace(engines[default], **changed)
    key = extractor.engine_label_key
    labels = (key,) if key and key != ENGINE_LABELS[0] else ENGINE_LABELS
    return Mapper(engines, default, labels)


def _engine(config: EngineConfig) -> EngineMetrics:
    def spec(text: str) -> MetricSpec | None:
        return MetricSpec.parse(text) if text else None

    return EngineMetrics(
        config.name,
        waiting=spec(config.queued_requests_spec),
        running=spec(config.running_requests_spec),
        kv_usage=spec(config.kv_usage_spec),
        lora=spec(config.lora_spec),
        cache_info=spec(config.cache_info_spec),
        block_size_label=config.cache_block_size_label_name,
        num_blocks_label=config.cache_num_blocks_label_name,
        block_size=spec(config.cache_block_size_spec),
        num_blocks=spec(config.cache_num_blocks_spec),
        custom=tuple(
            CustomMetric(each.attribute_key, MetricSpec.parse(each.metric_spec), each.optional)
            for each in config.custom_metrics
        ),
        places=ENGINES[config.name].places if config.name in ENGINES else EngineMetrics("").places,
    )
