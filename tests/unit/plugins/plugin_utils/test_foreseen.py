# SPDX-License-Identifier: GPL-3.0-or-later
"""What tasks in check mode leave for those after them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.inferops.cluster.plugins.plugin_utils import foreseen


def kind(name: str, version: str = "v1", namespaced: bool = True) -> dict[str, object]:
    return {"api_version": f"example.com/{version}", "kind": name, "plural": f"{name}s", "namespaced": namespaced}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(foreseen.C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    return tmp_path


def test_kinds_gather_and_the_last_word_counts() -> None:
    assert foreseen.Foreseen("h", {}).kinds() == []
    foreseen.Foreseen("h", {}).add([kind("a"), kind("b")])
    foreseen.Foreseen("h", {}).add([kind("a", namespaced=False), kind("a", "v2")])
    assert foreseen.Foreseen("h", {}).kinds() == [kind("a", namespaced=False), kind("b"), kind("a", "v2")]


def test_each_host_and_each_cluster_for_itself(folder: Path) -> None:
    foreseen.Foreseen("h", {"context": "one"}).add([kind("a")])
    assert foreseen.Foreseen("h", {"context": "two"}).kinds() == []
    assert foreseen.Foreseen("g", {"context": "one"}).kinds() == []
    foreseen.Foreseen("h", {"context": "two"}).add([])
    assert len(list(folder.iterdir())) == 1


def test_no_option_of_authentication_is_written(folder: Path) -> None:
    foreseen.Foreseen("h", {"api_key": "correct-horse"}).add([kind("a")])
    (written,) = folder.iterdir()
    assert "correct-horse" not in written.name + written.read_text()
