# SPDX-License-Identifier: GPL-3.0-or-later
"""What is copied where: the plugins of ``--plugin TYPE:NAME[:JSON]`` and of the configuration file.

``body-field-to-header`` {fieldName, headerName}: the text of a member of the body's object becomes a header.
``base-model-to-header`` {}: the base model of the body's ``model`` becomes the header X-Gateway-Base-Model-Name; of a
model that no ConfigMap knows this header is removed, so that it does not come from the client.
Source: GAIE v1.5 and llm-d's payload processor, plugins of the same types.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from epp.bbr.figures import Figures
from epp.bbr.settings import PluginText
from epp.flags import FlagError

MODEL_HEADER = "X-Gateway-Model-Name"
BASE_MODEL_HEADER = "X-Gateway-Base-Model-Name"
MODEL = "model"

BODY_FIELD, BASE_MODEL = "body-field-to-header", "base-model-to-header"
DEFAULT = (
    PluginText(BODY_FIELD, BODY_FIELD, {"fieldName": MODEL, "headerName": MODEL_HEADER}),
    PluginText(BASE_MODEL, BASE_MODEL, {}),
)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def is_header(name: str) -> bool:
    """Whether a header may have this name."""
    return _HEADER.fullmatch(name) is not None


class Plugin(ABC):
    """One step: members of the body in, a header out."""

    TYPE = ""

    def __init__(self, name: str, member: str, header: str) -> None:
        self.name, self.member, self.header = name, member, header

    @abstractmethod
    def value(self, members: Mapping[str, str], figures: Figures) -> str | None:
        """The header's value; empty to remove the header, None to leave it alone."""


class BodyFieldToHeader(Plugin):
    """See the module."""

    TYPE = BODY_FIELD

    def value(self, members: Mapping[str, str], figures: Figures) -> str | None:
        """The member's text."""
        found = members.get(self.member)
        if found is None:
            figures.not_found.value(self.member).add()
        elif not found:
            figures.empty.value(self.member).add()
        return found or None


class BaseModelToHeader(Plugin):
    """See the module."""

    TYPE = BASE_MODEL

    def __init__(self, name: str, base_of: Callable[[str], str]) -> None:
        super().__init__(name, MODEL, BASE_MODEL_HEADER)
        self._base_of = base_of

    def value(self, members: Mapping[str, str], figures: Figures) -> str | None:
        """The model's base model."""
        model = members.get(MODEL)
        return self._base_of(model) if model else None


def build(texts: Sequence[PluginText], base_of: Callable[[str], str]) -> list[Plugin]:
    """The plugins in their order; the default ones for none. Raises FlagError."""
    return [_plugin(text, base_of) for text in (texts or DEFAULT)]


def needs_adapters(texts: Sequence[PluginText]) -> bool:
    """Whether any of these plugins asks for base models."""
    return any(text.type == BASE_MODEL for text in (texts or DEFAULT))


def _plugin(text: PluginText, base_of: Callable[[str], str]) -> Plugin:
    if text.type == BASE_MODEL:
        _only(text, ())
        return BaseModelToHeader(text.name, base_of)
    if text.type != BODY_FIELD:
        raise FlagError(f"--plugin={text.type}:{text.name}: unknown type; known are {BODY_FIELD} and {BASE_MODEL}")
    given = _only(text, ("fieldName", "headerName"))
    header = given["headerName"]
    if not is_header(header):
        raise FlagError(f"--plugin={text.type}:{text.name}: headerName {header!r} is no name of a header")
    return BodyFieldToHeader(text.name, given["fieldName"], header)


def _only(text: PluginText, names: Sequence[str]) -> dict[str, str]:
    """The parameters, which must be just these, and texts; v1.4 wrote them in snake_case. Raises FlagError."""
    given = {re.sub(r"_(\w)", lambda match: match[1].upper(), key): value for key, value in text.parameters.items()}
    where = f"--plugin={text.type}:{text.name}"
    for key in given:
        if key not in names:
            raise FlagError(f"{where}: unknown parameter {key!r}; known are {', '.join(names) or 'none'}")
    for name in names:
        if not isinstance(given.get(name), str) or not given[name]:
            raise FlagError(f"{where}: needs the parameter {name}, a text")
    return given
