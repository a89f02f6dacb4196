# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: what each picker did in each case, and where they differ on purpose, why. As Markdown and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]
"""What the cases wrote about one picker: name, title, seconds, cases."""

SHOWN = {
    "passed": "✓",
    "differs": "differs",
    "agrees": "✓ (declared to differ)",
    "failed": "**FAILED**",
    "skipped": "skipped",
}


def read(files: Iterable[Path]) -> list[Run]:
    """The runs in these files."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def write(runs: Sequence[Run], folder: Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.json``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, document = folder / "report.md", folder / "report.json"
    markdown.write_text(as_markdown(runs), encoding="utf-8")
    document.write_text(json.dumps(as_document(runs), indent=1) + "\n", encoding="utf-8")
    return markdown, document


def failures(run: Run) -> list[dict[str, Any]]:
    """The cases in which a picker failed."""
    return [case for case in run["cases"] if case["outcome"] == "failed"]


def summary(run: Run) -> str:
    """A picker's result in a line."""
    counted = Counter(case["outcome"] for case in run["cases"])
    passed = counted["passed"] + counted["agrees"]
    parts = [f"{passed} of {len(run['cases'])} cases passed"]
    names = {"differs": "differ on purpose", "failed": "failed", "skipped": "skipped"}
    parts += [f"{counted[key]} {text}" for key, text in names.items() if counted[key]]
    return f"{run['title']}: {', '.join(parts)} ({run['seconds']:.0f} s)"


def as_document(runs: Sequence[Run]) -> dict[str, Any]:
    """The report as plain values: a summary per picker, and per case what each did."""
    pickers = {run["name"]: {"title": run["title"], "summary": summary(run), "seconds": run["seconds"]} for run in runs}
    cases = [
        {
            "case": name,
            "about": about,
            "results": {
                picker: {
                    key: case[key] for key in ("outcome", "why", "text", "seconds") if case[key] or key == "outcome"
                }
                for picker, case in row.items()
            },
        }
        for name, about, row in _rows(runs)
    ]
    return {"pickers": pickers, "cases": cases}


def as_markdown(runs: Sequence[Run]) -> str:
    """The report for people."""
    lines = ["# Conformance of endpoint pickers", "", *(f"- {summary(run)}" for run in runs), ""]
    lines += _failed(runs)
    lines += _differences(runs)
    lines += ["## All cases", ""]
    subject = ""
    for name, about, row in _rows(runs):
        if name.partition("/")[0] != subject:
            subject = name.partition("/")[0]
            lines += ["", f"### {subject}", "", "| case | what it says | " + " | ".join(_titles(runs)) + " |"]
            lines.append("|---" * (2 + len(runs)) + "|")
        cells = [SHOWN[row[run["name"]]["outcome"]] if run["name"] in row else "" for run in runs]
        lines.append(f"| {_cell(name.partition('/')[2])} | {_cell(about)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_summary(runs: Sequence[Run]) -> str:
    """Cases per subject, and where pickers differ on purpose, why. It stays the same as long as the pickers do."""
    lines = [
        "# Conformance of endpoint pickers",
        "",
        "Written by `make conformance`; the cases are in `tests/conformance`.",
    ]
    titles = " | ".join(_titles(runs))
    lines += ["", f"| cases | number | {titles} |", "|---|--:" + "|--:" * len(runs) + "|"]
    subjects: dict[str, Counter[str]] = {}
    for name, _, row in _rows(runs):
        counted = subjects.setdefault(name.partition("/")[0], Counter())
        counted["cases"] += 1
        counted.update({run: case["outcome"] in ("passed", "agrees") for run, case in row.items()})
    subjects["**all**"] = sum(subjects.values(), Counter())
    for subject, counted in subjects.items():
        cells = " | ".join(str(counted[run["name"]]) for run in runs)
        lines.append(f"| {subject} | {counted['cases']} | {cells} |")
    return "\n".join([*lines, "", *_failed(runs), *_differences(runs)]).rstrip() + "\n"


def _failed(runs: Sequence[Run]) -> list[str]:
    lines = []
    for run in runs:
        if found := failures(run):
            lines += [f"## Failures of {run['title']}", ""]
            lines += [f"- `{case['case']}`: {case['about']} — {case['text']}" for case in found] + [""]
    return lines


def _differences(runs: Sequence[Run]) -> list[str]:
    lines = []
    for run in runs:
        reasons: dict[str, list[str]] = {}
        for case in run["cases"]:
            if case["outcome"] == "differs":
                reasons.setdefault(case["why"], []).append(case["case"])
        if reasons:
            lines += [f"## Where {run['title']} differs on purpose", "", "| why | cases |", "|---|---|"]
            lines += [f"| {_cell(why)} | {_cell(', '.join(names))} |" for why, names in reasons.items()] + [""]
        stale = [case["case"] for case in run["cases"] if case["outcome"] == "agrees"]
        if stale:
            lines += [f"Declared to differ, and does not: {', '.join(f'`{each}`' for each in stale)}", ""]
    return lines


def _rows(runs: Sequence[Run]) -> list[tuple[str, str, dict[str, dict[str, Any]]]]:
    """Case, what it is about, and what each picker did; a case that failed in two phases counts once, as failed."""
    rows: dict[str, tuple[str, str, dict[str, dict[str, Any]]]] = {}
    for run in runs:
        for case in run["cases"]:
            row = rows.setdefault(case["case"], (case["case"], case["about"], {}))
            known = row[2].get(run["name"])
            if known is None or known["outcome"] != "failed":
                row[2][run["name"]] = case
    return list(rows.values())


def _titles(runs: Sequence[Run]) -> list[str]:
    return [run["title"] for run in runs]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
