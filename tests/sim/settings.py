# SPDX-License-Identifier: GPL-3.0-or-later
"""What one simulated server is: plain values, checked once, that the engine and the HTTP side read. `sim.cli` makes
them from flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

DEFAULT_MAX_MODEL_LEN: Final = 131_072


class SettingsError(ValueError):
    """A value, or a combination of values, that no server can run with; the text names the flag and what to do."""


@dataclass(frozen=True, slots=True)
class TimingModel:
    """How long one engine step takes. All times in seconds of model time."""

    prefill_overhead: float = 0.005
    prefill_time_per_token: float = 0.000_05
    inter_token_latency: float = 0.010
    time_factor_under_load: float = 1.0
    lora_load_time: float = 0.0

    def step_duration(
        self, prefill_tokens: int, prefill_starts: bool, decodes: int, max_num_seqs: int, lora_loads: int
    ) -> float:
        """Return the seconds of a step.

        `prefill_tokens`: uncached prompt tokens computed in it; `prefill_starts`: whether any sequence's prefill
        starts in it; `decodes`: sequences that get one more token; `lora_loads`: adapters brought into a slot.
        Prefill and decode share the device, so their times add up.
        """
        duration = prefill_tokens * self.prefill_time_per_token + lora_loads * self.lora_load_time
        if prefill_starts:
            duration += self.prefill_overhead
        if decodes:
            load = (decodes - 1) / (max_num_seqs - 1) if max_num_seqs > 1 else 0.0
            duration += self.inter_token_latency * (1.0 + (self.time_factor_under_load - 1.0) * load)
        return duration


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The scheduler and the cache of one engine. Lengths in tokens, sizes in blocks."""

    block_size: int = 16
    num_gpu_blocks: int = 19_208
    enable_prefix_caching: bool = True
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8_192
    max_waiting: int | None = None
    max_model_len: int | None = None
    max_loras: int = 0
    timing: TimingModel = field(default_factory=TimingModel)

    def __post_init__(self) -> None:
        """Raise SettingsError for values that would leave a request without any way to run."""
        _at_least(1, "--block-size", self.block_size)
        _at_least(1, "--num-gpu-blocks-override", self.num_gpu_blocks)
        _at_least(1, "--max-num-seqs", self.max_num_seqs)
        _at_least(1, "--max-num-batched-tokens", self.max_num_batched_tokens)
        if self.max_model_len is not None:
            _at_least(2, "--max-model-len", self.max_model_len)
            if self.max_model_len > self.capacity:
                raise SettingsError(
                    f"--max-model-len {self.max_model_len} does not fit the KV cache, which holds "
                    f"{self.capacity} tokens ({self.num_gpu_blocks} blocks of {self.block_size}): "
                    "lower it, or raise --num-gpu-blocks-override"
                )

    @property
    def capacity(self) -> int:
        """Tokens that the KV cache holds."""
        return self.block_size * self.num_gpu_blocks

    @property
    def context_length(self) -> int:
        """The longest sequence, prompt and answer together, in tokens: as given, else the default cut to the cache's
        capacity.
        """
        return self.max_model_len or min(DEFAULT_MAX_MODEL_LEN, self.capacity)


@dataclass(frozen=True, slots=True)
class LoraModule:
    """A LoRA adapter that requests can name as their model."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares of generation requests, in [0, 1], that fail on purpose; drawn from a generator with the given seed."""

    fail_rate: float = 0.0
    reset_rate: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One simulated server, apart from its address."""

    model: str
    served_model_names: Sequence[str]
    engine: EngineSettings = field(default_factory=EngineSettings)
    lora_modules: Sequence[LoraModule] = ()
    output_tokens_mean: float = 128.0
    enable_request_id_headers: bool = False
    enable_prompt_tokens_details: bool = True
    instance_header: bool = False
    api_keys: frozenset[str] = frozenset()
    faults: Faults = field(default_factory=Faults)
    time_scale: float = 1.0

    @property
    def lora_enabled(self) -> bool:
        """Whether adapters can be served at all."""
        return self.engine.max_loras > 0


def _at_least(minimum: int, flag: str, value: int) -> None:
    """Raise SettingsError unless `value` >= `minimum`."""
    if value < minimum:
        raise SettingsError(f"{flag} must be at least {minimum}, not {value}")
