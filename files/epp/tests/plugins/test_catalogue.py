# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about plugins: that it is up to date, and that it tells everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from epp import catalogue
from epp.cli import main
from epp.config.reference import UNAVAILABLE
from epp.plugins import builtin

PAGE = Path(__file__).parents[4] / "docs" / "plugins.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == catalogue.markdown(), "run: make docs"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--markdown"]) == 0
    assert capsys.readouterr().out == catalogue.markdown()


def test_every_type_is_there_once() -> None:
    assert not set(UNAVAILABLE) & set(builtin()), "what is there is no longer missing"
    page = catalogue.markdown()
    for name in builtin():
        assert page.count(f"| [`{name}`](#") == 1
    for name, why in UNAVAILABLE.items():
        assert f"| `{name}` |  | **not available**: {why} |" in page


@pytest.mark.parametrize("cls", sorted(set(builtin().values()), key=lambda cls: cls.TYPE), ids=lambda cls: cls.TYPE)
def test_each_plugin_says_what_it_is(cls: type) -> None:
    page = catalogue._page(cls)
    assert "no description" not in page
    assert "Source: " in page, "where does it come from?"
    for parameter in catalogue.parameters(cls.PARAMETERS):  # type: ignore[attr-defined]
        nested = "." in parameter.name
        assert parameter.doc or nested or parameter.type == "list", f"{parameter.name} has no description"
