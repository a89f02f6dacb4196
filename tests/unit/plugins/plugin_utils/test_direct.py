# SPDX-License-Identifier: GPL-3.0-or-later
"""When a module may run in the worker of its task, and with which options."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.template import trust_as_template

from ansible_collections.inferops.cluster.plugins.plugin_utils.direct import plain, runs_here


def action(transport: str = "local", become: Any = None, async_val: int = 0) -> Any:
    connection = SimpleNamespace(transport=transport, become=become)
    templar = SimpleNamespace(template=lambda value: value.replace("{{ python }}", sys.executable))
    return SimpleNamespace(_connection=connection, _task=SimpleNamespace(async_val=async_val), _templar=templar)


@pytest.mark.parametrize(
    ("given", "here"),
    [
        (action(), True),
        (action(transport="ssh"), False),
        (action(become="sudo"), False),
        (action(async_val=60), False),
    ],
)
def test_only_for_this_user_on_this_machine(given: Any, here: bool) -> None:
    assert runs_here(given, {}) is here


def test_only_with_this_python(tmp_path: Path) -> None:
    def here(interpreter: str) -> bool:
        return runs_here(action(), {"ansible_python_interpreter": interpreter})

    other = tmp_path / "bin"
    other.mkdir()
    (other / "python").symlink_to(Path(sys.executable).resolve())
    environment = tmp_path / "linked"
    environment.symlink_to(Path(sys.executable).parent)
    assert here("{{ python }}")
    assert here("auto_silent")
    assert here(str(environment / Path(sys.executable).name))
    assert not here(str(other / "python"))
    assert not here("/usr/bin/python-of-somebody-else")


def test_options_become_plain_values() -> None:
    class Text(str):
        pass

    given = {Text("a"): [Text("b"), 1, 1.5, True, None, (2,)], "day": datetime.date(2026, 1, 2), "t": {}}
    made = plain({**given, "trusted": trust_as_template("x")})
    assert made == {"a": ["b", 1, 1.5, True, None, [2]], "day": "2026-01-02", "t": {}, "trusted": "x"}
    assert {type(made["trusted"]), type(made["a"][0]), type(made["a"][3]), *map(type, made)} == {str, bool}
