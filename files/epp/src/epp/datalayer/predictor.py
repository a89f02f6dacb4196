# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a latency predictor what requests will wait, and tells it afterwards what they did wait.

The predictor is two services beside the picker, as in the reference: one predicts (``POST /predict/bulk/strict``), one
learns (``POST /add_training_data_bulk``). Decisions that fall within a millisecond are asked about together. Nobody
waits for the learning: samples are sent every second, and of too many a part that has as many of each kind.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from epp.datalayer.service import Service, ServiceError

log = logging.getLogger(__name__)

PREDICT_SECONDS = 0.35
"""What an answer may take; the decision waits for it."""
PENDING_FACTOR = 10
"""Samples that wait to be sent, in multiples of those that are sent at once; of more the oldest are lost."""


@dataclass(frozen=True)
class PredictorOptions:
    """Where the predictor is, and how it is asked. Times are seconds."""

    training: str = "http://localhost:8000"
    prediction: Sequence[str] = ("http://localhost:8001",)
    max_samples: int = 1000
    """Samples per message."""
    flush: float = 1.0
    timeout: float = 10.0
    """How long learning may take."""
    max_rows: int = 5000
    """Predictions per message; the predictor takes 10 000."""
    window: float = 0.001
    """How long the first of several decisions waits for the others."""
    messages: int = 36
    """On their way at once."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> PredictorOptions:
        """By the reference's variables: TRAINING_SERVER_URL, PREDICTION_SERVER_URL (several with commas) and
        LATENCY_{MAX_SAMPLE_SIZE,FLUSH_INTERVAL_SEC,HTTP_TIMEOUT_SEC,MAX_COALESCED_ROWS,
        COALESCE_WINDOW_MS,MAX_CONCURRENT_DISPATCHES}. What makes no sense counts as not there."""

        def number(name: str, default: int, least: int = 1, most: int = 1_000_000) -> int:
            text = environment.get(f"LATENCY_{name}", "")
            value = int(text) if text.isascii() and text.isdigit() else -1
            return value if least <= value <= most else default

        urls = [url.strip().rstrip("/") for url in environment.get("PREDICTION_SERVER_URL", "").split(",")]
        return cls(
            environment.get("TRAINING_SERVER_URL", "").strip().rstrip("/") or cls.training,
            tuple(url for url in urls if url) or tuple(cls.prediction),
            number("MAX_SAMPLE_SIZE", cls.max_samples),
            float(number("FLUSH_INTERVAL_SEC", int(cls.flush))),
            float(number("HTTP_TIMEOUT_SEC", int(cls.timeout))),
            number("MAX_COALESCED_ROWS", cls.max_rows, most=10_000),
            number("COALESCE_WINDOW_MS", round(cls.window * 1000), least=0) / 1000,
            number("MAX_CONCURRENT_DISPATCHES", cls.messages),
        )


class Features(msgspec.Struct, omit_defaults=False):
    """What a prediction is made of: one request at one endpoint."""

    kv_cache_percentage: float
    """Used part of the KV cache, 0 to 1."""
    input_token_length: int
    num_request_waiting: int
    num_request_running: int
    num_tokens_generated: int
    prefix_cache_score: float
    """Part of the prompt that is cached there, 0 to 1."""
    prefill_tokens_in_flight: int = 0
    decode_tokens_in_flight: int = 0
    encoder_input_size: int = 0
    encoder_matched_size: int = 0
    pod_type: str = ""


class Sample(msgspec.Struct):
    """The same with what came of it; one of the two latencies (ms), 0 for the other."""

    kv_cache_percentage: float
    input_token_length: int
    num_request_waiting: int
    num_request_running: int
    num_tokens_generated: int
    prefix_cache_score: float
    prefill_tokens_in_flight: int
    decode_tokens_in_flight: int
    encoder_input_size: int
    encoder_matched_size: int
    pod_type: str
    actual_ttft_ms: float
    actual_tpot_ms: float
    timestamp: str
    """RFC 3339."""
    predicted_ttft_ms: float | msgspec.UnsetType = msgspec.UNSET
    predicted_tpot_ms: float | msgspec.UnsetType = msgspec.UNSET


class _Prediction(msgspec.Struct):
    ttft_ms: float
    tpot_ms: float


class _Predictions(msgspec.Struct):
    predictions: list[_Prediction]
    failed_predictions: int = 0


_answer = msgspec.json.Decoder(_Predictions)
Latency = tuple[float, float]
"""TTFT and TPOT in milliseconds."""


@dataclass(slots=True, eq=False)
class _Question:
    rows: Sequence[Features]
    answer: asyncio.Future[list[Latency]]


class Predictor:
    """Belongs to one event loop."""

    def __init__(self, options: PredictorOptions, rng: random.Random) -> None:
        self._options, self._rng = options, rng
        self._service = Service("the latency predictor", options.messages)
        self._trainer = Service("the training of the latency predictor", 1)
        self._asked: list[_Question] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._samples: list[Sample] = []

    @property
    def resting(self) -> bool:
        """Every predictor has just failed: do not ask."""
        return all(map(self._service.resting, self._options.prediction))

    async def predict(self, rows: Sequence[Features]) -> list[Latency]:
        """TTFT and TPOT of each row. Raises ServiceError."""
        size, loop = self._options.max_rows, asyncio.get_running_loop()
        questions = [_Question(rows[start : start + size], loop.create_future()) for start in range(0, len(rows), size)]
        if questions and not self._asked:
            loop.call_later(self._options.window, self._send)
        self._asked += questions
        found: list[Latency] = []
        for part in await asyncio.gather(*(each.answer for each in questions)):
            found += part
        return found

    def learn(self, samples: Sequence[Sample]) -> None:
        """Tell the predictor soon."""
        self._samples += samples
        most = PENDING_FACTOR * self._options.max_samples
        if len(self._samples) > most:
            del self._samples[:-most]

    async def run(self) -> None:
        """Send samples until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._options.flush)
                await self._flush()
        finally:
            for call in self._calls:
                call.cancel()
            await self._service.close()
            await self._trainer.close()

    def _send(self) -> None:
        """Ask what has come together, in messages of no more rows than are allowed."""
        questions, self._asked = self._asked, []
        message: list[_Question] = []
        rows = 0
        for each in questions:
            if message and rows + len(each.rows) > self._options.max_rows:
                self._call(message)
                message, rows = [], 0
            message.append(each)
            rows += len(each.rows)
        self._call(message)

    def _call(self, questions: list[_Question]) -> None:
        call = asyncio.create_task(self._ask(questions))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _ask(self, questions: list[_Question]) -> None:
        rows = [row for each in questions for row in each.rows]
        try:
            latencies = await self._post(rows)
        except ServiceError as error:
            for each in questions:
                if not each.answer.done():  # whoever asked may have left
                    each.answer.set_exception(error)
            return
        start = 0
        for each in questions:
            if not each.answer.done():
                each.answer.set_result(latencies[start : start + len(each.rows)])
            start += len(each.rows)

    async def _post(self, rows: list[Features]) -> list[Latency]:
        awake = [url for url in self._options.prediction if not self._service.resting(url)]
        if not awake:
            raise ServiceError("the latency predictor rests")
        base = awake[0] if len(awake) == 1 else self._rng.choice(awake)
        body = msgspec.json.encode({"requests": rows})
        answer = await self._service.post(base, "/predict/bulk/strict", body, PREDICT_SECONDS)
        try:
            found = _answer.decode(answer)
        except msgspec.DecodeError as error:
            raise ServiceError(f"the predictions are not understood: {error}") from None
        latencies = [(each.ttft_ms, each.tpot_ms) for each in found.predictions]
        if len(latencies) != len(rows) or found.failed_predictions:
            raise ServiceError(f"{len(latencies) - found.failed_predictions} predictions for {len(rows)} requests")
        if not all(math.isfinite(ttft) and math.isfinite(tpot) for ttft, tpot in latencies):
            raise ServiceError("a prediction is no number")
        return latencies

    async def _flush(self) -> None:
        if not self._samples or self._trainer.resting(self._options.training):
            return
        samples, self._samples = self._samples, []
        body = msgspec.json.encode({"entries": self._choose(samples)})
        try:
            base, path = self._options.training, "/add_training_data_bulk"
            await self._trainer.post(base, path, body, self._options.timeout, good=(200, 202))
        except ServiceError as error:
            log.debug("%d samples are lost: %s", len(samples), error)

    def _choose(self, samples: list[Sample]) -> list[Sample]:
        """As many as may be sent; those of the time to the first token, and the others, in their proportion."""
        most = self._options.max_samples
        if len(samples) <= most:
            return samples
        first = [each for each in samples if each.actual_ttft_ms > 0]
        others = [each for each in samples if each.actual_ttft_ms <= 0]
        share = round(most * len(first) / len(samples))
        return self._rng.sample(first, share) + self._rng.sample(others, most - share)


def sample(
    features: Features, timestamp: str, *, ttft: float = 0.0, tpot: float = 0.0, predicted: float = 0.0
) -> Sample:
    """What came of ``features``; latencies are milliseconds, and ``predicted`` (0: nothing) is of the same kind."""
    made = Sample(
        features.kv_cache_percentage,
        features.input_token_length,
        features.num_request_waiting,
        features.num_request_running,
        features.num_tokens_generated,
        features.prefix_cache_score,
        features.prefill_tokens_in_flight,
        features.decode_tokens_in_flight,
        features.encoder_input_size,
        features.encoder_matched_size,
        features.pod_type,
        ttft,
        tpot,
        timestamp,
    )
    if predicted > 0 and ttft > 0:
        made.predicted_ttft_ms = predicted
    elif predicted > 0:
        made.predicted_tpot_ms = predicted
    return made
