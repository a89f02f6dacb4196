# SPDX-License-Identifier: GPL-3.0-or-later
"""A wait in parts: how long each is, and what is told after it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.plugin_utils import progress


def waited(*entries: dict[str, Any], reason: str = "ready", total: int = 9) -> dict[str, Any]:
    return {"waited": {"for": reason, "total": total, "seconds": 10.0, "unmet": list(entries)}, "exception": "old"}


def pod(**more: Any) -> dict[str, Any]:
    entry = {"api_version": "v1", "kind": "Pod", "namespace": "n", "name": "a", "reason": "not yet"}
    return {**entry, "final": False, "details": [], **more}


@pytest.mark.parametrize(
    ("timeout", "parts"), [(0, [0]), (5, [5]), (14, [14]), (300, [10]), (16, [10, 6]), (60, [10, 15, 15, 20])]
)
def test_the_parts_add_up_to_the_whole(timeout: int, parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = progress.Clock(timeout)
    for length in parts:
        assert clock.part() == length
        now += length
    assert clock.left() is (sum(parts) < timeout)


def test_a_wait_that_cannot_succeed_is_over() -> None:
    assert progress.unmet(waited(pod())) == [pod()]
    assert progress.unmet(waited(pod(), pod(final=True))) == []
    assert progress.unmet({"failed": True, "msg": "refused"}) == []


def test_a_timeout_that_is_no_number_is_left_to_the_module() -> None:
    assert [progress.seconds(args) for args in ({}, {"wait_timeout": "7"}, {"wait_timeout": "soon"})] == [300, 7, None]


def test_a_line_of_progress_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    many = [pod(name=f"p{n}", details=["x" * 500]) for n in range(5)]
    progress.tell("[h] set s", waited(*many), 9, 25.4)
    line = " ".join(capsys.readouterr().out.split())
    assert line.startswith("[h] set s: 5 of 9 objects not ready after 25 s: Pod n/p0: not yet (xxx")
    assert line.endswith("...; and 2 more")
    assert len(line) < 800


def test_the_last_failure_speaks_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    result = waited(pod(details=["why"]), total=1)
    progress.retold(result, 9, 61.2, "set s: ")
    assert result["msg"] == "set s: 1 of 9 objects were not ready after 61 s:\nPod n/a: not yet\n  why"
    assert result["waited"]["seconds"] == 61.2
    assert "exception" not in result
