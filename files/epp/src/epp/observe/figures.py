# SPDX-License-Identifier: GPL-3.0-or-later
"""Every figure of the EPP: what it is counted by, and its names, legacy (GAIE v1.3) and canonical (llm-d-router)."""

from __future__ import annotations

from epp.observe.series import Figure, view

DURATION = (
    *(0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60),
    *(120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600),
)
SHORT = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
REQUEST_BYTES = tuple(float(2**power) for power in range(6, 31))
RESPONSE_BYTES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32778, 65536)
INPUT_TOKENS = (1, *(2**power for power in range(3, 15)), 32778, 65536, 131072, 262144, 524288, 1048576)
OUTPUT_TOKENS = (1, *(2**power for power in range(3, 14)))
TPOT = (
    *(0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2),
    *(3, 4.5, 6, 12, 18, 24, 30, 36, 48, 60, 90, 120, 180, 270, 360),
)
TOKEN_TIME = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
QUEUE_WAIT = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATIO = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
HIT_BYTES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)

_BY = ("model_name", "target_model_name", "fairness_id", "priority")
_OLD = ("model_name", "target_model_name")
_LEGACY, _CANONICAL = "inference_objective_", "llm_d_epp_"


def _request(old: str, new: str, text: str, bounds: tuple[float, ...] = (), counter: bool = False) -> Figure:
    """A figure per request; counters of the legacy family have the priority, too."""
    legacy = (*_OLD, "priority") if counter else _OLD
    views = (view(_LEGACY + old, text, *legacy), view(_CANONICAL + new, text, *_BY))
    return Figure(_BY, views, bounds, counter)


class Figures:
    """All of them. One object per process, or per test."""

    def __init__(self) -> None:
        self.requests = _request("request_total", "request_total", "Requests by model.", counter=True)
        self.errors = Figure(
            (*_BY, "error_code"),
            (
                view(_LEGACY + "request_error_total", "Failed requests by model and error.", *_OLD, "error_code"),
                view(_CANONICAL + "request_error_total", "Failed requests by model and error.", *_BY, "error_code"),
            ),
            counter=True,
        )
        name = "request_duration_seconds"
        self.duration = _request(name, name, "Seconds from the request's arrival to the end of its answer.", DURATION)
        self.request_bytes = _request("request_sizes", "request_size_bytes", "Bytes of requests.", REQUEST_BYTES)
        self.response_bytes = _request("response_sizes", "response_size_bytes", "Bytes of answers.", RESPONSE_BYTES)
        self.input_tokens = _request("input_tokens", "request_input_tokens", "Tokens of prompts.", INPUT_TOKENS)
        self.output_tokens = _request("output_tokens", "request_output_tokens", "Tokens of answers.", OUTPUT_TOKENS)
        text = "Tokens of prompts that the server had cached."
        self.cached_tokens = _request("prompt_cached_tokens", "request_cached_tokens", text, INPUT_TOKENS)
        self.running = Figure(
            _BY,
            (
                view(_LEGACY + "running_requests", "Requests being answered.", "model_name"),
                view(_CANONICAL + "request_running", "Requests being answered.", *_BY),
            ),
        )
        old = "normalized_time_per_output_token_seconds"
        text = "Seconds of a request divided by the tokens of its answer."
        self.ntpot = _request(old, "request_ntpot_seconds", text, TOKEN_TIME)
        text = "Seconds from the request's arrival to the first bytes of its answer."
        self.ttft = Figure(
            (*_BY, "streaming"),
            (
                view(_LEGACY + "request_ttft_seconds", text, *_OLD),
                view(_CANONICAL + "request_ttft_seconds", text, *_BY, "streaming"),
            ),
            DURATION,
        )
        text = "Seconds per token of a streamed answer after its first."
        self.tpot = _request("request_tpot_seconds", "request_streaming_tpot_seconds", text, TPOT)
        text = "Seconds between two pieces of a streamed answer."
        name = _CANONICAL + "request_streaming_itl_seconds"
        self.itl = Figure(_BY, (view(name, text, *_BY),), TPOT)
        self._predictions()
        self._scheduler()
        self._pool()
        self._streams()
        self._flow_control()
        self._programs()

    def _predictions(self) -> None:
        """Of latencies; only where a predictor is asked."""
        names = {"ttft": "the time to the first token", "tpot": "the time per token"}
        self.predicted = {
            kind: _request_alike(
                f"request_predicted_{kind}_seconds", f"Seconds that were predicted for {name}.", bounds
            )
            for (kind, name), bounds in zip(names.items(), (DURATION, TPOT), strict=True)
        }
        self.prediction_took = {
            kind: _request_alike(f"request_{kind}_prediction_duration_seconds", f"Seconds to predict {name}.", SHORT)
            for kind, name in names.items()
        }
        text = "The latest of several latencies of a model, in seconds."
        self.request_metric = _request_alike("inference_request_metric", text, more=("type",))
        text = "Answers that came later than their clients wanted."
        self.slo_violations = _request_alike("request_slo_violation_total", text, more=("type",), counter=True)

    def _scheduler(self) -> None:
        self.scheduling = _extension("scheduler_e2e_duration_seconds", "Seconds per scheduling decision.", SHORT)
        labels = ("status", "target_model_name", "endpoint_name", "namespace", "port")
        text = "Scheduling attempts by outcome."
        self.attempts = Figure(
            labels,
            (
                view(
                    "inference_extension_scheduler_attempts_total",
                    text,
                    *("status", "target_model_name", "pod_name=endpoint_name", "namespace", "port"),
                ),
                view(_CANONICAL + "scheduler_attempts_total", text, *labels),
            ),
            counter=True,
        )
        by = ("extension_point", "plugin_type", "plugin_name")
        self.plugins = _extension("plugin_duration_seconds", "Seconds per call of a plugin.", SHORT, by)
        owner = ("plugin_name", "plugin_type")
        size, text = "prefix_indexer_size", "Entries of a prefix index: pairs of block and endpoint."
        self.prefix_size = Figure(
            owner, (view("inference_extension_" + size, text), view(_CANONICAL + size, text, *owner))
        )
        text = "Part of the prompt that the chosen endpoint was believed to hold."
        self.hit_ratio = _extension("prefix_indexer_hit_ratio", text, RATIO, owner, old_labels=())
        text = "Bytes of the prompt that the chosen endpoint was believed to hold."
        self.hit_bytes = _extension("prefix_indexer_hit_bytes", text, HIT_BYTES, owner, old_labels=())
        text = "Blocks that engines have named and that could be placed."
        self.kv_admissions = _canonical("kv_cache_index_admissions_total", text, *owner, counter=True)
        text = "Blocks that engines have thrown away, or that were forgotten for want of room."
        self.kv_evictions = _canonical("kv_cache_index_evictions_total", text, *owner, counter=True)
        text = "Blocks that engines have named and that could not be placed: what comes before them is not known."
        self.kv_skipped = _canonical("kv_cache_index_skipped_total", text, *owner, counter=True)
        text = "Prompts that were looked up among the blocks that engines have named."
        self.kv_lookups = _canonical("kv_cache_index_lookup_requests_total", text, *owner, counter=True)
        text = "Blocks of those prompts that any endpoint holds."
        self.kv_hits = _canonical("kv_cache_index_lookup_hits_total", text, *owner, counter=True)
        text = "Blocks of those prompts that the endpoint which holds most of them holds."
        self.kv_best = _canonical("kv_cache_index_max_pod_hit_count_total", text, *owner, counter=True)
        text = "Seconds per look-up."
        name = _CANONICAL + "kv_cache_index_lookup_latency_seconds"
        self.kv_latency = Figure(owner, (view(name, text, *owner),), SHORT)
        text = "Prompts whose prefix was looked up by what engines say (events), or by what was sent where (estimate)."
        self.prefix_source = _canonical("precise_prefix_lookups_total", text, *owner, "source", counter=True)
        self.processing = {
            phase: Figure(
                (),
                (view(f"{_CANONICAL}{phase}_processing_duration_seconds", f"Seconds of the EPP's own work, {phase}."),),
                SHORT,
            )
            for phase in ("request", "response")
        }
        name, by = "model_rewrite_decisions_total", ("model_rewrite_name", "model_name", "target_model")
        text = "Models that an InferenceModelRewrite has put in place of others."
        views = (view("inference_extension_" + name, text, *by), view(_CANONICAL + name, text, *by))
        self.rewrites = Figure(by, views, counter=True)
        stages = ("plugin_name", "plugin_type", "model_name", "decision_type")
        text = "Requests by the stages that were given to endpoints of their own."
        self.disagg = Figure(stages, (view(_CANONICAL + "disagg_decision_total", text, *stages),), counter=True)
        self.pd = Figure(stages, (view(_CANONICAL + "pd_decision_total", text, *stages),), counter=True)
        text = "The version of this EPP."
        info = ("commit", "build_ref")
        views = (view("inference_extension_info", text, *info), view(_CANONICAL + "info", text, *info))
        self.info = Figure(info, views)

    def _pool(self) -> None:
        self.pool = {
            name: _pool(old, name, text)
            for old, name, text in (
                ("average_kv_cache_utilization", "average_kv_cache_utilization", "Mean use of the KV caches, 0 to 1."),
                ("average_queue_size", "average_queue_size", "Mean of waiting requests per endpoint."),
                ("", "average_running_requests", "Mean of running requests per endpoint."),
                ("", "std_dev_kv_cache_utilization", "Standard deviation of the use of the KV caches."),
                ("", "std_dev_queue_size", "Standard deviation of waiting requests."),
                ("", "std_dev_running_requests", "Standard deviation of running requests."),
                ("ready_pods", "ready_endpoints", "Endpoints that may serve."),
            )
        }
        text = "Waiting requests of an endpoint."
        self.queue = Figure(
            ("name", "model_server_endpoint"),
            (
                view("inference_pool_per_pod_queue_size", text, "name", "model_server_pod=model_server_endpoint"),
                view(_CANONICAL + "per_endpoint_queue_size", text, "name", "model_server_endpoint"),
            ),
        )
        where = ("endpoint_name", "namespace", "producer_name", "fairness_id", "priority")
        text = "Requests that this process has sent to an endpoint, and whose answers have not ended."
        self.inflight_requests = _canonical("inflight_requests", text, *where)
        self.inflight_tokens = _canonical("inflight_tokens", "Estimated tokens that those requests still cost.", *where)
        text = "Readings of endpoints' metrics that failed."
        name = _CANONICAL + "datalayer_poll_errors_total"
        self.poll_errors = Figure(("source_type",), (view(name, text, "source_type"),), counter=True)
        text = "Readings of endpoints' metrics that had none of the metrics in them."
        name, by = _CANONICAL + "datalayer_extract_errors_total", ("source_type", "extractor_type")
        self.extract_errors = Figure(by, (view(name, text, *by),), counter=True)
        text = "1 while the pool's endpoints are kept up to date, 0 while the last known ones are used."
        self.source_up = Figure(("name",), (view(_CANONICAL + "datalayer_source_up", text, "name"),))
        text = "1 while this process is the leader, or no leader is elected."
        self.leader = Figure((), (view(_CANONICAL + "leader", text),))
        self.peers = Figure((), (view(_CANONICAL + "statesync_peers", "Replicas whose load and prefixes are known."),))
        text = "Processes of this picker that serve, where there are several (flag workers)."
        self.workers = Figure((), (view(_CANONICAL + "workers_ready", text),))
        text = "Processes of this picker (flag workers) that ended and were started again."
        self.worker_restarts = Figure((), (view(_CANONICAL + "worker_restarts_total", text),), counter=True)

    def _streams(self) -> None:
        name = _CANONICAL + "extproc_streams_"
        self.streams = Figure((), (view(name + "inflight", "Open ext_proc streams."),))
        self.stream_codes = Figure(
            ("code",), (view(name + "total", "Ended ext_proc streams by gRPC status.", "code"),), counter=True
        )
        text = "Seconds per ext_proc stream."
        self.stream_seconds = Figure((), (view(_CANONICAL + "extproc_stream_duration_seconds", text),), DURATION)

    def _flow_control(self) -> None:
        """Flow control; the legacy names have the labels of their canonical ones here."""
        per_flow = ("fairness_id", "priority", "inference_pool", "model_name", "target_model_name")
        text = "Seconds from a request's arrival in flow control to its outcome there."
        labels = ("fairness_id", "priority", "outcome", *per_flow[2:])
        self.flow_wait = _extension("flow_control_request_queue_duration_seconds", text, QUEUE_WAIT, labels)
        text = "Seconds per dispatch of flow control."
        self.flow_cycle = _extension("flow_control_dispatch_cycle_duration_seconds", text, SHORT)
        text = "Seconds that it takes to let a request into the queue, or to refuse it."
        self.flow_enqueue = _extension("flow_control_request_enqueue_duration_seconds", text, SHORT, labels[:3])
        self.flow_size = _extension("flow_control_queue_size", "Requests that wait.", (), per_flow)
        self.flow_bytes = _extension("flow_control_queue_bytes", "Bytes of the requests that wait.", (), per_flow)
        name, text = "flow_control_pool_saturation", "How full the pool is: 1 and more is full."
        self.flow_saturation_old = Figure(
            ("inference_pool",), (view("inference_extension_" + name, text, "inference_pool"),)
        )
        self.flow_saturation = _canonical(name, text, "inference_pool", "stage")
        self.flow_stale = _canonical("flow_control_stale_endpoints", "Endpoints without fresh metrics.", "detector")
        text = "Part of a band's limit of {} that waits."
        self.flow_use = {
            what: _canonical(f"flow_control_capacity_utilization_{what}", text.format(what), "priority", per_flow[2])
            for what in ("requests", "bytes")
        }
        text = "Part of the limit of {} of all bands that waits."
        self.flow_global_use = {
            what: _canonical(f"flow_control_global_capacity_utilization_{what}", text.format(what), per_flow[2])
            for what in ("requests", "bytes")
        }
        text = "Requests by their outcome in flow control."
        self.flow_outcomes = _canonical(
            "flow_control_requests_total", text, "outcome", "priority", per_flow[2], counter=True
        )
        text = "Requests in flight that were given up for more urgent ones."
        self.flow_revoked = _canonical(
            "flow_control_revocations_issued_total", text, "priority", per_flow[2], counter=True
        )

    def _programs(self) -> None:
        name, text = "program_aware_jains_fairness_index", "How alike the programs' mean waits are: 1 is alike."
        self.program_evenness = _canonical(name, text)
        name, text = "program_aware_avg_wait_time_milliseconds", "Mean wait of a program's requests."
        self.program_wait = _canonical(name, text, "program_id")
        name = "program_aware_attained_service_tokens"
        text = "Service that a program has attained, in weighted tokens, older ones counting less."
        self.program_service = _canonical(name, text, "program_id")
        owner, text = ("plugin_type", "plugin_name"), "Part of the requests that a revision of a rollout gets."
        self.revision_share = _canonical("disaggregatedset_revision_gating_share", text, *owner, "mode", "revision")
        name, text = "disaggregatedset_strict_header_no_match_total", "Requests whose header named a label of nobody."
        self.strict_missed = _canonical(name, text, *owner, "selector", counter=True)

    def all(self) -> list[Figure]:
        """Every figure, for collection."""
        own = [each for each in vars(self).values() if isinstance(each, Figure)]
        groups = (
            *(self.processing, self.pool, self.flow_use, self.flow_global_use),
            *(self.predicted, self.prediction_took),
        )
        return own + [each for group in groups for each in group.values()]


def _request_alike(
    name: str, text: str, bounds: tuple[float, ...] = (), more: tuple[str, ...] = (), counter: bool = False
) -> Figure:
    """A figure whose two names have the same labels."""
    labels = (*_OLD, *more)
    return Figure(
        labels, (view(_LEGACY + name, text, *labels), view(_CANONICAL + name, text, *labels)), bounds, counter
    )


def _extension(
    name: str,
    text: str,
    bounds: tuple[float, ...],
    labels: tuple[str, ...] = (),
    old_labels: tuple[str, ...] | None = None,
) -> Figure:
    old = labels if old_labels is None else old_labels
    views = (view("inference_extension_" + name, text, *old), view(_CANONICAL + name, text, *labels))
    return Figure(labels, views, bounds)


def _canonical(name: str, text: str, *labels: str, counter: bool = False) -> Figure:
    """A number that the legacy family does not have."""
    return Figure(labels, (view(_CANONICAL + name, text, *labels),), counter=counter)


def _pool(old: str, new: str, text: str) -> Figure:
    legacy = (view("inference_pool_" + old, text, "name"),) if old else ()
    return Figure(("name",), (*legacy, view(_CANONICAL + new, text, "name")))
