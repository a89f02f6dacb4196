# SPDX-License-Identifier: GPL-3.0-or-later
"""What people ask of a model over time: prompts that begin alike, when they come, how much is answered.

A token is four bytes here, as in the simulated model server. Each turn of a benchmark gets texts of its own (``salt``),
so that nothing is left in anybody's cache from the turn before.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN_BYTES = 4
TRACE_BLOCK_TOKENS = 512
"""Of a block of a Mooncake trace."""

_BODY = (
    b'{"model":"%b","stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,"max_tokens":%d,'
    b'"prompt":"%b"}'
)


class WorkloadError(Exception):
    """A workload cannot be had; the text says which, and what to do."""


@dataclass(frozen=True)
class Ask:
    """One request: when it comes (seconds from the start), its prompt, how many tokens are answered."""

    at: float
    prompt: bytes
    output: int

    def body(self, model: str) -> bytes:
        """The completion that is asked for."""
        return _BODY % (model.encode(), self.output, self.prompt)


Workload = Callable[[int, str, float], list[Ask]]
"""From a seed, a salt and seconds to the requests that come in that time, the earliest first. The seed says which, the
salt what their texts are."""


def text(name: str, tokens: int) -> bytes:
    """So many tokens of text that is the same whenever the name is; nothing in it has to be escaped in JSON."""
    return hashlib.shake_128(name.encode()).hexdigest(tokens * TOKEN_BYTES // 2).encode()


@dataclass(frozen=True)
class SharedPrefix:
    """Groups of prompts that share a long beginning, at a steady rate (Poisson): inference-perf's ``shared_prefix``."""

    rate: float
    """Requests a second."""
    groups: int = 150
    prompts: int = 5
    """For each group."""
    system: int = 6000
    question: int = 1200
    output: int = 100

    def __call__(self, seed: int, salt: str, seconds: float) -> list[Ask]:
        """Prompts are drawn at random, every one may come again."""
        chance, at, found = random.Random(seed), 0.0, []
        while (at := at + chance.expovariate(self.rate)) < seconds:
            group, prompt = chance.randrange(self.groups), chance.randrange(self.prompts)
            beginning = text(f"{salt} {group}", self.system)
            found.append(Ask(at, beginning + text(f"{salt} {group} {prompt}", self.question), self.output))
        return found


@dataclass(frozen=True)
class Conversations:
    """People who talk: each reads an answer, thinks, and asks again with all that was said before, behind one system
    prompt that all share. A new one takes the place of one that has asked ``turns`` times."""

    people: int
    system: int = 1000
    first: int = 2000
    question: int = 100
    output: int = 100
    turns: int = 8
    pause: float = 10.0
    """Mean seconds between two questions of a person (exponential)."""

    def __call__(self, seed: int, salt: str, seconds: float) -> list[Ask]:
        """People are in the middle of their conversations at the start."""
        chance, found = random.Random(seed), []
        system = text(salt, self.system)
        for person in range(self.people):
            at, turn, prompt = chance.expovariate(1 / self.pause), chance.randrange(self.turns), b""
            number = 0
            for part in range(turn + 1):
                prompt += self._part(f"{salt} {person} {number} {part}", part)
            while at < seconds:
                found.append(Ask(at, system + prompt, self.output))
                at += chance.expovariate(1 / self.pause)
                turn += 1
                if turn == self.turns:
                    turn, number, prompt = 0, number + 1, b""
                prompt += self._part(f"{salt} {person} {number} {turn}", turn)
        return sorted(found, key=lambda each: each.at)

    def _part(self, name: str, turn: int) -> bytes:
        """What a turn adds: the document that the talk is about; later the answer and the next question."""
        return text(name, self.output + self.question if turn else self.first)


@dataclass(frozen=True)
class Mooncake:
    """A recorded trace: one JSON object a line, with ``timestamp`` (ms), ``input_length``, ``output_length`` (tokens),
    ``hash_ids`` (one for each 512 tokens; equal ones are equal beginnings)."""

    file: Path
    speed: float
    """How many times faster than recorded."""
    most_output: int = 100
    """Tokens that are answered at most: this is about first tokens, and answers are work for the simulation."""
    most_input: int = 32_000
    """Longer prompts are left out."""

    def __call__(self, seed: int, salt: str, seconds: float) -> list[Ask]:
        """The trace from its start, whatever the seed. Raises WorkloadError."""
        found = []
        try:
            for each in self._lines():
                at = each["timestamp"] / 1000 / self.speed
                if at >= seconds:
                    break
                if each["input_length"] <= self.most_input:
                    prompt = b"".join(text(f"{salt} {number}", TRACE_BLOCK_TOKENS) for number in each["hash_ids"])
                    output = max(1, min(each["output_length"], self.most_output))
                    found.append(Ask(at, prompt[: each["input_length"] * TOKEN_BYTES], output))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise WorkloadError(f"{self.file} is no Mooncake trace that can be read: {error!r}") from error
        return found

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.file.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
