# SPDX-License-Identifier: GPL-3.0-or-later
"""For each variable that takes the place of a Helm value: a value other than the default, and what it must come to.

A check names an object, a JSONPath in it, and what is found there. No path: whether there is such an object at all.
Beside the object's own fields, a path sees the flags of its containers, and the documents that a ConfigMap's texts are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """What stands at ``path`` of an object, in order; nothing where the list is empty."""

    kind: str
    name: str
    path: str = ""
    found: list[Any] = field(default_factory=list)
    present: bool = True


@dataclass(frozen=True)
class Case:
    """``given`` are all variables of the role that the user sets, ``variable`` the one in question among them."""

    variable: str
    given: Json
    checks: tuple[Check, ...]


def case(variable: str, given: Json, *checks: Check) -> Case:
    return Case(variable, given, checks)


def there(kind: str, name: str) -> Check:
    return Check(kind, name)


def gone(kind: str, name: str) -> Check:
    return Check(kind, name, present=False)


def at(kind: str, name: str, path: str, *found: Any) -> Check:
    return Check(kind, name, path, list(found))


GATEWAY = "inference-gateway"
POOL: Json = {"name": "m"}
EPP: Json = {"epp_pools": [POOL]}
CONTAINER = ".spec.template.spec.containers[0]"
POOLS: Json = {"inference_pool_pools": [POOL]}
MODEL: Json = {"name": "m", "model": "org/m"}
MODELS: Json = {"kserve_runtimes_models": [MODEL]}
WAITING: Json = {
    "type": "Pods",
    "pods": {"metric": {"name": "waiting"}, "target": {"type": "AverageValue", "averageValue": "5"}},
}
KSERVE: Json = {**MODEL, "workload": "inference_service"}
READER = "inference-gateway-sa-metrics-reader-secret"
WATCHED: Json = {**EPP, "epp_monitoring": True}
GOOGLE: Json = {**WATCHED, "epp_provider": "gke"}
TRACED: Json = {**EPP, "epp_tracing": True}
JAEGER: Json = {"observability_jaeger": True}


def env(name: str) -> str:
    """The path of an environment variable's value in the only container."""
    return f'{CONTAINER}.env[?(@.name=="{name}")].value'


def flagged(flag: str, *value: str) -> Check:
    """The endpoint picker has this flag with this value, or has it not."""
    return at("Deployment", "m-epp", f"{CONTAINER}.flags['{flag}']", *value)


GATEWAY_CASES = [
    case(
        "envoy_gateway_class",
        {"envoy_gateway_class": "fast"},
        there("GatewayClass", "fast"),
        at("Gateway", GATEWAY, ".spec.gatewayClassName", "fast"),
    ),
    case(
        "envoy_gateway_create_gateway",
        {"envoy_gateway_create_gateway": False},
        there("GatewayClass", "llm-gateway"),
        gone("Gateway", GATEWAY),
        gone("EnvoyProxy", GATEWAY),
        gone("ClientTrafficPolicy", GATEWAY),
    ),
    case(
        "envoy_gateway_gateway_name",
        {"envoy_gateway_gateway_name": "front"},
        there("Gateway", "front"),
        at("ClientTrafficPolicy", "front", ".spec.targetRefs[*].name", "front"),
    ),
    case(
        "envoy_gateway_port",
        {"envoy_gateway_port": 8080},
        at("Gateway", GATEWAY, ".spec.listeners[*].port", 8080),
    ),
]

EPP_CASES = [
    case(
        "epp_image",
        {**EPP, "epp_image": "registry.example.com/epp:v1.5.0"},
        at("Deployment", "m-epp", f"{CONTAINER}.image", "registry.example.com/epp:v1.5.0"),
    ),
    case(
        "epp_image_pull_policy",
        {**EPP, "epp_image_pull_policy": "Always"},
        at("Deployment", "m-epp", f"{CONTAINER}.imagePullPolicy", "Always"),
    ),
    case(
        "epp_replicas",
        {**EPP, "epp_replicas": 2},
        at("Deployment", "m-epp", ".spec.replicas", 2),
        there("PodDisruptionBudget", "m-epp"),
        there("Service", "m-epp-peers"),
        flagged("statesync-port", "9006"),
    ),
    case("epp_workers", {**EPP, "epp_workers": 2}, flagged("workers", "2")),
    case(
        "epp_state_sync",
        {**EPP, "epp_replicas": 2, "epp_state_sync": False},
        gone("Service", "m-epp-peers"),
        flagged("statesync-port"),
    ),
    case(
        "epp_pools[].replicas",
        {"epp_pools": [{**POOL, "replicas": 3}]},
        at("Deployment", "m-epp", ".spec.replicas", 3),
    ),
    case("epp_pools", EPP, there("Deployment", "m-epp"), there("EnvoyExtensionPolicy", "m")),
    case(
        "epp_pools[].name",
        {"epp_pools": [{"name": "llama"}]},
        there("Service", "llama-epp"),
        at("Deployment", "llama-epp", f"{CONTAINER}.args[0]", "--pool-name=llama"),
        at("EnvoyExtensionPolicy", "llama", ".spec.targetRefs[*].name", "llama"),
    ),
    case(
        "epp_pools[].runtime",
        {"epp_pools": [{**POOL, "runtime": "triton-tensorrt-llm"}]},
        flagged("total-queued-requests-metric", "nv_trt_llm_request_metrics{request_type=waiting}"),
        flagged("lora-info-metric", ""),
    ),
    case(
        "epp_namespace",
        {**EPP, "epp_namespace": "models"},
        there("Namespace", "models"),
        at("Deployment", "m-epp", ".metadata.namespace", "models"),
        flagged("pool-namespace", "models"),
    ),
    case(
        "epp_drain_timeout",
        {**EPP, "epp_drain_timeout": 60},
        flagged("drain-timeout", "60s"),
        at("Deployment", "m-epp", ".spec.template.spec.terminationGracePeriodSeconds", 75),
    ),
    case("epp_log_level", {**EPP, "epp_log_level": "debug"}, flagged("v", "4")),
    case("epp_log_encoder", {**EPP, "epp_log_encoder": "console"}, flagged("zap-encoder", "console")),
    case(
        "epp_resources",
        {
            **EPP,
            "epp_resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}},
        },
        at("Deployment", "m-epp", f"{CONTAINER}.resources.requests.cpu", "1"),
        at("Deployment", "m-epp", f"{CONTAINER}.resources.requests.memory", "1Gi"),
        at("Deployment", "m-epp", f"{CONTAINER}.resources.limits.cpu", "4"),
        at("Deployment", "m-epp", f"{CONTAINER}.resources.limits.memory", "4Gi"),
    ),
    case(
        "epp_scheduling_config",
        {**EPP, "epp_scheduling_config": False},
        gone("ConfigMap", "m-epp"),
        flagged("config-file"),
        at("Deployment", "m-epp", '.spec.template.spec.volumes[?(@.name=="config")]'),
    ),
    case(
        "epp_scorers",
        {**EPP, "epp_scorers": {"prefixCacheScorer": 7, "kvCacheUtilizationScorer": 2, "queueScorer": 1}},
        at("ConfigMap", "m-epp", ".texts['config.yaml'].schedulingProfiles[0].plugins[0].weight", 7),
        at("ConfigMap", "m-epp", ".texts['config.yaml'].schedulingProfiles[0].plugins[1].weight", 2),
        at("ConfigMap", "m-epp", ".texts['config.yaml'].schedulingProfiles[0].plugins[2].weight", 1),
    ),
    case(
        "epp_picker",
        {**EPP, "epp_picker": "random-picker"},
        at("ConfigMap", "m-epp", ".texts['config.yaml'].schedulingProfiles[0].plugins[3].pluginRef", "random-picker"),
    ),
    case(
        "epp_saturation_detector",
        {**EPP, "epp_saturation_detector": {"queue_depth_threshold": 9, "kv_cache_util_threshold": 0.5}},
        at("ConfigMap", "m-epp", ".texts['config.yaml'].saturationDetector.queueDepthThreshold", 9),
        at("ConfigMap", "m-epp", ".texts['config.yaml'].saturationDetector.kvCacheUtilThreshold", 0.5),
    ),
    case(
        "epp_config",
        {**EPP, "epp_config": {"kind": "EndpointPickerConfig", "plugins": [{"type": "custom-scorer"}]}},
        at("ConfigMap", "m-epp", ".texts['config.yaml'].plugins[*].type", "custom-scorer"),
    ),
    case(
        "epp_env",
        {**EPP, "epp_env": [{"name": "CUSTOM_ENV_VAR", "value": "custom"}]},
        at("Deployment", "m-epp", env("CUSTOM_ENV_VAR"), "custom"),
    ),
    case(
        "epp_flags",
        {**EPP, "epp_flags": {"enable-pprof": False}},
        flagged("enable-pprof", "false"),
    ),
    case(
        "epp_extra_ports",
        {**EPP, "epp_extra_ports": [{"name": "zmq", "port": 5557}]},
        at("Deployment", "m-epp", f'{CONTAINER}.ports[?(@.name=="zmq")].containerPort', 5557),
        at("Service", "m-epp", '.spec.ports[?(@.name=="zmq")].port', 5557),
    ),
    case(
        "epp_extra_ports[].service",
        {**EPP, "epp_extra_ports": [{"name": "zmq", "port": 5557, "service": False}]},
        at("Deployment", "m-epp", f'{CONTAINER}.ports[?(@.name=="zmq")].containerPort', 5557),
        at("Service", "m-epp", '.spec.ports[?(@.name=="zmq")].port'),
    ),
    case(
        "epp_affinity",
        {**EPP, "epp_affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7}]}}},
        at(
            "Deployment",
            "m-epp",
            ".spec.template.spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].weight",
            7,
        ),
        at(
            "Deployment",
            "m-epp",
            ".spec.template.spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].weight",
            100,
        ),
    ),
    case(
        "epp_tolerations",
        {**EPP, "epp_tolerations": [{"key": "system", "operator": "Exists"}]},
        at("Deployment", "m-epp", ".spec.template.spec.tolerations[*].key", "system"),
    ),
]

WIRING_CASES = [
    case(
        "epp_extension_policy",
        {**EPP, "epp_extension_policy": False},
        gone("EnvoyExtensionPolicy", "m"),
        gone("Backend", "m-epp"),
    ),
    case(
        "epp_extension_policy_target",
        {**EPP, "epp_extension_policy_target": "Gateway", "epp_gateway_name": "front"},
        at("EnvoyExtensionPolicy", "m", ".spec.targetRefs[*].kind", "Gateway"),
        at("EnvoyExtensionPolicy", "m", ".spec.targetRefs[*].name", "front"),
    ),
    case(
        "epp_response_body_mode",
        {**EPP, "epp_response_body_mode": "Streamed"},
        at("EnvoyExtensionPolicy", "m", ".spec.extProc[*].processingMode.response.body", "Streamed"),
    ),
    case(
        "epp_destination_rule_host",
        {**EPP, "epp_provider": "istio", "epp_destination_rule_host": "picker.example.com"},
        at("DestinationRule", "m-epp", ".spec.host", "picker.example.com"),
        at("DestinationRule", "m-epp", ".spec.trafficPolicy.tls.mode", "SIMPLE"),
        gone("EnvoyExtensionPolicy", "m"),
    ),
    case(
        "epp_destination_rule_connection_pool",
        {
            **EPP,
            "epp_provider": "istio",
            "epp_destination_rule_connection_pool": {"tcp": {"maxConnections": 500}},
        },
        at("DestinationRule", "m-epp", ".spec.trafficPolicy.connectionPool.tcp.maxConnections", 500),
        at("DestinationRule", "m-epp", ".spec.host", "m-epp.llm-platform.svc.cluster.local"),
    ),
]

WATCHING_CASES = [
    case(
        "epp_monitoring",
        WATCHED,
        at("ServiceMonitor", "m-epp", ".spec.endpoints[*].port", "metrics"),
        at("ServiceMonitor", "m-epp", ".spec.endpoints[*].authorization.credentials.name", READER),
        at("ServiceMonitor", "m-epp", ".spec.selector.matchLabels['app.kubernetes.io/instance']", "m-epp"),
        at("Secret", READER, ".type", "kubernetes.io/service-account-token"),
        at("ClusterRole", f"llm-platform-{READER}", ".rules[*].nonResourceURLs[*]", "/metrics"),
    ),
    case(
        "epp_monitoring",
        GOOGLE,
        gone("ServiceMonitor", "m-epp"),
        at("ClusterPodMonitoring", "llm-platform-m-epp", ".spec.endpoints[*].authorization.type", "Bearer"),
        at("RoleBinding", READER, ".subjects[*].namespace", "gmp-system"),
    ),
    case(
        "epp_monitoring_interval",
        {**WATCHED, "epp_monitoring_interval": "10s"},
        at("ServiceMonitor", "m-epp", ".spec.endpoints[*].interval", "10s"),
    ),
    case(
        "epp_monitoring_labels",
        {**WATCHED, "epp_monitoring_labels": {"release": "kube-prometheus"}},
        at("ServiceMonitor", "m-epp", ".metadata.labels.release", "kube-prometheus"),
    ),
    case(
        "epp_metrics_auth",
        {**WATCHED, "epp_metrics_auth": False},
        flagged("metrics-endpoint-auth", "false"),
        at("ServiceMonitor", "m-epp", ".spec.endpoints[*].authorization"),
        gone("Secret", READER),
    ),
    case(
        "epp_metrics_reader_secret",
        {**WATCHED, "epp_metrics_reader_secret": "reader"},
        there("ServiceAccount", "reader"),
        at("Secret", "reader", ".metadata.annotations['kubernetes.io/service-account.name']", "reader"),
        at("ServiceMonitor", "m-epp", ".spec.endpoints[*].authorization.credentials.name", "reader"),
    ),
    case(
        "epp_metrics_reader_namespace",
        {**GOOGLE, "epp_metrics_reader_namespace": "default"},
        at("Secret", READER, ".metadata.namespace", "default"),
        at(
            "ClusterPodMonitoring",
            "llm-platform-m-epp",
            ".spec.endpoints[*].authorization.credentials.secret.namespace",
            "default",
        ),
    ),
    case(
        "epp_gke_autopilot",
        {**GOOGLE, "epp_gke_autopilot": True},
        at("RoleBinding", READER, ".subjects[*].namespace", "gke-gmp-system"),
    ),
    case(
        "epp_tracing",
        TRACED,
        flagged("tracing", "true"),
        at("Deployment", "m-epp", env("OTEL_SERVICE_NAME"), "m-epp"),
        at(
            "Deployment",
            "m-epp",
            env("OTEL_EXPORTER_OTLP_ENDPOINT"),
            "http://jaeger.llm-platform.svc.cluster.local:4317",
        ),
    ),
    case(
        "epp_otlp_endpoint",
        {**TRACED, "epp_otlp_endpoint": "http://collector:4317"},
        at("Deployment", "m-epp", env("OTEL_EXPORTER_OTLP_ENDPOINT"), "http://collector:4317"),
    ),
    case(
        "epp_traces_sampler",
        {**TRACED, "epp_traces_sampler": "always_on"},
        at("Deployment", "m-epp", env("OTEL_TRACES_SAMPLER"), "always_on"),
    ),
    case(
        "epp_traces_sampler_arg",
        {**TRACED, "epp_traces_sampler_arg": "0.5"},
        at("Deployment", "m-epp", env("OTEL_TRACES_SAMPLER_ARG"), "0.5"),
    ),
    case(
        "observability_dashboards",
        {"observability_dashboards": True},
        at(
            "ConfigMap",
            "inference-platform-dashboard",
            ".metadata.labels['grafana_dashboard']",
            "1",
        ),
        at(
            "ConfigMap",
            "inference-platform-dashboard",
            ".texts['inference-platform.json'].panels[0].targets[0].legendFormat",
            "{{ model_name }}",
        ),
    ),
    case("observability_jaeger", JAEGER, there("Deployment", "jaeger"), there("Service", "jaeger")),
    case(
        "observability_jaeger_image",
        {**JAEGER, "observability_jaeger_image": "registry.example.com/jaeger:2.0.0"},
        at("Deployment", "jaeger", f"{CONTAINER}.image", "registry.example.com/jaeger:2.0.0"),
    ),
    case(
        "observability_jaeger_resources",
        {**JAEGER, "observability_jaeger_resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Gi"}}},
        at("Deployment", "jaeger", f"{CONTAINER}.resources.limits.cpu", "1"),
        at("Deployment", "jaeger", f"{CONTAINER}.resources.requests.memory", "1Gi"),
    ),
    case(
        "observability_jaeger_service_type",
        {**JAEGER, "observability_jaeger_service_type": "NodePort"},
        at("Service", "jaeger", ".spec.type", "NodePort"),
    ),
    case(
        "observability_jaeger_ui_port",
        {**JAEGER, "observability_jaeger_ui_port": 80},
        at("Service", "jaeger", '.spec.ports[?(@.name=="ui")].port', 80),
    ),
    case(
        "observability_jaeger_otlp_port",
        {**JAEGER, "observability_jaeger_otlp_port": 14317},
        at("Service", "jaeger", '.spec.ports[?(@.name=="otlp-grpc")].port', 14317),
    ),
    case(
        "observability_jaeger_storage_type",
        {
            **JAEGER,
            "observability_jaeger_storage_type": "elasticsearch",
            "observability_jaeger_storage": {"server_urls": ["http://elastic:9200"]},
        },
        at(
            "ConfigMap",
            "jaeger",
            ".texts['config.yaml'].extensions.jaeger_storage.backends.traces.elasticsearch.server_urls[*]",
            "http://elastic:9200",
        ),
    ),
]

POOL_CASES = [
    case(
        "inference_pool_pools",
        POOLS,
        there("InferencePool", "m"),
        there("HTTPRoute", "m"),
        there("BackendTrafficPolicy", "m"),
    ),
    case(
        "inference_pool_pools[].match_labels",
        {"inference_pool_pools": [{**POOL, "match_labels": {"app": "vllm-llama3-8b-instruct"}}]},
        at("InferencePool", "m", ".spec.selector.matchLabels.app", "vllm-llama3-8b-instruct"),
        at("Service", "m", ".spec.selector.app", "vllm-llama3-8b-instruct"),
    ),
    case(
        "inference_pool_pools[].epp_service",
        {"inference_pool_pools": [{**POOL, "epp_service": "stack-inference-gateway-epp"}]},
        at("InferencePool", "m", ".spec.endpointPickerRef.name", "stack-inference-gateway-epp"),
    ),
    case(
        "inference_pool_target_ports",
        {**POOLS, "inference_pool_target_ports": [8200, 8201]},
        at("InferencePool", "m", ".spec.targetPorts[*].number", 8200, 8201),
        at("Service", "m", ".spec.ports[*].targetPort", 8200, 8201),
    ),
    case(
        "inference_pool_api_version",
        {**POOLS, "inference_pool_api_version": "inference.networking.x-k8s.io/v1alpha2"},
        at("InferencePool", "m", ".apiVersion", "inference.networking.x-k8s.io/v1alpha2"),
        at("InferencePool", "m", ".spec.targetPortNumber", 8000),
        at("InferencePool", "m", ".spec.extensionRef.name", "m-epp"),
        at("InferencePool", "m", ".spec.selector['inferops.cluster/model']", "m"),
    ),
    case(
        "inference_pool_gateway_name",
        {**POOLS, "inference_pool_gateway_name": "infra-networking-layer-gateway"},
        at("HTTPRoute", "m", ".spec.parentRefs[*].name", "infra-networking-layer-gateway"),
    ),
    case(
        "inference_pool_gateway_namespace",
        {**POOLS, "inference_pool_gateway_namespace": "infra"},
        at("HTTPRoute", "m", ".spec.parentRefs[*].namespace", "infra"),
    ),
    case(
        "inference_pool_request_timeout",
        {**POOLS, "inference_pool_request_timeout": "30m"},
        at("BackendTrafficPolicy", "m", ".spec.timeout.http.requestTimeout", "30m"),
    ),
    case(
        "inference_pool_provider",
        {**POOLS, "inference_pool_provider": "none"},
        at("HTTPRoute", "m", ".spec.rules[*].backendRefs[*].kind", "InferencePool"),
        at("HTTPRoute", "m", ".spec.rules[*].timeouts.request", "300s"),
        gone("BackendTrafficPolicy", "m"),
        gone("Service", "m"),
    ),
    case(
        "inference_pool_provider",
        {**POOLS, "inference_pool_provider": "gke", "inference_pool_request_timeout": "1h30m"},
        at("HealthCheckPolicy", "m", ".spec.targetRef.kind", "InferencePool"),
        at("GCPBackendPolicy", "m", ".spec.default.timeoutSec", 5400),
    ),
    case(
        "inference_pool_provider",
        {**POOLS, "inference_pool_provider": "istio"},
        at("HTTPRoute", "m", ".spec.rules[*].backendRefs[*].group", "inference.networking.k8s.io"),
        gone("GCPBackendPolicy", "m"),
    ),
]

SERVER_CASES = [
    case("kserve_runtimes_models", MODELS, there("Deployment", "m")),
    case(
        "kserve_runtimes_models[].name", {"kserve_runtimes_models": [{**MODEL, "name": "x"}]}, there("Deployment", "x")
    ),
    case(
        "kserve_runtimes_models[].replicas",
        {"kserve_runtimes_models": [{**MODEL, "replicas": 4}]},
        at("Deployment", "m", ".spec.replicas", 4),
        there("PodDisruptionBudget", "m"),
    ),
    case(
        "kserve_runtimes_models[].gpus",
        {"kserve_runtimes_models": [{**MODEL, "gpus": 4}]},
        at("Deployment", "m", f"{CONTAINER}.resources.limits['nvidia.com/gpu']", 4),
        at("Deployment", "m", f"{CONTAINER}.flags['tensor-parallel-size']", "4"),
    ),
    case(
        "kserve_runtimes_models[].tensor_parallel_size",
        {"kserve_runtimes_models": [{**MODEL, "gpus": 4, "tensor_parallel_size": 2}]},
        at("Deployment", "m", f"{CONTAINER}.resources.limits['nvidia.com/gpu']", 4),
        at("Deployment", "m", f"{CONTAINER}.flags['tensor-parallel-size']", "2"),
    ),
    case(
        "kserve_runtimes_models[].max_replicas",
        {
            "kserve_runtimes_models": [{**MODEL, "replicas": 2, "max_replicas": 6}],
            "kserve_runtimes_scale_metrics": [WAITING],
        },
        at("HorizontalPodAutoscaler", "m", ".spec.minReplicas", 2),
        at("HorizontalPodAutoscaler", "m", ".spec.maxReplicas", 6),
        at("HorizontalPodAutoscaler", "m", ".spec.metrics[*].pods.metric.name", "waiting"),
        at("Deployment", "m", ".spec.replicas"),
    ),
    case(
        "kserve_runtimes_models[].workload",
        {"kserve_runtimes_models": [{**KSERVE, "replicas": 2, "gpus": 2}]},
        gone("Deployment", "m"),
        at("InferenceService", "m", ".spec.predictor.minReplicas", 2),
        at("InferenceService", "m", ".spec.predictor.model.runtime", "vllm"),
        at("InferenceService", "m", ".spec.predictor.model.resources.limits['nvidia.com/gpu']", 2),
        at("InferenceService", "m", ".spec.predictor.model.args[*]", "--tensor-parallel-size", "2"),
        at("InferenceService", "m", ".spec.predictor.labels['inferops.cluster/model']", "m"),
        at("InferenceService", "m", ".metadata.annotations['inferops.cluster/model']", "org/m"),
    ),
    case(
        "kserve_runtimes_models[].storage_uri",
        {"kserve_runtimes_models": [{**KSERVE, "storage_uri": "hf://org/m"}]},
        at("InferenceService", "m", ".spec.predictor.model.storageUri", "hf://org/m"),
        at("InferenceService", "m", ".metadata.annotations['inferops.cluster/model']"),
    ),
    case(
        "kserve_runtimes_models[].loras",
        {"kserve_runtimes_models": [{**MODEL, "loras": [{"name": "poet", "path": "org/poet"}]}]},
        at("Deployment", "m", f"{CONTAINER}.flags['enable-lora']", ""),
        at("Deployment", "m", f"{CONTAINER}.flags['lora-modules']", "poet=org/poet"),
    ),
    *(
        case(
            "kserve_runtimes_serving_runtimes",
            {"kserve_runtimes_serving_runtimes": [name]},
            at("ClusterServingRuntime", name, ".spec.supportedModelFormats[*].name", name),
            at("ClusterServingRuntime", name, ".spec.containers[*].ports[*].containerPort", port),
        )
        for name, port in (("vllm", 8000), ("llamacpp", 8080), ("ollama", 11434))
    ),
]

API = "http://stack-inference-gateway.llm-platform.svc.cluster.local/v1"
LITELLM_CASES = [
    case(
        "litellm_models[].name",
        {"litellm_models": [{"name": "llama-70b"}]},
        at("ConfigMap", "litellm", ".texts['config.yaml'].model_list[*].model_name", "llama-70b"),
    ),
    case(
        "litellm_models[].model",
        {"litellm_models": [{"name": "chat", "model": "hosted_vllm/meta-llama/Llama-3.3-70B-Instruct"}]},
        at(
            "ConfigMap",
            "litellm",
            ".texts['config.yaml'].model_list[*].litellm_params.model",
            "hosted_vllm/meta-llama/Llama-3.3-70B-Instruct",
        ),
    ),
    case(
        "litellm_models[].api_base",
        {"litellm_models": [{"name": "chat", "api_base": API}]},
        at("ConfigMap", "litellm", ".texts['config.yaml'].model_list[*].litellm_params.api_base", API),
    ),
    case(
        "litellm_api_base",
        {"litellm_models": [{"name": "chat"}], "litellm_api_base": API},
        at("ConfigMap", "litellm", ".texts['config.yaml'].model_list[*].litellm_params.api_base", API),
    ),
]

CASES = GATEWAY_CASES + EPP_CASES + WIRING_CASES + WATCHING_CASES + POOL_CASES + SERVER_CASES + LITELLM_CASES
