# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML with line numbers, and its strict decoding into dataclasses.

Strict as the reference's decoder is: a field that the type does not have, a value of another type or a key that is
written twice is an error. Names are camelCase in YAML and snake_case in Python.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

import yaml

from epp.config.errors import ConfigError, did_you_mean

_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_DEPTH = 64
_MAX_NODES = 100_000


@dataclass(slots=True)
class Located:
    """A value and the line (1-based) where it stands. Maps and lists hold Located values."""

    value: Any
    line: int


def parse(text: str, source: str) -> Located:
    """One YAML (or JSON) document. Raises ConfigError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return Located(None, 1) if node is None else _Converter(loader, source).convert(node, "", 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        problem = " ".join(part for part in (error.problem, error.context) if part)
        raise ConfigError(source, line, "", f"is not YAML: {problem}; check indentation and quotes") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(source, 0, "", f"is not YAML: {error}; check indentation and quotes") from error
    finally:
        loader.dispose()


class _Converter:
    """Turns YAML nodes into located values, within bounds that keep aliases of aliases from exploding."""

    def __init__(self, loader: Any, source: str) -> None:
        self._loader = loader
        self._source = source
        self._nodes = 0

    def convert(self, node: yaml.Node, path: str, depth: int) -> Located:
        """The value of a node that stands at ``path``."""
        line = node.start_mark.line + 1
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise ConfigError(self._source, line, path, "is nested too deep or too large; write it plainly")
        if isinstance(node, yaml.SequenceNode):
            return Located([self.convert(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)], line)
        if isinstance(node, yaml.MappingNode):
            return Located(self._map(node, path, depth), line)
        if node.tag == "tag:yaml.org,2002:timestamp":
            return Located(node.value, line)
        return Located(self._loader.construct_object(node), line)

    def _map(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Located]:
        result: dict[str, Located] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(self._source, line, path, "has a key that is not a plain word; use field names only")
            where = f"{path}.{key}" if path else key
            if key in result:
                raise ConfigError(self._source, line, where, "is written twice; remove one")
            result[key] = self.convert(value_node, where, depth + 1)
            result[key].line = line
        return result


def camel(name: str) -> str:
    """``max_num_of_endpoints`` as ``maxNumOfEndpoints``."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


_known_hints: dict[type[Any], dict[str, Any]] = {}


def _hints(cls: type[Any]) -> dict[str, Any]:
    """The field types of a dataclass, resolved once."""
    if cls not in _known_hints:
        _known_hints[cls] = typing.get_type_hints(cls)
    return _known_hints[cls]


class Decoder:
    """Turns located values into typed ones; ``check_plugin(name, line, path, kind)`` is asked about plugins' names."""

    def __init__(self, source: str, check_plugin: Callable[[str, int, str, type[Any]], None] | None = None) -> None:
        self._source = source
        self._check_plugin = check_plugin

    def error(self, located: Located, path: str, message: str) -> ConfigError:
        """The error for a value at its place."""
        return ConfigError(self._source, located.line, path, message)

    def decode(self, cls: type[Any], located: Located, path: str) -> Any:
        """An instance of dataclass ``cls``. A missing or null field takes its default."""
        values = {} if located.value is None else located.value
        if not isinstance(values, dict):
            raise self.error(located, path, f"must be a map, not {_kind(values)}; write its fields below it")
        known = {field.metadata.get("key") or camel(field.name): field for field in fields(cls)}
        arguments: dict[str, Any] = {}
        for key, item in values.items():
            where = f"{path}.{key}" if path else key
            if key not in known:
                raise self.error(item, where, f"unknown field; {did_you_mean(key, known)}")
            if item.value is not None:
                field = known[key]
                arguments[field.name] = self._value(_hints(cls)[field.name], field, item, where)
        for key, field in known.items():
            if field.default is MISSING and field.default_factory is MISSING and field.name not in arguments:
                raise self.error(located, f"{path}.{key}" if path else key, "is missing; add it")
        try:
            return cls(**arguments)
        except ValueError as error:
            raise self.error(located, path, str(error)) from error

    def _value(self, hint: Any, field: Field[Any] | None, item: Located, path: str) -> Any:
        origin = typing.get_origin(hint)
        if origin in (typing.Union, types.UnionType):
            choices = [arm for arm in typing.get_args(hint) if arm is not type(None)]
            return self._value(choices[0], field, item, path)
        if hint is Located:
            return item
        if is_dataclass(hint) and isinstance(hint, type):
            return self.decode(hint, item, path)
        if origin in (list, tuple):
            return self._items(hint, field, item, path)
        if origin is dict:
            if not isinstance(item.value, dict):
                raise self.error(item, path, f"must be a map, not {_kind(item.value)}")
            inner = typing.get_args(hint)[1]
            if inner is Any:
                return plain(item)
            return {key: self._value(inner, None, value, f"{path}.{key}") for key, value in item.value.items()}
        value = self._scalar(hint, field, item, path)
        self._check(field, value, item, path)
        return value

    def _items(self, hint: Any, field: Field[Any] | None, item: Located, path: str) -> Any:
        if not isinstance(item.value, list):
            raise self.error(item, path, f"must be a list, not {_kind(item.value)}; begin each entry with '- '")
        inner = typing.get_args(hint)[0]
        values = [self._value(inner, field, value, f"{path}[{i}]") for i, value in enumerate(item.value)]
        return tuple(values) if typing.get_origin(hint) is tuple else values

    def _scalar(self, hint: Any, field: Field[Any] | None, item: Located, path: str) -> Any:
        value = item.value
        if field is not None and field.metadata.get("duration"):
            return self._duration(item, path)
        if hint is bool and isinstance(value, bool):
            return value
        if hint is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if hint is str and isinstance(value, str):
            return value
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[hint]
        advice = "; put it in quotes" if hint is str and not isinstance(value, dict | list) else ""
        raise self.error(item, path, f"must be {wanted}, not {_kind(value)}{advice}")

    def _duration(self, item: Located, path: str) -> float:
        try:
            if isinstance(item.value, str):
                return duration(item.value)
        except ValueError:
            pass
        raise self.error(item, path, f"must be a duration like 200ms, 5s or 1m30s, not {item.value!r}")

    def _check(self, field: Field[Any] | None, value: Any, item: Located, path: str) -> None:
        rules = field.metadata if field is not None else {}
        if rules.get("minimum") is not None and value < rules["minimum"]:
            raise self.error(item, path, f"must be {rules['minimum']} or more, not {value}")
        if rules.get("above") is not None and value <= rules["above"]:
            raise self.error(item, path, f"must be more than {rules['above']}, not {value}")
        if rules.get("maximum") is not None and value > rules["maximum"]:
            raise self.error(item, path, f"must be {rules['maximum']} or less, not {value}")
        if rules.get("choices") and value not in rules["choices"]:
            raise self.error(item, path, f"{value!r} is not possible; {did_you_mean(value, rules['choices'])}")
        if rules.get("plugin") and value and self._check_plugin is not None:
            self._check_plugin(value, item.line, path, rules["plugin"])


def plain(item: Located) -> Any:
    """A value without its lines, maps and lists included."""
    if isinstance(item.value, dict):
        return {key: plain(value) for key, value in item.value.items()}
    if isinstance(item.value, list):
        return [plain(value) for value in item.value]
    return item.value


def duration(text: str) -> float:
    """Seconds from Go's notation (``1h2m3.5s``, ``200ms``, ``0``). Raises ValueError."""
    if text == "0":
        return 0.0
    position, seconds = 0, 0.0
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a duration")
        seconds += float(match[1]) * _DURATION_UNIT[match[2]]
        position = match.end()
    if not text:
        raise ValueError("a duration is empty")
    return seconds


def duration_text(seconds: float) -> str:
    """Seconds in Go's notation, in the largest unit that writes them as a short number."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        count = seconds / size
        if abs(count - round(count, 3)) < 1e-9 and (count >= 1 or count == 0):
            return f"{round(count, 3):g}{unit}"
    return f"{seconds * 1e9:.0f}ns"


def _kind(value: Any) -> str:
    """What a YAML value is, in words, with the value itself where it is short."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    names = {bool: "true/false", int: "the number", float: "the number", str: "the string"}
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{names.get(type(value), type(value).__name__)} {text[:60]}"
