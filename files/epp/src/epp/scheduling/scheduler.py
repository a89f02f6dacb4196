# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduling cycle: admission, producers, profiles, destination."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from epp.datalayer.prompts import BYTES_PER_TOKEN, cached_tokens
from epp.model import Charge, Decision, Endpoint, InferenceRequest, Rejection, Usage, reachable
from epp.scheduling.api import (
    Admitter,
    AsyncProducer,
    Background,
    Endpoints,
    Filter,
    HeaderProcessor,
    Picker,
    Plugin,
    Producer,
    ProfileHandler,
    Reporter,
    RequestHook,
    Responder,
    ResponseHook,
    SaturationDetector,
    SchedulingRecorder,
    Scorer,
    Screener,
)
from epp.scheduling.builder import Builder
from epp.scheduling.profile import Failures, Outcome, ProfileRunner, Timer

if TYPE_CHECKING:
    from epp.config.schema import EndpointPickerConfig, ProfileSpec

clock: Final = time.perf_counter
NO_ENDPOINTS: Final = "failed to find endpoint candidates for serving the request"
SCREENED: Final = "screeners eliminated all endpoint candidates"
PREPARE_SECONDS = 0.4
"""What a producer that asks a service may take of a decision's time, as in the reference."""
MAX_ROUNDS: Final = 8
"""Rounds of profiles that a handler may ask for; a handler that never ends must not hold up the process."""


class Scheduler:
    """Chooses endpoints for requests. Every method is synchronous, takes microseconds, and belongs to one thread."""

    def __init__(self, builder: Builder, cfg: EndpointPickerConfig) -> None:
        """Use :meth:`from_config`."""
        for spec in cfg.plugins:
            builder.build(spec.name)
        self._failures = Failures()
        self._queueing = cfg.flow_control is not None
        self._recorder = builder.recorder
        self._datastore = builder.datastore
        self._profiles = [_runner(spec, builder, self._failures) for spec in cfg.profiles]
        self._by_name = {profile.name: profile for profile in self._profiles}
        handler = builder.plugin(cfg.profile_handler)
        detector = builder.plugin(cfg.saturation_detector)
        assert isinstance(handler, ProfileHandler)
        assert isinstance(detector, SaturationDetector)
        self._handler, self._detector = handler, detector
        self.plugin = builder.plugin
        """A plugin by its name; PluginError if there is none."""
        plugins = builder.built()
        self._header_processors: list[tuple[HeaderProcessor, Timer]] = self._timed(
            "RequestHeader", plugins, HeaderProcessor
        )
        self._reporters: list[tuple[Reporter, Timer]] = self._timed("ResponseBody", plugins, Reporter)
        self._screeners: list[tuple[Screener, Timer]] = self._timed("Screener", plugins, Screener)
        self._producers: list[tuple[Producer, Timer]] = self._timed("Producer", plugins, Producer)
        asking = [each for each, _ in self._producers if isinstance(each, AsyncProducer) and each.asks]
        self._asking: dict[Producer, Timer] = dict(self._timed("Prepare", asking, Producer))
        self.asks = bool(self._asking)
        """Whether :meth:`prepare` has anything to do: call it before :meth:`schedule` then."""
        last = max((at for at, (each, _) in enumerate(self._producers) if each in self._asking), default=-1)
        self._early, self._late = self._producers[: last + 1], self._producers[last + 1 :]
        self.workers = [plugin for plugin in plugins if isinstance(plugin, Background)]
        """Plugins that want to run beside the requests."""
        self._admitters: list[tuple[Any, Timer]] = self._timed("Admitter", plugins, Admitter)
        hooks = [plugin for plugin in plugins if isinstance(plugin, RequestHook)]
        before = [each for each in hooks if type(each).pre_request is not RequestHook.pre_request]
        self._hooks: list[tuple[RequestHook, Timer]] = self._timed("PreRequest", before, RequestHook)
        after = [each for each in hooks if type(each).response_complete is not RequestHook.response_complete]
        self._completed: list[tuple[RequestHook, Timer]] = self._timed("ResponseComplete", after, RequestHook)
        self._pieces = [each for each in hooks if type(each).response_piece is not RequestHook.response_piece]
        self.follows = bool(self._pieces)
        """Whether any plugin wants to hear of an answer's pieces."""
        self.responders = [plugin for plugin in plugins if isinstance(plugin, Responder)]
        self._response_hooks: list[tuple[ResponseHook, Timer]] = self._timed("ResponseReceived", plugins, ResponseHook)
        self._handled = self._recorder.timer("ProfilePicker", handler.TYPE, handler.name)

    @classmethod
    def from_config(
        cls,
        cfg: EndpointPickerConfig,
        registry: Mapping[str, type[Plugin]],
        datastore: Endpoints,
        recorder: SchedulingRecorder,
        seed: int | None = None,
    ) -> Scheduler:
        """Build all plugins and profiles of a loaded configuration; ``seed`` makes its chances repeatable.

        Raises PluginError.
        """
        return cls(Builder(cfg, registry, datastore, recorder, random.Random(seed)), cfg)

    def _timed(self, point: str, plugins: Sequence[Plugin], kind: type[Any]) -> list[tuple[Any, Timer]]:
        """The plugins of a kind, each with what takes the seconds of its calls."""
        found = [plugin for plugin in plugins if isinstance(plugin, kind)]
        return [(plugin, self._recorder.timer(point, plugin.TYPE, plugin.name)) for plugin in found]

    def request_headers(self, request: InferenceRequest) -> None:
        """Let plugins complete a request by its headers; call it first, before the request waits anywhere. Raises the
        Rejection of one that refuses it."""
        for processor, timed in self._header_processors:
            started = clock()
            try:
                processor.request_headers(request)
            except Rejection:
                raise
            except Exception:
                self._failures.report(processor, "the request goes on without it")
            timed(clock() - started)

    def admit(self, request: InferenceRequest) -> None:
        """Raise a Rejection (429) for a sheddable request (priority < 0) while the pool is saturated.

        :meth:`schedule` begins with it unless flow control lets requests wait instead; it is public for callers that
        want to refuse before they read a body.
        """
        if request.priority < 0 and self._detector.saturation(self._datastore.endpoints()) >= 1.0:
            message = "system saturated, sheddable request dropped"
            raise Rejection(429, "ResourceExhausted", message, "rejected-saturated")

    async def prepare(self, request: InferenceRequest, candidates: Sequence[Endpoint]) -> None:
        """Let those producers ask their services that do so, and the ones before them produce what they may need.

        Each has ``PREPARE_SECONDS``; whatever fails is missing. Where requests may wait afterwards, :meth:`schedule`
        lets all produce once more, because what they know of endpoints may be old by then.
        """
        standing = self._standing(candidates)
        if not standing:
            return
        _estimate(request)
        for producer, timed in self._early:
            if producer in self._asking:
                await self._ask(producer, request, standing)
            self._produce(producer, timed, request, standing)
        request.prepared = not self._queueing

    def schedule(self, request: InferenceRequest, candidates: Sequence[Endpoint]) -> Decision:
        """Choose among ``candidates``.

        Raises Rejection: 429 for shed requests and for filters that leave nothing, 503 for no candidates (pass an empty
        sequence and let it decide: a sheddable request gets 429 even then, as in the reference) and for screeners that
        leave nothing, and what plugins refuse with.
        """
        _estimate(request)
        if not self._queueing:
            self.admit(request)
        standing = self._standing(candidates)
        if not standing:
            raise Rejection(503, "ServiceUnavailable", NO_ENDPOINTS, "rejected-no-endpoints")
        started = clock()
        target = request.target_model or request.model
        endpoint: Endpoint | None = None
        try:
            decision = self._decide(request, standing)
            endpoint = decision.endpoints[0]
            return decision
        finally:
            self._recorder.scheduled(clock() - started, target, endpoint)

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """Tell the plugins that the request goes out now; call it right after :meth:`schedule`, in the same turn."""
        for charge in decision.charges:
            self._datastore.sent(charge.endpoint, charge.prompt_tokens)
        for hook, timed in self._hooks:
            started = clock()
            try:
                hook.pre_request(request, decision)
            except Exception:
                self._failures.report(hook, "the request goes out without it")
            timed(clock() - started)

    def response_received(
        self, served: str, request: InferenceRequest | None = None, decision: Decision | None = None
    ) -> dict[str, str]:
        """The answer's headers are here, from ``served`` (``ip:port``, if known); headers to set on it.

        Request and decision are None for a stream that began with the answer.
        """
        headers: dict[str, str] = {}
        for hook, timed in self._response_hooks:
            started = clock()
            try:
                headers.update(hook.response_received(served, request, decision))
            except Exception:
                self._failures.report(hook, "the answer goes on without it")
            timed(clock() - started)
        return headers

    def response_piece(self, request: InferenceRequest, decision: Decision) -> None:
        """Bytes of a good answer's body have come. Not timed: it may be called for every token."""
        for hook in self._pieces:
            try:
                hook.response_piece(request, decision)
            except Exception:
                self._failures.report(hook, "it does not learn of this piece of an answer")

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        """Tell the plugins that the answer has ended, in whatever way."""
        for hook, timed in self._completed:
            started = clock()
            try:
                hook.response_complete(request, decision, usage)
            except Exception:
                self._failures.report(hook, "it does not learn of this answer")
            timed(clock() - started)

    def report(self, request: InferenceRequest, usage: Usage | None) -> dict[str, dict[str, float]]:
        """Dynamic metadata for the end of an answer, by namespace and key."""
        metadata: dict[str, dict[str, float]] = {}
        if usage is None:
            return metadata
        for reporter, timed in self._reporters:
            started = clock()
            try:
                for namespace, values in reporter.report(request, usage).items():
                    metadata.setdefault(namespace, {}).update(values)
            except Exception:
                self._failures.report(reporter, "nothing is reported of this answer")
            timed(clock() - started)
        return metadata

    def _decide(self, request: InferenceRequest, candidates: list[Endpoint]) -> Decision:
        if self._screeners:
            candidates = self._screen(request, candidates)
        for producer, timed in self._late if request.prepared else self._producers:
            self._produce(producer, timed, request, candidates)
        handler = self._handler
        if self._admitters:
            self._ask_admitters(request, candidates)
        outcomes: dict[str, Outcome | None] = {}
        picks: dict[str, list[Endpoint] | None] = {}
        for _ in range(MAX_ROUNDS):
            started = clock()
            chosen = handler.pick(request, self._profiles, picks)
            self._handled(clock() - started)
            if not chosen:
                break
            for profile in chosen:
                outcome = self._profile(profile.name).run(request, candidates)
                outcomes[profile.name] = outcome
                picks[profile.name] = outcome.picked if outcome is not None else None
        primary = handler.primary(request, picks)
        best = outcomes.get(primary)
        if best is None:
            message = f"failed to find target endpoint: no endpoint is left after the filters of profile {primary!r}"
            raise Rejection(429, "ResourceExhausted", message, "rejected-saturated")
        profiles = {name: tuple(picked) for name, picked in picks.items() if picked is not None}
        chosen_first = profiles[primary][0]
        cached = cached_tokens(request, chosen_first)
        uncached = max(0, request.prompt_tokens - cached)
        charges: tuple[Charge, ...] = (Charge(chosen_first, uncached, request.output_tokens),)
        if len(profiles) > 1:
            charges += _helpers(request, primary, profiles)
        decision = Decision(profiles[primary], best.scores, profiles, cached > 0, charges)
        handler.process_results(request, decision)
        return decision

    def _produce(self, producer: Producer, timed: Timer, request: InferenceRequest, candidates: list[Endpoint]) -> None:
        started = clock()
        try:
            producer.produce(request, candidates)
        except Exception:
            self._failures.report(producer, "the request is scheduled without it")
        timed(clock() - started)

    async def _ask(self, producer: Producer, request: InferenceRequest, candidates: list[Endpoint]) -> None:
        assert isinstance(producer, AsyncProducer)
        started = clock()
        consequence = "the request is scheduled without what it asks for"
        try:
            async with asyncio.timeout(PREPARE_SECONDS) as deadline:
                await producer.prepare(request, candidates)
        except Exception:
            if deadline.expired():
                self._failures.late(producer, PREPARE_SECONDS, consequence)
            else:
                self._failures.report(producer, consequence)
        self._asking[producer](clock() - started)

    def _screen(self, request: InferenceRequest, candidates: list[Endpoint]) -> list[Endpoint]:
        """Those that all screeners leave. Raises Rejection (503) if that is nobody; one that fails leaves all."""
        for screener, timed in self._screeners:
            started = clock()
            try:
                candidates = list(screener.screen(request, candidates))
            except Rejection:
                raise
            except Exception:
                self._failures.report(screener, "the candidates stay as they were")
            finally:
                timed(clock() - started)
            if not candidates:
                raise Rejection(503, "ServiceUnavailable", SCREENED, "rejected-no-endpoints")
        return candidates

    def _ask_admitters(self, request: InferenceRequest, candidates: list[Endpoint]) -> None:
        """Raise Rejection if one refuses, 429 unless it says otherwise; one that fails lets the request pass."""
        for admitter, timed in self._admitters:
            started = clock()
            refusal: Any
            try:
                refusal = admitter.admit(request, candidates)
            except Rejection:
                raise
            except Exception:
                self._failures.report(admitter, "the request is admitted without it")
                refusal = None
            finally:
                timed(clock() - started)
            if refusal:
                message = f"request cannot be admitted: {refusal}"
                raise Rejection(429, "ResourceExhausted", message, "rejected-saturated")

    def _standing(self, candidates: Sequence[Endpoint]) -> list[Endpoint]:
        """Those of the candidates that requests may go to, in a list that filters may change."""
        if candidates is self._datastore.endpoints():
            return self._datastore.standing()
        return list(reachable(candidates))

    def _profile(self, name: str) -> ProfileRunner:
        return self._by_name[name]


def _helpers(
    request: InferenceRequest, primary: str, profiles: Mapping[str, tuple[Endpoint, ...]]
) -> tuple[Charge, ...]:
    """The first endpoint of every profile but the primary one, with the part of the prompt that it has to compute."""
    first = [picked[0] for name, picked in profiles.items() if name != primary]
    return tuple(Charge(each, max(0, request.prompt_tokens - cached_tokens(request, each))) for each in first)


def _estimate(request: InferenceRequest) -> None:
    """Tokens of a prompt that nobody has counted."""
    if not request.prompt_tokens:
        request.prompt_tokens = len(request.prompt) // BYTES_PER_TOKEN


def _runner(spec: ProfileSpec, builder: Builder, failures: Failures) -> ProfileRunner:
    filters: list[Filter] = []
    scorers: list[tuple[Scorer, float]] = []
    pickers: list[Picker] = []
    for entry in spec.plugins:
        plugin = builder.plugin(entry.plugin)
        if isinstance(plugin, Filter):
            filters.append(plugin)
        if isinstance(plugin, Scorer):
            scorers.append((plugin, entry.weight))
        if isinstance(plugin, Picker):
            pickers.append(plugin)
    return ProfileRunner(spec.name, filters, scorers, pickers[0], builder.recorder, failures)
