# SPDX-License-Identifier: GPL-3.0-or-later
"""One simulated model server without its HTTP surface: the models it serves, its engine, and the generation of
answers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

from sim import tokens
from sim.driver import Driver
from sim.engine import Engine, Output, QueueFull, Sequence
from sim.exposition import MetricsPage
from sim.protocol import ApiError, GenerationRequest
from sim.settings import LoraModule, ServerSettings


class Generation:
    """The tokens of all prompts of one request, as they come. Iterate over it; leaving early aborts what still runs."""

    def __init__(self, driver: Driver, sequences: list[Sequence]) -> None:
        """Submit all sequences. Raises QueueFull, and submits none, when they do not all find a place."""
        self.sequences = sequences
        self._driver = driver
        self._index = {sequence: number for number, sequence in enumerate(sequences)}
        self._ready: list[tuple[int, Output]] = []
        self._open = len(sequences)
        self._wake: asyncio.Future[None] | None = None
        try:
            for sequence in sequences:
                driver.submit(sequence, self._deliver)
        except QueueFull:
            self.close()
            raise

    def _deliver(self, output: Output) -> None:
        """Keep a token until the reader comes."""
        self._ready.append((self._index[output.sequence], output))
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def batches(self) -> AsyncIterator[list[tuple[int, Output]]]:
        """Yield what has come since the last batch, as (index of the prompt, token) pairs, until all have ended."""
        try:
            while self._open:
                if not self._ready:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                batch, self._ready = self._ready, []
                self._open -= sum(1 for _, output in batch if output.finish_reason)
                yield batch
        finally:
            self.close()

    def close(self) -> None:
        """Abort the sequences that have not ended."""
        for sequence in self.sequences:
            self._driver.abort(sequence)


class Instance:
    """A model server. Make it inside a running event loop."""

    def __init__(self, settings: ServerSettings, name: str) -> None:
        """`name`: what `x-sim-instance` says."""
        self.settings = settings
        self.name = name
        self.created = int(time.time())
        self.engine = Engine(settings.engine)
        self.driver = Driver(self.engine, settings.time_scale)
        self.metrics = MetricsPage(self.engine, settings.served_model_names[0], self.driver.wall_time)
        self.adapters: dict[str, LoraModule] = {module.name: module for module in settings.lora_modules}
        self._faults = random.Random(settings.faults.seed)

    def draw_fault(self) -> str | None:
        """Decide whether the next request fails on purpose: "fail", "reset" or None."""
        faults = self.settings.faults
        if not (faults.fail_rate or faults.reset_rate):
            return None
        draw = self._faults.random()
        if draw < faults.fail_rate:
            return "fail"
        return "reset" if draw < faults.fail_rate + faults.reset_rate else None

    def served_name(self, model: str | None) -> str:
        """Return the name that answers carry: the adapter's, or the base model's first one, as in vLLM.

        Raises ApiError 404 for a model that is not served.
        """
        if model and model in self.adapters:
            return model
        if not model or model in self.settings.served_model_names:
            return self.settings.served_model_names[0]
        raise ApiError(404, f"The model `{model}` does not exist.", "NotFoundError", "model")

    def start(self, request: GenerationRequest) -> Generation:
        """Start generating. Raises ApiError: 404 unknown model, 400 prompt too long, 429 queue full."""
        model = self.served_name(request.model)
        sequences = [self._sequence(request, prompt, model) for prompt in request.prompts]
        try:
            return Generation(self.driver, sequences)
        except QueueFull as error:
            raise ApiError(429, f"Too many requests: {error}", "TooManyRequests") from error

    def _sequence(self, request: GenerationRequest, prompt: bytes, model: str) -> Sequence:
        """Return the sequence of one prompt, after checking that it fits the context."""
        context = self.settings.engine.context_length
        length = tokens.count(prompt)
        wanted = request.max_tokens or 0
        if length + max(wanted, 1) > context:
            raise ApiError(
                400,
                f"This model's maximum context length is {context} tokens. However, you requested {wanted} output "
                f"tokens and your prompt contains {length} input tokens, for a total of {length + wanted} tokens. "
                "Please reduce the length of the input prompt or the number of requested output tokens.",
                param="input_tokens",
            )
        natural: int | None = None
        if not request.ignore_eos:
            natural = tokens.natural_length(prompt, model, self.settings.output_tokens_mean)
            natural = max(natural, request.min_tokens)
        return Sequence(
            prompt=prompt,
            max_tokens=request.max_tokens or context - length,
            generator=tokens.TextGenerator(prompt, model),
            natural_length=natural,
            adapter=model if model in self.adapters else None,
            cache_salt=request.cache_salt,
        )
