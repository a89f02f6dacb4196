# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics page: names, labels and buckets of both generations, and that the figures are right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import ask, completion, served, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

NEWER = "v1.3 has the legacy names only"
MODEL = ("model_name", "target_model_name")
FLOW = (*MODEL, "fairness_id", "priority")
OBJECTIVE, EXTENSION, NEW = "inference_objective_", "inference_extension_", "llm_d_epp_"
DURATION = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60]
DURATION += [120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600]
INPUT = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32778, 65536, 131072, 262144, 524288, 1048576]
OUTPUT = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
ANSWER = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32778, 65536]
SHORT = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
RATIO = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
HIT = [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
REQUEST = [float(2**power) for power in range(6, 31)]
PLUGIN = ("extension_point", "plugin_type", "plugin_name")

LEGACY = {
    "inference_objective_request_total": MODEL,
    "inference_objective_request_error_total": (*MODEL, "error_code"),
    "inference_objective_request_duration_seconds": MODEL,
    "inference_objective_request_sizes": MODEL,
    "inference_objective_response_sizes": MODEL,
    "inference_objective_input_tokens": MODEL,
    "inference_objective_output_tokens": MODEL,
    "inference_objective_prompt_cached_tokens": MODEL,
    "inference_objective_running_requests": ("model_name",),
    "inference_objective_normalized_time_per_output_token_seconds": MODEL,
    "inference_pool_average_kv_cache_utilization": ("name",),
    "inference_pool_average_queue_size": ("name",),
    "inference_pool_ready_pods": ("name",),
    "inference_pool_per_pod_queue_size": ("name", "model_server_pod"),
    "inference_extension_scheduler_e2e_duration_seconds": (),
    "inference_extension_scheduler_attempts_total": ("status",),
    "inference_extension_plugin_duration_seconds": PLUGIN,
    "inference_extension_prefix_indexer_size": (),
    "inference_extension_prefix_indexer_hit_ratio": (),
    "inference_extension_prefix_indexer_hit_bytes": (),
    "inference_extension_info": ("commit", "build_ref"),
}
"""Name → labels that v1.3 has; a later picker may have more."""

CANONICAL = {
    "request_total": FLOW,
    "request_error_total": (*FLOW, "error_code"),
    "request_duration_seconds": FLOW,
    "request_size_bytes": FLOW,
    "response_size_bytes": FLOW,
    "request_input_tokens": FLOW,
    "request_output_tokens": FLOW,
    "request_cached_tokens": FLOW,
    "request_running": FLOW,
    "request_ntpot_seconds": FLOW,
    "request_ttft_seconds": (*FLOW, "streaming"),
    "request_streaming_tpot_seconds": FLOW,
    "request_streaming_itl_seconds": FLOW,
    "average_kv_cache_utilization": ("name",),
    "average_queue_size": ("name",),
    "average_running_requests": ("name",),
    "std_dev_kv_cache_utilization": ("name",),
    "std_dev_queue_size": ("name",),
    "std_dev_running_requests": ("name",),
    "ready_endpoints": ("name",),
    "per_endpoint_queue_size": ("name", "model_server_endpoint"),
    "scheduler_e2e_duration_seconds": (),
    "scheduler_attempts_total": ("status", "target_model_name", "endpoint_name", "namespace", "port"),
    "plugin_duration_seconds": PLUGIN,
    "request_processing_duration_seconds": (),
    "response_processing_duration_seconds": (),
    "info": ("commit", "build_ref"),
    "prefix_indexer_size": ("plugin_name", "plugin_type"),
    "prefix_indexer_hit_ratio": ("plugin_name", "plugin_type"),
    "prefix_indexer_hit_bytes": ("plugin_name", "plugin_type"),
}

BOUNDS = {
    "inference_objective_request_duration_seconds": DURATION,
    "inference_objective_request_sizes": REQUEST,
    "inference_objective_response_sizes": ANSWER,
    "inference_objective_input_tokens": INPUT,
    "inference_objective_output_tokens": OUTPUT,
    "inference_objective_prompt_cached_tokens": INPUT,
    "inference_objective_normalized_time_per_output_token_seconds": [
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    ],
    "inference_extension_scheduler_e2e_duration_seconds": SHORT,
    "inference_extension_plugin_duration_seconds": SHORT,
    "inference_extension_prefix_indexer_hit_ratio": RATIO,
    "inference_extension_prefix_indexer_hit_bytes": HIT,
}

STREAM = (
    b'data: {"model":"m","choices":[{"text":"a"}]}\n\n',
    b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":10,"total_tokens":17,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\ndata: [DONE]\n\n',
)


def usage(prompt: int, output: int, cached: int | None = None) -> bytes:
    """A plain answer with usage, as OpenAI's interface has it."""
    found: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    if cached is not None:
        found["prompt_tokens_details"] = {"cached_tokens": cached}
    return json.dumps({"model": "m", "choices": [], "usage": found}).encode()


@pytest.fixture(scope="module")
def used(around: World) -> Iterator[Picker]:
    """A picker that has had all kinds of requests."""
    with around.pool("metered") as pool, around.picker(pool.name) as found:
        served(found, completion("x" * 500), answer=usage(7, 10, 4))
        served(found, completion("x" * 500), answer=STREAM[0] + STREAM[1], content_type=wire.EVENTS)
        ask(found, b'{"model":"m"', {})
        ask(found, hint=["10.9.9.9:1"])
        # Several figures are read from the engines now and then.
        eventually(lambda: found.metrics().value("inference_pool_ready_pods", name="metered") == 3)
        yield found


def test_the_page_is_valid(used: Picker) -> None:
    """Prometheus' own parser reads it."""
    assert len(used.metrics().families) > 20


@pytest.mark.parametrize(("name", "labels"), LEGACY.items(), ids=LEGACY.keys())
def test_legacy_names(used: Picker, name: str, labels: tuple[str, ...]) -> None:
    """A metric of v1.3: it is there, with its labels."""
    for each in used.metrics().labels(name):
        assert set(labels) <= each


@pytest.mark.differs(go=NEWER)
@pytest.mark.parametrize(("name", "labels"), CANONICAL.items(), ids=CANONICAL.keys())
def test_canonical_names(used: Picker, name: str, labels: tuple[str, ...]) -> None:
    """A metric of later versions: it is there, with just its labels."""
    assert used.metrics().labels(NEW + name) == {frozenset(labels)}


@pytest.mark.parametrize(("name", "bounds"), BOUNDS.items(), ids=BOUNDS.keys())
def test_buckets(used: Picker, name: str, bounds: list[float]) -> None:
    """The buckets are those that dashboards were made for."""
    assert used.metrics().bounds(name) == pytest.approx(bounds)


class Counted:
    """What changes from one reading of the page to the next."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._before = picker.metrics()

    def reaches(self, sample: str, change: float, **labels: str) -> None:
        """Wait until a sample has grown by just this much."""
        before = self._before.value(sample, **labels)
        eventually(
            lambda: self._picker.metrics().value(sample, **labels) - before, lambda seen: seen == pytest.approx(change)
        )


@pytest.fixture
def counted(picker: Picker) -> Counted:
    """Changes on the shared picker."""
    return Counted(picker)


class TestFigures:
    def test_requests(self, picker: Picker, counted: Counted) -> None:
        """Requests are counted by model and target model."""
        for _ in range(3):
            served(picker, completion(model="counted"), {"x-gateway-model-name-rewrite": "target"})
        counted.reaches(OBJECTIVE + "request_total", 3, model_name="counted", target_model_name="target")

    def test_sizes(self, picker: Picker, counted: Counted) -> None:
        """Bytes of requests and answers."""
        body, answer = completion("x" * 1000, model="sized"), usage(1, 1)
        sent = served(picker, body, answer=answer)
        counted.reaches(OBJECTIVE + "request_sizes_sum", len(sent.body), model_name="sized")
        counted.reaches(OBJECTIVE + "request_sizes_count", 1, model_name="sized")
        counted.reaches(OBJECTIVE + "response_sizes_count", 1, model_name="sized")

    @pytest.mark.differs(go="v1.3 counts the re-encoded answer")
    def test_answers(self, picker: Picker, counted: Counted) -> None:
        """Bytes of answers."""
        answer = usage(1, 1)
        served(picker, completion(model="answered"), answer=answer)
        counted.reaches(OBJECTIVE + "response_sizes_sum", len(answer), model_name="answered")

    def test_tokens_of_plain_answers(self, picker: Picker, counted: Counted) -> None:
        """Tokens, from the usage of a plain answer."""
        served(picker, completion(model="plain"), answer=usage(7, 10))
        counted.reaches(OBJECTIVE + "input_tokens_sum", 7, model_name="plain")
        counted.reaches(OBJECTIVE + "output_tokens_sum", 10, model_name="plain")

    def test_tokens_of_streamed_answers(self, picker: Picker, counted: Counted) -> None:
        """Tokens, from the usage in the last event of a stream."""
        served(picker, completion(model="events"), answer=b"".join(STREAM), content_type=wire.EVENTS)
        counted.reaches(OBJECTIVE + "input_tokens_sum", 7, model_name="events")
        counted.reaches(OBJECTIVE + "output_tokens_sum", 10, model_name="events")

    @pytest.mark.differs(go="v1.3 looks at each piece of a stream by itself")
    def test_tokens_of_a_stream_in_pieces(self, picker: Picker, counted: Counted) -> None:
        """The same where the event is cut in the middle."""
        with talk(picker) as one:
            one.ask(completion(model="pieces"))
            one.answer(b"".join(STREAM), wire.EVENTS, pieces=9)
            one.finish()
        counted.reaches(OBJECTIVE + "output_tokens_sum", 10, model_name="pieces")

    @pytest.mark.differs(go="v1.3 reads prompt_token_details, which no model server sends")
    @pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
    def test_cached_tokens(self, picker: Picker, counted: Counted, streamed: bool) -> None:
        """Cached tokens, from prompt_tokens_details."""
        answer, kind = (b"".join(STREAM), wire.EVENTS) if streamed else (usage(7, 10, 4), wire.JSON)
        served(picker, completion(model=f"cached{streamed}"), answer=answer, content_type=kind)
        counted.reaches(OBJECTIVE + "prompt_cached_tokens_sum", 4, model_name=f"cached{streamed}")

    def test_duration(self, picker: Picker, counted: Counted) -> None:
        """One duration per answer."""
        served(picker, completion(model="timed"), answer=usage(1, 1))
        counted.reaches(OBJECTIVE + "request_duration_seconds_count", 1, model_name="timed")

    def test_time_per_token(self, picker: Picker, counted: Counted) -> None:
        """One time per output token for a streamed answer."""
        served(picker, completion(model="rate"), answer=b"".join(STREAM), content_type=wire.EVENTS)
        name = OBJECTIVE + "normalized_time_per_output_token_seconds_count"
        counted.reaches(name, 1, model_name="rate")

    @pytest.mark.differs(go=NEWER)
    def test_first_token(self, picker: Picker, counted: Counted) -> None:
        """One time to the first token, told apart by streaming."""
        served(picker, completion(model="first"), answer=b"".join(STREAM), content_type=wire.EVENTS)
        served(picker, completion(model="first"), answer=usage(1, 1))
        counted.reaches(NEW + "request_ttft_seconds_count", 1, model_name="first", streaming="true")
        counted.reaches(NEW + "request_ttft_seconds_count", 1, model_name="first", streaming="false")

    @pytest.mark.differs(go=NEWER)
    def test_time_between_tokens(self, picker: Picker, counted: Counted) -> None:
        """One time per output token of a streamed answer, and one for each piece after the first."""
        with talk(picker) as one:
            one.ask(completion(model="paced", stream=True))
            one.answer(STREAM[0] * 3 + STREAM[1], wire.EVENTS, pieces=4)
            one.finish()
        counted.reaches(NEW + "request_streaming_tpot_seconds_count", 1, model_name="paced")
        counted.reaches(NEW + "request_streaming_itl_seconds_count", 3, model_name="paced")

    @pytest.mark.differs(go=NEWER)
    def test_own_work(self, picker: Picker, counted: Counted) -> None:
        """The picker's own work on a request and on its answer is timed."""
        served(picker, completion(), answer=usage(1, 1))
        counted.reaches(NEW + "request_processing_duration_seconds_count", 1)
        counted.reaches(NEW + "response_processing_duration_seconds_count", 1)

    def test_running(self, picker: Picker, counted: Counted) -> None:
        """A request in flight is running, and then it is not."""
        with talk(picker) as one:
            one.ask(completion(model="running"))
            counted.reaches(OBJECTIVE + "running_requests", 1, model_name="running")
            one.answer(usage(1, 1))
            one.finish()
        counted.reaches(OBJECTIVE + "running_requests", 0, model_name="running")

    @pytest.mark.parametrize("when", ["before the answer", "in the answer"])
    def test_a_client_that_leaves_is_not_running(self, picker: Picker, counted: Counted, when: str) -> None:
        """A request whose client went away is not running either."""
        with talk(picker) as one:
            one.ask(completion(model="gone"))
            if when == "in the answer":
                one.stream.send(wire.response_headers(content_type=wire.EVENTS))
                one.stream.receive()
                one.stream.send(wire.response_body(STREAM[0], end=False))
                one.stream.receive()
            counted.reaches(OBJECTIVE + "running_requests", 1, model_name="gone")
        counted.reaches(OBJECTIVE + "running_requests", 0, model_name="gone")

    def test_errors(self, picker: Picker, counted: Counted) -> None:
        """A request that finds no endpoint counts as an error of its model."""
        ask(picker, completion(model="lost"), hint=["10.9.9.9:1"])
        counted.reaches(OBJECTIVE + "request_error_total", 1, model_name="lost", error_code="ServiceUnavailable")

    @pytest.mark.differs(go="v1.3 looks for a header 'status', where Envoy sends ':status'")
    @pytest.mark.parametrize("status", [500, 503])
    def test_errors_of_model_servers(self, picker: Picker, counted: Counted, status: int) -> None:
        """An error of the model server is counted as one."""
        with talk(picker) as one:
            one.ask(completion(model=f"broken{status}"))
            one.answer(b'{"error":{}}', status=status)
            one.finish()
        name = OBJECTIVE + "request_error_total"
        counted.reaches(name, 1, model_name=f"broken{status}", error_code="ModelServerError")

    def test_scheduling(self, picker: Picker, counted: Counted) -> None:
        """Each decision is counted and timed."""
        served(picker)
        counted.reaches(EXTENSION + "scheduler_attempts_total", 1, status="success")
        counted.reaches(EXTENSION + "scheduler_e2e_duration_seconds_count", 1)

    def test_plugins(self, picker: Picker, counted: Counted) -> None:
        """Each plugin is timed, by its kind, type and name."""
        served(picker)
        labels = {"extension_point": "Scorer", "plugin_type": "queue-scorer", "plugin_name": "queue-scorer"}
        counted.reaches(EXTENSION + "plugin_duration_seconds_count", 1, **labels)

    def test_prefix(self, picker: Picker, counted: Counted) -> None:
        """The ratio of a prompt that was known."""
        body = completion("a prompt that comes back " * 50)
        served(picker, body)
        served(picker, body)
        counted.reaches(EXTENSION + "prefix_indexer_hit_ratio_count", 2)
        assert picker.metrics().value(EXTENSION + "prefix_indexer_size") > 0

    @pytest.mark.differs(go=NEWER)
    @pytest.mark.parametrize("family", ["x-gateway-", "x-llm-d-"])
    def test_fairness(self, picker: Picker, counted: Counted, family: str) -> None:
        """The flow of a request is a label."""
        served(picker, completion(model="fair"), {f"{family}inference-fairness-id": family})
        counted.reaches(NEW + "request_total", 1, model_name="fair", fairness_id=family)

    @pytest.mark.differs(go=NEWER)
    def test_no_fairness(self, picker: Picker, counted: Counted) -> None:
        """Without a header the flow is default-flow, the priority 0."""
        served(picker, completion(model="unfair"))
        counted.reaches(NEW + "request_total", 1, model_name="unfair", fairness_id="default-flow", priority="0")


@pytest.mark.differs(go="v1.3 bounds nothing: a client's model names fill the memory")
def test_cardinality(around: World, main_pool: Pool) -> None:
    """1100 different models: at most a thousand of them become series of their own."""
    with around.picker(main_pool.name) as found:
        for number in range(1100):
            ask(found, completion("hi", model=f"model-{number}"))
        text = found.get("/metrics")[1]
    names = set(re.findall(r'^inference_objective_request_total\{.*model_name="([^"]+)"', text, re.MULTILINE))
    assert "other" in names
    assert len(names) <= 1001


class TestPool:
    """Figures of the pool."""

    @pytest.mark.parametrize("name", ["inference_pool_", pytest.param(NEW, marks=pytest.mark.differs(go=NEWER))])
    def test_averages(self, picker: Picker, pool: Pool, name: str) -> None:
        """Queue and cache, averaged over the pods."""
        pool.show({"waiting": 1, "kv": 0.1}, {"waiting": 3, "kv": 0.2}, {"waiting": 8, "kv": 0.6})
        eventually(lambda: picker.metrics().value(f"{name}average_queue_size", name="main") == pytest.approx(4))
        kv = f"{name}average_kv_cache_utilization"
        eventually(lambda: picker.metrics().value(kv, name="main") == pytest.approx(0.3))

    @pytest.mark.differs(go=NEWER)
    def test_spread(self, picker: Picker, pool: Pool) -> None:
        """And their standard deviation."""
        pool.show({"waiting": 2}, {"waiting": 2}, {"waiting": 8})
        name = NEW + "std_dev_queue_size"
        eventually(lambda: picker.metrics().value(name, name="main") == pytest.approx(8**0.5))

    def test_queue_of_each(self, picker: Picker, pool: Pool) -> None:
        """The queue of each pod, whose name is the pod's with its rank."""
        pool.show({"waiting": 1}, {"waiting": 2}, {"waiting": 3})
        name = "inference_pool_per_pod_queue_size"
        wanted = {f"{pool.pod(number)}-rank-0": float(number + 1) for number in range(3)}

        def seen() -> dict[str, float]:
            samples = picker.metrics().family(name).samples
            return {each.labels["model_server_pod"]: each.value for each in samples if each.labels["name"] == "main"}

        eventually(seen, lambda found: found == wanted)

    def test_ready_pods(self, picker: Picker) -> None:
        """The number of pods."""
        eventually(lambda: picker.metrics().value("inference_pool_ready_pods", name="main") == 3)
