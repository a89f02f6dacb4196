# SPDX-License-Identifier: GPL-3.0-or-later
"""Each row of what the reference has is shown by a case of the conformance kit that exists, or says why by none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conformance import rows

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cases() -> list[str]:
    return rows.collected()


def test_every_row_has_its_cases(cases: list[str]) -> None:
    missing = {f"{row.subject}: {row.text}": found for row in rows.read() if (found := row.unmatched(cases))}
    assert not missing, "cases that rows.yaml names and nobody has"


def test_no_row_is_without_reason() -> None:
    found = list(rows.read())
    assert len(found) > 80
    assert all(row.none or row.patterns for row in found)
    assert len(rows.without_case(found)) <= len(found) / 8, "too much has no case"


def test_every_flag_has_a_case(cases: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "files/epp/src")}
    command = [sys.executable, "-m", "epp", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    flags = set(re.findall(r"^  --([a-z][a-z-]+)", printed, re.MULTILINE))
    assert len(flags) > 40
    tested = {found[1] for each in cases if (found := re.fullmatch(r"flags/test_help\[(.+)\]", each))}
    # Flags that no other picker has are shown by the tests of ours.
    own = "".join(each.read_text(encoding="utf-8") for each in (ROOT / "files/epp/tests").rglob("*.py"))
    unseen = {each for each in flags - tested if not re.search(rf"\b{each}\b|\b{each.replace('-', '_')}\b", own)}
    assert not unseen, "flags that neither the kit nor the endpoint picker's own tests look for"


@pytest.mark.parametrize(
    ("pattern", "name", "wanted"),
    [
        ("a/test[*]", "a/test[x-1]", True),
        ("a/test[*]", "a/test", False),
        ("a/test", "a/test[x]", False),
        ("a/t.st", "a/test", False),
    ],
)
def test_patterns(pattern: str, name: str, wanted: bool) -> None:
    assert rows.matches(pattern, name) is wanted
