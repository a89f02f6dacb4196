# SPDX-License-Identifier: GPL-3.0-or-later
"""request-attribute-reporter: tells the gateway what an answer cost, as dynamic metadata with the end of the answer.

Parameters: attributes: one entry with
    key: namespace (envoy.lb) and name (required);
    expression (required): a CEL expression over ``usage`` that gives a number;
    condition: a CEL expression over ``usage``; nothing is reported unless it is true.
``usage`` has prompt_tokens, completion_tokens, total_tokens and prompt_tokens_details.cached_tokens, all doubles.
Formula: the whole part of the expression's value; 0 is not reported.
Source: llm-d-router plugin of the same type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from epp.model import InferenceRequest, Usage
from epp.scheduling.api import Context, Reporter


@dataclass(frozen=True)
class AttributeKey:
    """Where in the metadata."""

    name: str
    namespace: str = "envoy.lb"

    def __post_init__(self) -> None:
        """A name is needed."""
        if not self.name:
            raise ValueError("name is empty; name the attribute")


@dataclass(frozen=True)
class Attribute:
    """One figure."""

    key: AttributeKey
    expression: str
    condition: str = ""

    def __post_init__(self) -> None:
        """Expressions are read now, so that a mistake is seen at start."""
        if not self.expression:
            raise ValueError("expression is empty; write one over usage, like usage.total_tokens")
        for text in filter(None, (self.expression, self.condition)):
            _check(text)


@dataclass(frozen=True)
class RequestAttributeReporterParameters:
    """Parameters of request-attribute-reporter."""

    attributes: tuple[Attribute, ...]
    """One entry with key, expression and condition."""

    def __post_init__(self) -> None:
        """The reference takes one, too."""
        if len(self.attributes) != 1:
            raise ValueError("attributes must have exactly one entry; use one plugin for each")


class RequestAttributeReporter(Reporter):
    """Says what it cost."""

    TYPE = "request-attribute-reporter"
    PARAMETERS = RequestAttributeReporterParameters

    def __init__(self, name: str, parameters: RequestAttributeReporterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        (attribute,) = parameters.attributes
        self._key = attribute.key
        self._expression = _compile(attribute.expression)
        self._condition = _compile(attribute.condition) if attribute.condition else None

    def report(self, request: InferenceRequest, usage: Usage) -> Mapping[str, Mapping[str, float]]:
        """See the module."""
        if self._condition is not None and self._condition(usage) is not True:
            return {}
        value = self._expression(usage)
        if isinstance(value, bool):
            raise ValueError("the expression gives true or false, and not a number")
        whole = float(int(value))
        return {self._key.namespace: {self._key.name: whole}} if whole else {}


def _check(text: str) -> None:
    """Raises ValueError for what is not CEL, or names what does not exist. Other mistakes depend on the figures."""
    program = _compile(text)
    try:
        program(Usage(3, 2, 1))
    except Exception as error:
        if "undeclared reference" in str(error):
            raise ValueError(f"{text!r} names something else than usage and CEL's own functions") from None


def _compile(text: str) -> Callable[[Usage], float | bool]:
    """A program. Raises ValueError for what is not CEL.

    The library is large, and most configurations do without: it is imported here.
    """
    import celpy
    from celpy import celtypes
    from celpy.adapter import json_to_cel
    from celpy.celparser import CELParseError

    environment = celpy.Environment(annotations={"usage": celtypes.MapType})
    try:
        program = environment.program(environment.compile(text))
    except CELParseError as error:
        raise ValueError(f"{text!r} is not CEL: line {error.line}, column {error.column}") from None

    def run(usage: Usage) -> float | bool:
        value = program.evaluate({"usage": json_to_cel(_fields(usage))})
        if isinstance(value, bool | celtypes.BoolType):
            return bool(value)
        if isinstance(value, float | int):  # what CEL's numbers inherit from
            return float(value)
        raise ValueError(f"{text!r} gives {value!r}, which is neither a number nor true or false")

    return run


def _fields(usage: Usage) -> dict[str, Any]:
    """The names of the OpenAI API; doubles, as JSON's numbers are in CEL."""
    details = {"cached_tokens": float(usage.cached_tokens)}
    return {
        "prompt_tokens": float(usage.prompt_tokens),
        "completion_tokens": float(usage.completion_tokens),
        "total_tokens": float(usage.prompt_tokens + usage.completion_tokens),
        "prompt_tokens_details": details,
        "prompt_token_details": details,
    }
