# SPDX-License-Identifier: GPL-3.0-or-later
"""predicted-latency-producer: asks a latency predictor what a request will wait on each endpoint, and teaches it.

Parameters:
    streamingMode (false): the time to the first token is that to the first bytes of a streamed answer, and tokens after
    it have a time of their own. Otherwise it is the time to the end of the answer, and nothing is said of tokens.
    sloBufferFactor (1): by what a client's target for the time per token is multiplied.
    predictInProduce (true): false only teaches.
    endpointRoleLabel (none): label with an endpoint's role; prefill endpoints have no time per token.
    prefixMatchInfoProducerName (the first approx-prefix-cache-producer): who says what is cached.
    useEncoderCacheFeatures (false): pictures and recordings are features, too: how many there are, and how many of them
    the endpoint has seen, by encoderCacheMatchInfoProducerName (the first mm-embeddings-cache-producer).
    contextTTL, samplingMean, maxDecodeTokenSamplesForPrediction, inFlightLoadProducerName: not needed.
Environment: PREDICTION_SERVER_URL (``http://localhost:8001``; several with commas), TRAINING_SERVER_URL
(``http://localhost:8000``), and the reference's LATENCY_MAX_SAMPLE_SIZE (1000), LATENCY_FLUSH_INTERVAL_SEC (1),
LATENCY_HTTP_TIMEOUT_SEC (10), LATENCY_MAX_COALESCED_ROWS (5000), LATENCY_COALESCE_WINDOW_MS (1) and
LATENCY_MAX_CONCURRENT_DISPATCHES (36).
Features of an endpoint: used part of its KV cache, requests that wait, requests and prompt tokens in flight there,
tokens of the prompt, cached part of the prompt, its role.
Effect: latency-scorer, predicted-latency-scorer, slo-headroom-tier-filter, latency-slo-admitter and
prefix-cache-affinity-filter use the predictions. A target for the time per token (``x-llm-d-slo-tpot-ms``) is lowered
on an endpoint to that of the strictest request in flight there. A decision waits 350 ms at most; a predictor that fails
rests for a second, and meanwhile all do what they do without predictions. Where requests wait in flow control, the
predictor is asked before; what it said counts for a second.
Teaching: a sample of the time to the first token and, with streamingMode, one of the time per token, for each good
answer; of a streamed answer without usage each piece counts as a token.
Source: llm-d-router producer of the same type, with the same services beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from epp.datalayer import load
from epp.datalayer.predictor import Features, Predictor, PredictorOptions, sample
from epp.datalayer.service import ServiceError
from epp.model import Decision, Endpoint, InferenceRequest, Usage
from epp.plugins.mm_embeddings_cache_producer import ITEM_MATCH, ItemMatch, MmEmbeddingsCacheProducer
from epp.plugins.prefixes import match_of, needs_producer, producer_key, shares
from epp.plugins.slo import TPOT, TTFT, target
from epp.scheduling.api import (
    LATENCY_PREDICTION,
    AsyncProducer,
    Background,
    Context,
    LatencyPrediction,
    Producer,
    RequestHook,
    param,
)

PREFILL_PROFILE = "prefill"
PREFILL_ROLE = "prefill"
FRESH_SECONDS = 1.0
"""How old a prediction may be when its request comes to its turn."""


@dataclass(frozen=True)
class PredictedLatencyProducerParameters:
    """Parameters of predicted-latency-producer."""

    slo_buffer_factor: float = param(1.0, above=0, doc="multiplies targets for the time per token")
    context_ttl: float = param(300.0, above=0, duration=True, key="contextTTL", doc="not needed")
    streaming_mode: bool = param(False, doc="answers are streamed: first token and time per token are apart")
    endpoint_role_label: str = param("", doc="label with an endpoint's role")
    predict_in_produce: bool = param(True, doc="ask; false only teaches")
    use_encoder_cache_features: bool = param(False, doc="pictures and recordings are features, too")
    sampling_mean: float = param(1000.0, above=0, doc="not needed")
    max_decode_token_samples: int = param(0, minimum=0, doc="not needed")
    max_decode_token_samples_for_prediction: int = param(0, minimum=0, doc="not needed")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="who says what is cached")
    encoder_cache_match_info_producer_name: str = param("", plugin=Producer, doc="who says which of them are known")
    in_flight_load_producer_name: str = param("", plugin=Producer, doc="not needed: the data layer counts")


@dataclass(slots=True)
class _Asked:
    """What is known of one request until it is decided."""

    features: Mapping[Endpoint, Features]
    prediction: LatencyPrediction | None = None
    at: float = 0.0
    """When the prediction was made, monotonic seconds."""


@dataclass(slots=True)
class _Sent:
    """What is known of one request until its answer has ended. Times are monotonic seconds, latencies milliseconds."""

    at: float
    first: Features
    """Where its first token comes from."""
    others: Features
    """Where the others come from."""
    endpoint: Endpoint
    ttft: float = 0.0
    """Predicted, 0 if nobody did."""
    tpot: float = 0.0
    wanted: float = 0.0
    """The client's target for the time per token, 0 for none."""
    begun: float = 0.0
    """When the first bytes came, 0.0 before."""
    pieces: int = 0


class PredictedLatencyProducer(AsyncProducer, Background, RequestHook):
    """Asks, and says afterwards how it was."""

    TYPE = "predicted-latency-producer"
    PARAMETERS = PredictedLatencyProducerParameters

    def __init__(self, name: str, parameters: PredictedLatencyProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._prefixes = producer_key(context, parameters.prefix_match_info_producer_name)
        self._pictures = _pictures_key(parameters, context)
        self._predictor = Predictor(PredictorOptions.from_environment(os.environ), context.rng)
        self._recorder = context.recorder
        self._asked = f"predicted-latency/{name}"
        self._key = f"{LATENCY_PREDICTION}/{name}"
        self._targets: dict[Endpoint, dict[float, int]] = {}
        """Targets for the time per token of the requests in flight on each endpoint, and how many have each."""

    @classmethod
    def needs(cls, parameters: PredictedLatencyProducerParameters) -> tuple[str, ...]:
        """Producers."""
        prefixes = needs_producer(parameters.prefix_match_info_producer_name)
        pictures = parameters.use_encoder_cache_features and not parameters.encoder_cache_match_info_producer_name
        return (*prefixes, MmEmbeddingsCacheProducer.TYPE) if pictures else prefixes

    @property
    def asks(self) -> bool:
        """Unless it only teaches."""
        return self._parameters.predict_in_produce

    async def run(self) -> None:
        """Teach."""
        await self._predictor.run()

    async def prepare(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Ask about every endpoint."""
        if self._predictor.resting:
            return
        features = self._features(request, endpoints)
        started = time.perf_counter()
        try:
            latencies = await self._predictor.predict(list(features.values()))
        except ServiceError:
            return
        self._recorder.predicted_in(request.model, request.target_model, time.perf_counter() - started)
        found = dict(zip(features, latencies, strict=True))
        prediction = LatencyPrediction(
            {endpoint: ttft for endpoint, (ttft, _) in found.items()},
            {endpoint: tpot for endpoint, (_, tpot) in found.items() if self._has_tpot(endpoint)},
        )
        request.attributes[self._asked] = _Asked(features, prediction, time.monotonic())

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Leave the predictions to others, if they are fresh; and see what the endpoints are like now."""
        asked = request.attributes.get(self._asked)
        if not isinstance(asked, _Asked):
            asked = request.attributes[self._asked] = _Asked({})
        now, prediction = time.monotonic(), asked.prediction
        if now - asked.at > FRESH_SECONDS:
            asked.features, asked.prediction = self._features(request, endpoints), None
            request.attributes.pop(self._key, None)
        elif prediction is not None:
            prediction.tpot_targets = self._lowered(target(request.headers, TPOT), prediction)
            request.attributes[self._key] = prediction

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """Remember what the endpoint was like, and what was predicted."""
        asked = request.attributes.pop(self._asked, None)
        request.attributes.pop(self._key, None)
        endpoint = decision.endpoints[0]
        if not isinstance(asked, _Asked) or endpoint not in asked.features:
            return
        first = next(iter(decision.profiles.get(PREFILL_PROFILE, ())), endpoint)
        wanted = target(request.headers, TPOT)
        sent = _Sent(
            time.monotonic(), asked.features.get(first, asked.features[endpoint]), asked.features[endpoint], endpoint
        )
        if asked.prediction is not None:
            sent.ttft = asked.prediction.ttft.get(first, 0.0)
            sent.tpot = asked.prediction.tpot.get(endpoint, 0.0)
        if wanted < float("inf"):
            sent.wanted = wanted
            counts = self._targets.setdefault(endpoint, {})
            counts[wanted] = counts.get(wanted, 0) + 1
        request.attributes[self._asked] = sent

    def response_piece(self, request: InferenceRequest, decision: Decision) -> None:
        """Note the first, and count all."""
        sent = request.attributes.get(self._asked)
        if isinstance(sent, _Sent):
            sent.pieces += 1
            if sent.pieces == 1:
                sent.begun = time.monotonic()

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        """Teach what the request has waited."""
        sent = request.attributes.pop(self._asked, None)
        if not isinstance(sent, _Sent):
            return
        self._forget_target(sent)
        if not sent.pieces:
            return
        now, streaming = time.monotonic(), self._parameters.streaming_mode
        if streaming and not request.stream:
            return  # its first bytes come with its last
        if not request.stream and usage is None:
            return  # cut off
        tokens = usage.completion_tokens if usage is not None else sent.pieces
        ttft = ((sent.begun if streaming else now) - sent.at) * 1000.0
        tpot = (now - sent.begun) * 1000.0 / (tokens - 1) if streaming and tokens > 1 else 0.0
        self._report(request, sent, ttft, tpot)
        stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        samples = [sample(sent.first, stamp, ttft=ttft, predicted=sent.ttft)] if ttft > 0 else []
        if tpot > 0:
            samples.append(sample(sent.others, stamp, tpot=tpot, predicted=sent.tpot))
        self._predictor.learn(samples)

    def _features(self, request: InferenceRequest, endpoints: list[Endpoint]) -> Mapping[Endpoint, Features]:
        label, tokens = self._parameters.endpoint_role_label, request.prompt_tokens
        cached = shares(match_of(request, self._prefixes), endpoints)
        rows = {
            endpoint: Features(
                min(1.0, load.kv_usage(endpoint)),
                tokens,
                load.waiting(endpoint),
                endpoint.inflight,
                1,
                share,
                endpoint.inflight_tokens,
            )
            for endpoint, share in zip(endpoints, cached, strict=True)
        }
        if label:
            for endpoint, row in rows.items():
                row.pod_type = endpoint.labels.get(label, "")
        seen = request.attributes.get(self._pictures) if self._pictures else None
        if isinstance(seen, ItemMatch):
            for endpoint, row in rows.items():
                row.encoder_input_size = len(seen.items)
                row.encoder_matched_size = int(seen.matched.get(endpoint, 0.0))
        return rows

    def _has_tpot(self, endpoint: Endpoint) -> bool:
        """Whether the time per token means anything there."""
        label = self._parameters.endpoint_role_label
        return self._parameters.streaming_mode and not (label and endpoint.labels.get(label) == PREFILL_ROLE)

    def _lowered(self, wanted: float, prediction: LatencyPrediction) -> Mapping[Endpoint, float]:
        """The target for the time per token on each endpoint."""
        if wanted == float("inf"):
            return {}
        factor = self._parameters.slo_buffer_factor
        return {
            endpoint: min(wanted, *self._targets.get(endpoint, ())) * factor
            if self._targets.get(endpoint)
            else wanted * factor
            for endpoint in prediction.tpot
        }

    def _forget_target(self, sent: _Sent) -> None:
        counts = self._targets.get(sent.endpoint)
        if not sent.wanted or counts is None:
            return
        counts[sent.wanted] -= 1
        if not counts[sent.wanted]:
            del counts[sent.wanted]
        if not counts:
            del self._targets[sent.endpoint]

    def _report(self, request: InferenceRequest, sent: _Sent, ttft: float, tpot: float) -> None:
        """Tell the metrics, in seconds."""
        wanted = {"ttft": target(request.headers, TTFT), "tpot": sent.wanted or float("inf")}
        for kind, actual, predicted in (("ttft", ttft, sent.ttft), ("tpot", tpot, sent.tpot)):
            if actual > 0:
                late = actual > wanted[kind]
                self._recorder.latency(
                    request.model, request.target_model, kind, actual / 1000.0, predicted / 1000.0, late
                )


def _pictures_key(parameters: PredictedLatencyProducerParameters, context: Context) -> str:
    """The attribute that says which pictures an endpoint has seen; empty if nobody wants to know."""
    if not parameters.use_encoder_cache_features:
        return ""
    wanted = parameters.encoder_cache_match_info_producer_name
    plugin = context.plugin(wanted) if wanted else context.of_type(MmEmbeddingsCacheProducer.TYPE)
    return f"{ITEM_MATCH}/{plugin.name}"
