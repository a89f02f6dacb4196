# SPDX-License-Identifier: GPL-3.0-or-later
"""SGLang's page, printed by SGLang's own code. The engine does not run: it needs a GPU (see `sglang_page`)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conformance.kit.pages import MODEL, Figures
from conformance.kit.pages import sglang as ours

from engines.compare import differences, read, read_by_us
from engines.environment import environment
from epp.datalayer.mapping import Mapper
from epp.model import EndpointMetrics

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

FIGURES: dict[str, Any] = {"model": MODEL, "waiting": 3, "running": 5, "kv": 0.25, "page_size": 64, "pages": 99}
OLD = "sglang:cache_config_info"
"""Of servers before 0.5.11."""
ELSEWHERE = {"sglang:time_to_first_token_seconds"}
"""From another process of the engine."""


def page(**more: Any) -> str:
    """The page with these figures."""
    script = Path(__file__).with_name("sglang_page.py")
    command = [str(environment("sglang")), str(script), json.dumps(FIGURES | more)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def metrics(text: str) -> EndpointMetrics:
    """What the EPP reads on it."""
    return Mapper().read(text.encode(), {"llm-d.ai/engine-type": "sglang"}, EndpointMetrics())


def test_the_page() -> None:
    real = page()
    assert differences(ours(Figures()), real, ELSEWHERE) == []
    assert read(real, "sglang") == read(ours(Figures()), "sglang") == read_by_us("sglang") - {OLD}


def test_the_figures() -> None:
    found = metrics(page())
    assert (found.waiting, found.running, found.kv_cache_usage) == (3, 5, 0.25)
    assert (found.block_size, found.num_blocks) == (64, 99)


def test_priorities_are_not_counted_twice() -> None:
    """With `--enable-priority-scheduling` the queue stands there as a whole, and once more by priority."""
    real = page(priorities={"1": 2, "5": 1})
    assert real.count("\nsglang:num_queue_reqs{") == 3
    assert metrics(real).waiting == 3
