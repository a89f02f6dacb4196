# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as passed, failed and not run, and where environments come from."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from gates import ansible_test, environments, runner
from gates.catalogue import COMPLAINTS, GATES, Command, Gate
from gates.environments import CORES, PYTHONS, Environment, EnvironmentMissing
from gates.runner import Runner


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The logs of these gates stay away from those of real ones."""
    monkeypatch.setattr(runner, "CACHE", tmp_path)


def program(text: str, name: str = "gate", forbidden: str = "") -> Gate:
    """A gate that is a small Python program."""
    return Gate(name, lambda: [Command((sys.executable, "-c", text))], forbidden=forbidden)


def test_all_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert Runner([program("print('quiet')", "one"), program("pass", "two")], strict=True).run()
    output = capsys.readouterr().out
    assert "gates: 2 passed, 0 failed, 0 not run" in output
    assert "quiet" not in output


def test_one_that_fails_shows_its_output_and_the_others_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert not Runner([program("print('what is wrong'); exit(3)", "one"), program("pass", "two")], strict=True).run()
    output = capsys.readouterr().out
    assert "what is wrong" in output
    assert "exit status 3" in output
    assert "gates: 1 passed, 1 failed, 0 not run" in output


def test_a_complaint_in_the_output_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert not Runner([program("print('WARNING: x.py:1:1: E501 too long')", forbidden=COMPLAINTS)], strict=True).run()
    assert Runner([program("print('WARNING: x.py:1:1: W503 break')", forbidden=COMPLAINTS)], strict=True).run()
    assert Runner([program("print('ERROR: Timeout on call to ansible-lint')", forbidden=COMPLAINTS)], strict=True).run()
    assert "its output has" in capsys.readouterr().out


@pytest.mark.parametrize(("strict", "passed", "told"), [(False, True, "1 not run"), (True, False, "1 failed")])
def test_a_machine_without_the_python(
    strict: bool, passed: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def commands() -> Iterable[Command]:
        raise EnvironmentMissing("no Python 3.12 on this machine")

    assert Runner([Gate("leg", commands)], strict).run() is passed
    output = capsys.readouterr().out
    assert "no Python 3.12 on this machine" in output
    assert told in output


def test_a_program_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert not Runner([Gate("gone", lambda: [Command(("no-such-program",))])], strict=False).run()
    assert "no-such-program" in capsys.readouterr().out


def test_a_python_that_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "interpreter", lambda version: None)
    with pytest.raises(EnvironmentMissing, match=r"no Python 3\.12"):
        environments.environment("ansible-2.20", "3.12")


def test_find_python_finds_the_exact_minor_version() -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = environments.interpreter(own)
    assert found
    assert found.exists()
    assert environments.interpreter("3.1") is None


def test_every_core_has_its_lock_and_is_tested_on_every_python() -> None:
    names = {gate.name for gate in GATES}
    for core in CORES:
        locked = (environments.ROOT / "requirements" / f"ansible-{core}.txt").read_text()
        assert f"\nansible-core=={core}." in f"\n{locked}"
        assert any(name.startswith(f"sanity-{core}-") for name in names)
        assert {f"units-{core}-py{python}" for python in PYTHONS} <= names
    assert len(names) == len(GATES)


def test_ansible_test_gets_its_pip_from_the_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ansible_test, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "42")
    monkeypatch.setenv("ANSIBLE_CONFIG", "elsewhere.cfg")
    internal = tmp_path / "lib" / "python3.13" / "site-packages" / "ansible_test" / "_internal"
    internal.mkdir(parents=True)
    (internal / "python_requirements.py").write_text("default_packages = dict(\n    pip='25.2',\n)\n")
    variables = ansible_test.variables(Environment(tmp_path))
    home = Path(variables["HOME"])
    assert "ANSIBLE_CONFIG" not in variables
    assert variables["PATH"].startswith(str(tmp_path / "bin"))
    assert sys.executable in (home / ".ansible/test/cache/get_pip_25_2.py").read_text()
    assert "default-timeout = 42" in (home / ".config/pip/pip.conf").read_text()
