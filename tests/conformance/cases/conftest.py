# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules about plugins share: pickers by configuration, and a pool whose pods have labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from conformance.kit.picker import Picker
from conformance.kit.world import Pool, World

Pickers = Callable[[str], Picker]
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"

LABELS = (
    {"llm-d.ai/role": "decode", "gpu": "h100", "zone": "a", "llm-d.ai/context-length-range": "0-100"},
    {"llm-d.ai/role": "prefill", "gpu": "l4", "zone": "b", "llm-d.ai/context-length-range": "101-2000"},
    {"llm-d.ai/role": "encode", "gpu": "h200", "zone": "b", "llm-d.ai/context-length-range": "2001-100000"},
)
"""Of the pods of the labelled pool; a fourth has none."""


@contextlib.contextmanager
def one_at_a_time(around: World, pool: str) -> Iterator[Pickers]:
    """Pickers for a pool by configuration (without its head); the last one goes on until another is asked for."""
    running = contextlib.ExitStack()
    current: dict[str, Picker] = {}

    def get(config: str) -> Picker:
        if config not in current:
            running.close()
            current.clear()
            current[config] = running.enter_context(around.picker(pool, config=HEAD + config))
        return current[config]

    try:
        yield get
    finally:
        running.close()


@pytest.fixture(scope="module")
def configured(around: World, main_pool: Pool) -> Iterator[Pickers]:
    """Pickers for the main pool, by configuration."""
    with one_at_a_time(around, main_pool.name) as get:
        yield get


@pytest.fixture(scope="module")
def labelled_pool(around: World) -> Iterator[Pool]:
    """Four engines, three of whose pods have labels."""
    with around.pool("labelled", engines=4) as pool:
        for number, labels in enumerate(LABELS):
            around.space.patch_pod(pool.pod(number), labels=dict(labels))
        yield pool


@pytest.fixture
def labelled(labelled_pool: Pool) -> Iterator[Pool]:
    """The same, idle."""
    yield labelled_pool
    labelled_pool.reset()


@pytest.fixture(scope="module")
def by_label(around: World, labelled_pool: Pool) -> Iterator[Pickers]:
    """Pickers for the labelled pool, by configuration."""
    with one_at_a_time(around, labelled_pool.name) as get:
        yield get
