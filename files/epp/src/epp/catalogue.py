# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``epp plugins`` prints: every plugin with its parameters, for a terminal or as a page of documentation.

Everything is read from the plugins themselves: the module's docstring, and the dataclass of the parameters.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

from epp.config.document import camel, duration_text
from epp.config.reference import UNAVAILABLE
from epp.plugins import builtin, external
from epp.scheduling.api import Plugin

_SECTION = re.compile(r"^(?=Parameters?:)|^(?=[A-Z][A-Za-z ()]*:)", re.MULTILINE)
_KINDS = ("epp.scheduling.api", "epp.flowcontrol.api")
"""Where the kinds of plugins are."""

_INTRODUCTION = """\
# Plugins

Everything that can stand in `plugins:` of an EndpointPickerConfig. Types, parameters and formulas are those of GAIE
v1.3 and v1.5 and of llm-d-router, unless a plugin's text says otherwise.

<!-- Made by `epp plugins --markdown`; change the plugins' own texts. -->
"""
_OWN = """\
## Plugins of one's own

A Python file is enough: `--plugin-path FILE`, or a folder of them (a mounted ConfigMap, say), as often as wanted; or an
installed package with an entry point of the group `epp.plugins`. See `files/epp/README.md` for an example.
"""


@dataclass(frozen=True)
class Parameter:
    """One parameter, flattened: ``profiles.decode``."""

    name: str
    type: str
    default: str
    """As JSON; empty when it is required, or when there is none unless it is given."""
    required: bool
    bounds: str
    doc: str


def parameters(cls: type[Any], prefix: str = "") -> Iterator[Parameter]:
    """The parameters of a class, nested ones below the name of what holds them."""
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        name = prefix + (field.metadata.get("key") or camel(field.name))
        hint = _inner(hints[field.name])
        if is_dataclass(hint) and isinstance(hint, type):
            yield from parameters(hint, f"{name}.")
        elif (items := _items(hint)) is not None:
            yield Parameter(name, "list", _default(field), _required(field), "", field.metadata.get("doc", ""))
            yield from parameters(items, f"{name}[].")
        else:
            doc = field.metadata.get("doc") or _attribute_text(cls, field.name)
            yield Parameter(name, _type(hint, field), _default(field), _required(field), _bounds(field), doc)


def text(types: Mapping[str, type[Plugin]]) -> str:
    """All plugins for a terminal, those of one's own with where they come from."""
    lines: list[str] = []
    for name, cls in sorted(types.items()):
        if name != cls.TYPE:
            lines.append(f"{name}: {cls.TYPE}\n")
            continue
        source = external.source(name)
        lines.append(f"{name} ({', '.join(kinds(cls))}){f', from {source}' if source else ''}")
        summary = _summary(cls)
        lines += textwrap.wrap(summary, 96, initial_indent="    ", subsequent_indent="    ") if summary else []
        for each in parameters(cls.PARAMETERS):
            lines.append(f"      {each.name} {each.type}" + (" (required)" if each.required else _told(each.default)))
            more = "; ".join(part for part in (each.doc, each.bounds) if part)
            lines += textwrap.wrap(more, 96, initial_indent="          ", subsequent_indent="          ")
        lines.append("")
    return "\n".join(lines)


def markdown() -> str:
    """The page about the plugins that belong to the EPP, and about those of the reference that it does not have."""
    types = builtin()
    own = sorted(set(types.values()), key=lambda cls: cls.TYPE)
    pages = [_INTRODUCTION, _overview(types), _OWN, "## Each plugin\n"]
    return "\n".join([*pages, *(_page(cls) for cls in own)]).rstrip() + "\n"


def kinds(cls: type[Plugin]) -> list[str]:
    """What a plugin is, in the API's words."""
    return [base.__name__ for base in cls.__mro__ if Plugin in base.__bases__ and base.__module__ in _KINDS]


def _overview(types: Mapping[str, type[Plugin]]) -> str:
    rows: dict[str, tuple[str, str]] = {}
    for name, cls in types.items():
        link = f"[`{name}`](#{cls.TYPE})"
        state = f"limited: {cls.LIMITS}" if cls.LIMITS else "done"
        rows[name] = (link, f"{', '.join(kinds(cls))} | {state if name == cls.TYPE else f'as `{cls.TYPE}`'}")
    for name, why in UNAVAILABLE.items():
        rows[name] = (f"`{name}`", f" | **not available**: {why}")
    lines = ["| type | kind | state |", "|---|---|---|"]
    lines += [f"| {link} | {rest} |" for _, (link, rest) in sorted(rows.items())]
    return "\n".join(lines) + "\n"


def _page(cls: type[Plugin]) -> str:
    head, *sections = _SECTION.split(_docstring(cls))
    title, _, rest = head.partition("\n")
    told = _plain(f"{title.partition(': ')[2] or title}\n{rest}").strip()
    lines = [f"### {cls.TYPE}", "", told[:1].upper() + told[1:], ""]
    if cls.LIMITS:
        lines += [f"Not as in the reference: {cls.LIMITS}.", ""]
    table = list(parameters(cls.PARAMETERS))
    if table:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(each) for each in table]
        lines.append("")
    for section in sections:
        if not section.startswith(("Parameters:", "Parameter:")):
            lines += [_plain(section).strip(), ""]
    return "\n".join(lines)


def _row(each: Parameter) -> str:
    default = "required" if each.required else f"`{each.default}`" if each.default else ""
    meaning = "; ".join(part for part in (each.doc, each.bounds) if part)
    return f"| `{each.name}` | {each.type} | {default} | {meaning} |".replace("\n", " ")


def _docstring(cls: type[Plugin]) -> str:
    module = sys.modules[cls.__module__]
    return inspect.cleandoc(module.__doc__ or cls.__doc__ or f"{cls.TYPE}: (no description)")


def _summary(cls: type[Plugin]) -> str:
    paragraph = _docstring(cls).split("\n\n")[0].replace("\n", " ")
    return _plain(paragraph.partition(": ")[2] or paragraph)


def _plain(written: str) -> str:
    """Without the marks of Python's documentation."""
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", written).replace("``", "`")


def _inner(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    return arms[0] if type(None) in typing.get_args(hint) and arms else hint


def _items(hint: Any) -> type[Any] | None:
    """The dataclass in a list of them."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (list, tuple) and is_dataclass(arguments[0]) and isinstance(arguments[0], type):
        return arguments[0]
    return None


def _type(hint: Any, field: Field[Any]) -> str:
    if field.metadata.get("duration"):
        return "duration"
    if field.metadata.get("plugin") is not None:
        return "name of a plugin"
    names: dict[Any, str] = {bool: "bool", int: "int", float: "number", str: "string"}
    if hint in names:
        return names[hint]
    return {list: "list", tuple: "list", dict: "map"}.get(typing.get_origin(hint) or hint, "any")


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value is None:
        return ""
    if field.metadata.get("duration"):
        return duration_text(value)
    try:
        return json.dumps(value)
    except TypeError:
        return ""


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _bounds(field: Field[Any]) -> str:
    rules = field.metadata
    if rules.get("choices"):
        return "one of " + ", ".join(rules["choices"])
    names = {"minimum": "at least", "above": "more than", "maximum": "at most"}
    return ", ".join(f"{word} {rules[name]:g}" for name, word in names.items() if rules.get(name) is not None)


def _told(default: str) -> str:
    return f" ({default})" if default else ""


def _attribute_text(cls: type[Any], name: str) -> str:
    """The string below a field, which Python itself does not keep."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return ""
    found = re.search(rf'^\s+{name}: [^\n]*\n\s+"""(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()).rstrip(".") if found else ""
