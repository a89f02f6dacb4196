# SPDX-License-Identifier: GPL-3.0-or-later
"""What engines say of their KV caches: the messages of vLLM's and SGLang's event publishers.

A message has three frames: a topic ``kv@<pod>@<model>``, a sequence number (8 bytes, big-endian), and a batch in
msgpack: ``[ts, events, data_parallel_rank]``. An event is an array that begins with its type, or, of newer engines, a
map with ``type``. Fields at the end may be missing, and more may follow that nobody here knows.
Source: vLLM ``distributed/kv_events.py``, SGLang ``disaggregation/kv_events.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

GPU = "gpu"
Hash = int | bytes
"""An engine's own name of a block. It depends on the engine's seed and algorithm, and only that engine knows it."""


class _Stored(msgspec.Struct, array_like=True, tag="BlockStored"):
    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _Removed(msgspec.Struct, array_like=True, tag="BlockRemoved"):
    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    pass


class _StoredMap(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[Hash]
    token_ids: list[int]
    block_size: int
    parent_block_hash: Hash | None = None
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _RemovedMap(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None


class _ClearedMap(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _BatchMap(msgspec.Struct):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


_batch, _batch_map = msgspec.msgpack.Decoder(_Batch), msgspec.msgpack.Decoder(_BatchMap)
_event = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared)
_event_map = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap)


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Blocks are in the cache now: ``len(hashes)`` blocks of ``block_size`` tokens, which follow ``parent``."""

    hashes: Sequence[int]
    parent: int | None
    tokens: Sequence[int]
    """Empty where blocks only move to another ``medium``."""
    block_size: int
    medium: str = GPU
    lora: str = ""
    """The adapter for which they were computed; empty for the base model."""
    extras: Sequence[tuple[str, ...]] = ()
    """Per block what else its contents depend on: identifiers of pictures, the cache salt. Empty: nothing."""
    group: int | None = None
    """Of models with several kinds of attention: which group of layers; None for models with one."""
    kind: str = ""
    """The group's kind of attention."""


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """Blocks are not in the cache any more."""

    hashes: Sequence[int]
    medium: str = GPU
    group: int | None = None


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, slots=True)
class Batch:
    """What one message says."""

    events: Sequence[Event]
    rank: int | None = None
    """Which of a pod's data-parallel engines speaks; None when there is one."""
    ts: float = 0.0
    """When it was written, in the engine's own time (seconds)."""


def topic_of(topic: bytes) -> tuple[str, str]:
    """Pod and model of a topic ``kv@<pod>@<model>``; empty for what it does not say."""
    parts = topic.decode("utf-8", "replace").split("@", 2)
    parts += [""] * (3 - len(parts))
    return parts[1], parts[2]


def read_batch(payload: bytes) -> Batch:
    """Read a message's last frame. Events of unknown types are left out. Raises ValueError for what is no batch."""
    try:
        found = (_batch if _is_array(payload) else _batch_map).decode(payload)
        events = [event for raw in found.events if (event := _read(bytes(raw))) is not None]
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is no batch of KV cache events: {error}") from None
    return Batch(events, found.data_parallel_rank, found.ts)


def _read(raw: bytes) -> Event | None:
    try:
        found = (_event if _is_array(raw) else _event_map).decode(raw)
    except msgspec.ValidationError as error:
        if "Invalid value" in str(error):  # a type that is not one of the three
            return None
        raise
    if isinstance(found, _Stored | _StoredMap):
        return BlockStored(
            _numbers(found.block_hashes),
            None if found.parent_block_hash is None else _number(found.parent_block_hash),
            found.token_ids,
            found.block_size,
            (found.medium or GPU).lower(),
            found.lora_name or "",
            _extras(found.extra_keys, found.lora_name),
            found.group_idx,
            found.kv_cache_spec_kind or "",
        )
    if isinstance(found, _Removed | _RemovedMap):
        return BlockRemoved(_numbers(found.block_hashes), (found.medium or GPU).lower(), found.group_idx)
    return AllBlocksCleared()


def _is_array(data: bytes) -> bool:
    return bool(data) and (0x90 <= data[0] <= 0x9F or data[0] in (0xDC, 0xDD))


def _numbers(hashes: list[Hash]) -> list[int]:
    return [each if isinstance(each, int) else int.from_bytes(each[-8:], "big") for each in hashes]


def _number(value: Hash) -> int:
    return value if isinstance(value, int) else int.from_bytes(value[-8:], "big")


def _extras(keys: list[list[Any] | None] | None, lora: str | None) -> Sequence[tuple[str, ...]]:
    """The texts among a block's extra keys, bare or as ``[text, offset]``. The adapter's name is said elsewhere."""
    if keys is None or not any(keys):
        return ()
    found = []
    for block in keys:
        texts = [each[0] if isinstance(each, list) and each else each for each in block or ()]
        found.append(tuple(text for text in texts if isinstance(text, str) and text != lora))
    return found if any(found) else ()
