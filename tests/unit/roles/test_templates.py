# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates that collect something: an error in an entry must fail, and not take the entry with it.

ansible-core does not call a method whose argument cannot be evaluated, and says so only where the result is looked at.
A statement that throws its result away, as ``set _ = list.append(...)``, so loses both the entry and the error.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import rendering

ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = sorted(
    path for folder in ("roles", "playbooks") for path in (ROOT / folder).rglob("*") if path.suffix in (".j2", ".yml")
)
THROWN_AWAY = re.compile(r"{%-?\s*(?:set\s+_\s*=|do\s)")

PROBLEMS = (ROOT / "roles" / "litellm" / "templates" / "problems.j2").read_text()
GIVEN = {"litellm_api_base": "http://gateway/v2"}
ENTRY = "['litellm_api_base is ' ~ litellm_api_base ~ ', and' ~ advice]"
ERRORS = [
    ("nowhere", "'nowhere' is undefined"),
    ("'{' | from_json", "from_json' failed"),
    ("{}.key", "has no attribute 'key'"),
]


@pytest.mark.parametrize("path", TEMPLATES, ids=[str(path.relative_to(ROOT)) for path in TEMPLATES])
def test_nothing_is_thrown_away(path: Path) -> None:
    assert not THROWN_AWAY.search(path.read_text())


def test_an_entry_that_can_be_evaluated() -> None:
    (answer,) = rendering.render([{"role": "litellm", "given": GIVEN, "template": PROBLEMS}])
    (problem,) = answer["problems"]
    assert problem.startswith("litellm_api_base is http://gateway/v2, and must end in /v1")


@pytest.mark.parametrize(("entry", "error"), ERRORS)
def test_an_error_in_an_entry_fails(entry: str, error: str) -> None:
    assert ENTRY in PROBLEMS
    with pytest.raises(RuntimeError, match=error):
        rendering.render([{"role": "litellm", "given": GIVEN, "template": PROBLEMS.replace(ENTRY, f"[{entry}]")}])


def test_it_was_lost() -> None:
    """What the form that is not allowed does with the same errors; this test notices when that changes."""
    lost = "{{% set found = [] %}}{{% set _ = found.append({}) %}}{{{{ found | to_json }}}}"
    asked = [{"role": "litellm", "given": {}, "template": lost.format(entry)} for entry, _ in ERRORS]
    assert rendering.render(asked) == [{"problems": [], "objects": []}] * len(ERRORS)
