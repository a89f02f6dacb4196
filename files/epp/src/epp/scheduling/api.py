# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plugin is: the kinds, and what each kind is asked for.

A plugin is one small class that inherits from one or more of the kinds below, names itself with ``TYPE`` and describes
its parameters with a frozen dataclass in ``PARAMETERS`` (camelCase in the configuration, snake_case here). Lists of
scores run parallel to the list of endpoints that was given: this is the hot path, and a list costs less than a dict.
With thousands of endpoints an array costs less than a list: plugins that most pools have can deal with both.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from epp.datalayer.journal import Journal
from epp.datalayer.known import Column, Known
from epp.datalayer.prompts import BYTES_PER_TOKEN as BYTES_PER_TOKEN
from epp.datalayer.prompts import PrefixMatch as PrefixMatch
from epp.model import AnswerReader, Decision, Endpoint, InferenceRequest, ParsedBody, RawRequest, Reply, Usage

PREFIX_MATCH = "prefix-match"
"""Key prefix in ``InferenceRequest.attributes`` under which producers leave a :class:`PrefixMatch` (``key/<name>``)."""


def param(
    default: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    plugin: type[Any] | None = None,
    duration: bool = False,
    key: str = "",
    doc: str = "",
) -> Any:
    """Declare one parameter: its default and the values that make sense.

    ``above`` is an exclusive lower bound; ``plugin`` is the kind of plugin whose name is wanted; ``duration`` marks
    seconds that are written as Go durations (``"200ms"``); ``key`` is its name in the configuration where that is not
    the field's in camelCase. A callable default makes a new value each time.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "choices": tuple(choices)}
    metadata = {**bounds, "plugin": plugin, "duration": duration, "key": key, "doc": doc}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NoParameters:
    """For plugins that take none."""


TOKENS = "tokens"
"""Key in ``InferenceRequest.attributes`` under which a producer leaves a :class:`TokenizedPrompt`."""


@dataclass(slots=True)
class TokenizedPrompt:
    """A prompt's token ids, as the engine will compute them."""

    prompts: Sequence[array[int]]
    """One prompt, or those of a batch; arrays of type ``I``."""
    features: Sequence[tuple[str, int, int]] = ()
    """Pictures and the like in the first prompt: identifier of the contents, first token, tokens; by first token."""


LATENCY_PREDICTION = "latency-prediction"
"""Key prefix in ``InferenceRequest.attributes`` under which producers leave a :class:`LatencyPrediction`."""


@dataclass(slots=True)
class LatencyPrediction:
    """What one request is expected to wait on each endpoint, in milliseconds; an endpoint without one is absent."""

    ttft: Mapping[Endpoint, float] = field(default_factory=dict)
    """Until the first token."""
    tpot: Mapping[Endpoint, float] = field(default_factory=dict)
    """Per token after it; absent where there are none, or nobody can tell."""
    tpot_targets: Mapping[Endpoint, float] = field(default_factory=dict)
    """What the time per token must not exceed there, where that is not what the request's headers say."""


class Endpoints(Protocol):
    """What the scheduler and its plugins see of the data layer."""

    @property
    def journal(self) -> Journal:
        """What peers are told, and who hears what they say."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints that may serve now."""

    def standing(self) -> list[Endpoint]:
        """Those of them that requests may go to (see :func:`epp.model.reachable`), in a list of the caller's own."""

    def sent(self, endpoint: Endpoint, tokens: int) -> None:
        """Count a request of ``tokens`` uncached prompt tokens that the endpoint's metrics do not show yet."""

    def on_added(self, callback: Any) -> None:
        """Call ``callback(endpoint)`` for each endpoint that begins to serve."""

    def on_removed(self, callback: Any) -> None:
        """Call ``callback(endpoint)`` for each endpoint that will never serve again."""


class SchedulingRecorder(Protocol):
    """What the scheduler reports while it works. Durations are seconds."""

    def scheduled(self, seconds: float, target_model: str, endpoint: Endpoint | None) -> None:
        """One scheduling attempt; ``endpoint`` is None when it failed."""

    def timer(self, extension_point: str, plugin_type: str, name: str) -> Callable[[float], None]:
        """What takes the seconds of each call of one plugin."""

    def prefix_match(self, name: str, hit_bytes: int, total_bytes: int) -> None:
        """Bytes of a prompt that the chosen endpoint was believed to hold, and the bytes of the prompt."""

    def prefix_index_size(self, name: str, entries: int) -> None:
        """Entries (block, endpoint) in a prefix index now."""

    def kv_blocks(self, name: str, blocks: int, admitted: int, evicted: int, skipped: int) -> None:
        """Blocks that engines say they hold now, and how many came, went and could not be placed since the start."""

    def kv_lookup(self, name: str, seconds: float, blocks: int, hits: int, best: int) -> None:
        """A prompt of so many blocks was looked up among them: how many were found anywhere, and on the endpoint that
        holds most of them; in this time."""

    def prefix_source(self, name: str, source: str) -> None:
        """By what a prompt's prefix was looked up: ``events`` of engines, or an ``estimate``."""

    def predicted_in(self, model: str, target_model: str, seconds: float) -> None:
        """A latency predictor has answered, in this time."""

    def latency(self, model: str, target_model: str, kind: str, actual: float, predicted: float, late: bool) -> None:
        """A latency (``ttft`` or ``tpot``) as it was and as it was predicted (0.0: not at all), and whether it was more
        than the client wanted."""

    def disaggregated(self, plugin_type: str, name: str, model: str, decision: str) -> None:
        """Which stages of a request were given to endpoints of their own (``prefill-decode``, say)."""

    def program_waited(self, program: str, mean_ms: float, evenness: float) -> None:
        """Mean wait of a program's requests, and Jain's fairness index over the mean waits of all programs."""

    def program_served(self, program: str, tokens: float) -> None:
        """Service that a program has attained, in weighted tokens, older ones counting less."""

    def program_gone(self, program: str) -> None:
        """A program has been forgotten."""

    def revision_shares(self, plugin_type: str, name: str, mode: str, shares: Mapping[str, float]) -> None:
        """Which part of the requests each revision gets, 0 to 1; revisions that are not there are gone."""

    def strict_header_missed(self, plugin_type: str, name: str, selector: str) -> None:
        """A request's header named a label that no endpoint has."""


class Context(Protocol):
    """What a plugin may use of the process it lives in; given to its constructor."""

    @property
    def datastore(self) -> Endpoints:
        """The data layer's endpoints."""

    @property
    def recorder(self) -> SchedulingRecorder:
        """Where to report figures."""

    @property
    def rng(self) -> random.Random:
        """The only source of chance, so that a seed makes a run repeatable."""

    def plugin(self, name: str) -> Plugin:
        """The configured plugin of that name, built first if need be; PluginError if there is none."""

    def of_type(self, plugin_type: str) -> Plugin:
        """The first configured plugin of that type; one with default parameters if none is configured."""

    def first(self, kind: type[Plugin]) -> Plugin | None:
        """The first configured plugin of a class, None if there is none."""

    def adopt(self, plugin: Plugin) -> None:
        """Let a plugin that another one made for itself take part in the cycle."""


class Plugin(ABC):  # noqa: B024 - its kinds are the abstract ones
    """Anything that can stand in ``plugins:`` of an EndpointPickerConfig."""

    TYPE: ClassVar[str] = ""
    ALIASES: ClassVar[tuple[str, ...]] = ()
    """Other types under which configurations know it."""
    PARAMETERS: ClassVar[type[Any]] = NoParameters
    LIMITS: ClassVar[str] = ""
    """What the reference's plugin of this type does and this one does not; empty when there is nothing."""

    def __init__(self, name: str, parameters: Any, context: Context) -> None:
        self.name = name
        self.parameters = parameters

    @classmethod
    def needs(cls, parameters: Any) -> tuple[str, ...]:
        """Plugin types that it cannot work without; those that nobody configured are added with their defaults."""
        return ()

    @classmethod
    def warnings(cls, parameters: Any) -> tuple[str, ...]:
        """What these parameters ask for in vain, one sentence each; logged at start."""
        return ()


class Filter(Plugin):
    """Narrows the candidates."""

    @abstractmethod
    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """The endpoints that may stay, in the order in which they should be preferred."""


class Scorer(Plugin):
    """Rates the candidates."""

    @abstractmethod
    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """One score per endpoint, 0 (worst) to 1 (best); what lies outside is clamped."""

    def column(self, request: InferenceRequest, endpoints: Known) -> Column | None:
        """The same in an array, for the endpoints of a large pool; None asks for :meth:`score`."""
        return None


class Picker(Plugin):
    """Chooses among rated candidates."""

    @abstractmethod
    def pick(self, endpoints: list[Endpoint], scores: list[float]) -> list[Endpoint]:
        """The chosen endpoints, the best first; ``endpoints`` is never empty."""

    def pick_of_column(self, endpoints: list[Endpoint], scores: Column) -> list[Endpoint]:
        """The same for scores that are in an array."""
        return self.pick(endpoints, scores.tolist())


class HeaderProcessor(Plugin):
    """Looks at a request's headers before anything is decided, and before the request waits anywhere."""

    @abstractmethod
    def request_headers(self, request: InferenceRequest) -> None:
        """Complete the request by what its headers say; raise Rejection to refuse it (401, 403, 404 ...). Any other
        error costs the information, not the request."""


class Screener(Plugin):
    """Takes candidates away that must not get this request, before anything is found out about the others."""

    @abstractmethod
    def screen(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """The endpoints that may stay; none refuses the request with 503. Raise Rejection to refuse it otherwise. Any
        other error leaves all of them."""


class Producer(Plugin):
    """Finds out something about a request before it is scheduled, and leaves it in ``request.attributes``."""

    @abstractmethod
    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Look at the request and its candidates. An error here costs the information, not the request."""


class AsyncProducer(Producer):
    """A producer that asks a service before the request is decided. Everybody else waits for nobody: only a
    configuration with such a plugin makes decisions take turns of the event loop."""

    @property
    def asks(self) -> bool:
        """Whether its parameters make it ask anybody; looked at once, when all plugins are there."""
        return True

    @abstractmethod
    async def prepare(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Ask, and leave the answer in ``request.attributes`` (or say it in :meth:`produce`, which follows).

        Called before the request waits in flow control, with the endpoints that could get it then, and after the
        producers that were made before this one. ``request.body`` is what the endpoint will get. An error, or taking
        longer than ``PREPARE_SECONDS``, costs the information, not the request.
        """


class Background(Plugin):
    """Works on its own beside the requests."""

    @abstractmethod
    async def run(self) -> None:
        """Work until cancelled. What is raised ends the process: handle trouble that may pass."""


class Admitter(Plugin):
    """Turns requests away before they are scheduled, when producers have said what they know."""

    @abstractmethod
    def admit(self, request: InferenceRequest, endpoints: list[Endpoint]) -> str:
        """Why the request is refused (with 429), in words for the client; empty to let it pass. Raise Rejection to
        refuse it with another status. Any other error lets it pass."""


class RequestHook(Plugin):
    """Follows a request after the decision. The methods do nothing unless overridden."""

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """The request is about to be sent to ``decision.endpoints[0]``."""

    def response_piece(self, request: InferenceRequest, decision: Decision) -> None:
        """Bytes of a good answer's body have come: the first ones, or further ones. Called often; be quick."""

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        """The answer has ended; ``usage`` is None when the server did not say."""


class ResponseHook(Plugin):
    """Looks at the beginning of an answer."""

    @abstractmethod
    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> Mapping[str, str]:
        """The answer's headers are here. ``served`` is the ``ip:port`` that the gateway says has served the request,
        empty when it does not say; request and decision are None for a stream that began with the answer. Returns
        headers to set on the answer."""


class Responder(Plugin):
    """Answers some requests that have no body in the picker itself."""

    @abstractmethod
    def respond(self, method: str, path: str, endpoints: Sequence[Endpoint]) -> Reply | None:
        """The answer; None to leave the request to an endpoint. ``path`` comes with its query, ``endpoints`` are those
        that the gateway allows, never none."""


class Reporter(Plugin):
    """Tells the gateway something of an answer that has ended."""

    @abstractmethod
    def report(self, request: InferenceRequest, usage: Usage) -> Mapping[str, Mapping[str, float]]:
        """Dynamic metadata by namespace and key; empty for nothing."""


class Decider(Plugin):
    """Decides whether another endpoint should do a part of a request's work."""

    @abstractmethod
    def disaggregate(self, request: InferenceRequest, endpoint: Endpoint) -> bool:
        """Whether to split, given the ``endpoint`` that was chosen to answer."""


class SaturationDetector(Plugin):
    """Says how full a pool is."""

    LAG: ClassVar[float] = 0.5
    """Seconds until it notices that a request has ended somewhere."""

    @abstractmethod
    def saturation(self, endpoints: Sequence[Endpoint]) -> float:
        """0.0 is idle, 1.0 and more is full."""

    def pressure(self, endpoints: Sequence[Endpoint]) -> float:
        """The same for flow control, which asks before each dispatch, and lets everything wait when it is full."""
        return self.saturation(endpoints)

    def stale(self, endpoints: Sequence[Endpoint]) -> int:
        """How many endpoints it knows nothing recent of."""
        return 0


class DataSource(Plugin):
    """Says where the data layer reads metrics; only its parameters matter, and the data layer reads those."""


class Discovery(Plugin):
    """Says where the endpoints come from; only its parameters matter, and the data layer reads those."""


class Extractor(Plugin):
    """Says what the data layer takes from what it reads; only its parameters matter."""


class Parser(Plugin):
    """Says which requests are understood; only its presence matters, the parsing is the requests room's."""


class BodyParser(Parser):
    """A parser that reads bodies itself: what one's own parsers inherit from."""

    PATHS: tuple[str, ...] = ()
    """How the paths end that it takes, without the query. Of all ends that match, of any parser, the longest counts,
    then the parser that ``requestHandler.parsers`` names first. An empty end takes what no other parser takes."""
    NAMES_MODEL: bool = True
    """Bodies have the model where it can be replaced: a member ``model`` of a JSON object, a form's field ``model``.
    If not, a rewrite of the model decides where a request goes, and changes nothing in it."""

    @abstractmethod
    def parse(self, request: RawRequest) -> ParsedBody:
        """What a request says, whatever its content type. Raise BodyError to refuse it (400); any other error is
        logged, and the request goes on as one of which nothing is known."""

    def answer(self) -> AnswerReader | None:
        """A new reader for the answer of one request, None: it has a ``usage`` as those of the OpenAI API."""
        return None


class Profile(Protocol):
    """A scheduling profile as a profile handler sees it."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""


class ProfileHandler(Plugin):
    """Chooses which profiles run, and which one's answer is the destination."""

    MAX_PROFILES: ClassVar[int | None] = None
    """How many profiles it can work with; None is any number."""

    @abstractmethod
    def pick(
        self, request: InferenceRequest, profiles: Sequence[Profile], results: Mapping[str, list[Endpoint] | None]
    ) -> Sequence[Profile]:
        """The profiles to run next, given the results so far (None: that profile failed); empty ends the cycle."""

    @abstractmethod
    def primary(self, request: InferenceRequest, results: Mapping[str, list[Endpoint] | None]) -> str:
        """The name of the profile whose pick is the destination."""

    def process_results(self, request: InferenceRequest, decision: Decision) -> None:
        """Complete the decision: headers, another destination, who is charged. Does nothing unless overridden."""
