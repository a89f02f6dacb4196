# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of variables in the roles' READMEs, from their argument specifications.

python -m reference.variables
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "<!-- Made from meta/argument_specs.yml by `make docs`; change it there. -->\n"
END = "<!-- End of the variables. -->\n"
LONGEST_DEFAULT = 100

Json = dict[str, Any]


def readme(role: str) -> Path:
    """The README of a role."""
    return ROOT / "roles" / role / "README.md"


def roles() -> list[str]:
    """All roles, by name."""
    return sorted(path.name for path in (ROOT / "roles").iterdir())


def table(role: str) -> str:
    """The table of all variables of a role, keys of dictionaries and of lists' items included."""
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    lines = ["| variable | type | default | what it is |", "|---|---|---|---|"]
    for name, option in _flat(specs["argument_specs"]["main"]["options"], ""):
        cells = (f"`{name}`", _type(option), _default(option), _description(option))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def written(role: str) -> str:
    """The README of a role as it should be. Raises ValueError if it has no place for the table."""
    text = readme(role).read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"{readme(role).relative_to(ROOT)} needs these two lines, for the table between them:\n{BEGIN}{END}"
        )
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table(role)}\n{END}{rest.split(END)[1]}"


def _flat(options: Json, prefix: str) -> Iterator[tuple[str, Json]]:
    for name, option in options.items():
        yield prefix + name, option
        if "options" in option:
            items = "[]" if option["type"] == "list" else ""
            yield from _flat(option["options"], f"{prefix}{name}{items}.")


def _type(option: Json) -> str:
    return f"list of {option['elements']}" if option["type"] == "list" else str(option["type"])


def _default(option: Json) -> str:
    if option.get("required"):
        return "*required*"
    if "default" not in option:
        return ""
    value = option["default"]
    text = value if isinstance(value, str) and value else json.dumps(value)
    return f"`{text}`" if len(text) <= LONGEST_DEFAULT else "[defaults](defaults/main.yml)"


def _description(option: Json) -> str:
    given = option["description"]
    text = " ".join(given if isinstance(given, list) else [given])
    if "choices" in option:
        text += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
    return markdown(" ".join(text.split()))


def markdown(text: str) -> str:
    """Ansible's documentation markup as Markdown."""
    text = re.sub(r"\bP\(([\w.]+)#\w+\)", r"`\1`", text)
    text = re.sub(r"\b(?:C|O|V|RV|M|E|P)\(((?:[^()\\]|\\.)*)\)", r"`\1`", text)
    text = re.sub(r"\bI\(([^)]*)\)", r"*\1*", text)
    text = re.sub(r"\bB\(([^)]*)\)", r"**\1**", text)
    text = re.sub(r"\bU\(([^)]*)\)", r"<\1>", text)
    return re.sub(r"\bL\(([^,]*),\s*([^)]*)\)", r"[\1](\2)", text)


if __name__ == "__main__":
    for each in roles():
        readme(each).write_text(written(each))
        print(f"wrote {readme(each).relative_to(ROOT)}")
