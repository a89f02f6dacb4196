# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/values.md from docs/values.yml: which role variable takes the place of which Helm value.

python -m reference.values
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "docs" / "values.yml"
TARGET = ROOT / "docs" / "values.md"

HEAD = """# From Helm values to role variables

Whoever comes from the Helm charts finds here, for each of their values, the variable of a role that does the same.
Each of these variables has a test that gives it another value and looks at the objects which the role makes of it
(`tests/unit/roles/value_cases.py`).

`VARIABLE[].KEY` is a key of the items of a list. All variables of a role, with what they may be:
`ansible-doc -t role inferops.cluster.ROLE`. [upgrade.md](upgrade.md) tells how to move a platform that Helm installed.

<!-- Made from values.yml by `python -m reference.values`; change it there. -->
"""


@dataclass(frozen=True)
class Catalogue:
    """The charts' values with their defaults, and what became of them: variable and note."""

    charts: dict[str, dict[str, Any]]
    about: dict[str, str]
    places: dict[str, dict[str, dict[str, str]]]

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Read docs/values.yml."""
        text = yaml.safe_load(path.read_text())
        charts = {name: chart["values"] for name, chart in text["charts"].items()}
        return cls(charts, {name: chart["about"] for name, chart in text["charts"].items()}, text["variables"])

    def rows(self) -> list[tuple[str, str]]:
        """Chart and value of each row."""
        return [(chart, value) for chart, values in self.places.items() for value in values]

    def variable(self, chart: str, value: str) -> str | None:
        """The variable in the place of a value, if there is one."""
        return self.places.get(chart, {}).get(value, {}).get("variable")

    def variables(self) -> list[str]:
        """Every variable that some value leads to, once."""
        return sorted({place["variable"] for values in self.places.values() for place in values.values()})


def page(catalogue: Catalogue) -> str:
    """The whole page."""
    parts = [HEAD]
    for chart, values in catalogue.charts.items():
        parts.append(f"\n## {chart}\n\n{catalogue.about[chart]}\n\n")
        parts.append("| value | its default | variable | default | remark |\n|---|---|---|---|---|\n")
        for value, default in values.items():
            place = catalogue.places[chart][value]
            cells = (f"`{value}`", _text(default), f"`{place['variable']}`", _text(_ours(place["variable"])))
            parts.append("| " + " | ".join((*cells, place.get("note", ""))) + " |\n")
    return "".join(parts)


def _ours(variable: str) -> Any:
    """The default of a variable, or of a key of a list's items; None where there is none."""
    name, *keys = variable.split("[].")
    for folder in sorted(ROOT.glob("roles/*"), key=lambda path: -len(path.name)):
        if name.startswith(f"{folder.name}_"):
            specs = yaml.safe_load((folder / "meta" / "argument_specs.yml").read_text())
            option: dict[str, Any] = {"options": specs["argument_specs"]["main"]["options"]}
            for key in [name, *keys]:
                option = option["options"][key]
            return option.get("default")
    raise KeyError(f"no role has a variable {variable}")


def _text(value: Any) -> str:
    """A default as a cell of the table."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    TARGET.write_text(page(Catalogue.load(SOURCE)))
    print(f"wrote {TARGET.relative_to(ROOT)}")
