# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to show, row by row, against the cases that exist: ``rows.yaml`` says which case shows what."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
FILE = HERE / "rows.yaml"


@dataclass(frozen=True)
class Row:
    """One row: patterns of the cases that show it, or why there is none."""

    subject: str
    text: str
    patterns: tuple[str, ...]
    none: str

    def unmatched(self, cases: Iterable[str]) -> list[str]:
        """Patterns that no case has."""
        names = list(cases)
        return [each for each in self.patterns if not any(matches(each, name) for name in names)]


def matches(pattern: str, name: str) -> bool:
    """Whether a case's name is meant; only ``*`` is special."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def read() -> Iterator[Row]:
    """All rows. Raises ValueError for one that names neither a case nor a reason."""
    for subject, rows in yaml.safe_load(FILE.read_text(encoding="utf-8")).items():
        for text, value in rows.items():
            reason = value.get("none", "") if isinstance(value, dict) else ""
            patterns = () if isinstance(value, dict) else (value,) if isinstance(value, str) else tuple(value)
            if not patterns and not reason:
                raise ValueError(f"{FILE}: {subject}: {text}: name a case, or say why there is none as {{none: ...}}")
            yield Row(subject, text, patterns, reason)


def collected() -> list[str]:
    """The names of all cases, without running any. Raises RuntimeError when they cannot be collected."""
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), str(HERE / "cases")]
    command += ["--collect-only", "-q", "--no-header", "--epp", "ours"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    names = re.findall(r"^\S*?test_(\w+)\.py::(.+)$", found.stdout, re.MULTILINE)
    if found.returncode != 0 or not names:
        raise RuntimeError(f"{' '.join(command)} failed:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    return [f"{file}/{rest.replace('::', '.')}" for file, rest in names]


def without_case(rows: Iterable[Row]) -> list[Row]:
    """Rows that no case shows."""
    return [row for row in rows if row.none]
