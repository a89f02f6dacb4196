# SPDX-License-Identifier: GPL-3.0-or-later
"""Every value of the Helm charts has a variable, and every such variable does what the value did."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from reference.values import SOURCE, TARGET, Catalogue, page

from ansible_collections.inferops.cluster.plugins.module_utils import jsonpath

HERE = Path(__file__).parent
Json = dict[str, Any]


def _sibling(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


rendering, value_cases = _sibling("rendering"), _sibling("value_cases")
CATALOGUE = Catalogue.load(SOURCE)
CASES = value_cases.CASES
ROWS = [(chart, value) for chart, values in CATALOGUE.charts.items() for value in values]


def required(variable: str) -> bool:
    """Whether the items of a list must have this key."""
    name, _, key = variable.partition("[].")
    option = rendering.options(rendering.role_of(variable))[name]
    return bool(key and option["options"][key].get("required"))


@pytest.mark.parametrize(("chart", "value"), ROWS)
def test_every_value_of_a_chart_has_a_variable(chart: str, value: str) -> None:
    assert CATALOGUE.variable(chart, value)


def test_no_row_is_about_a_value_that_no_chart_has() -> None:
    assert [row for row in CATALOGUE.rows() if row not in ROWS] == []


@pytest.mark.parametrize("variable", CATALOGUE.variables())
def test_every_variable_is_one_of_its_role(variable: str) -> None:
    role = rendering.role_of(variable)
    options = rendering.options(role)
    for key in variable.split("[]."):
        assert key in options, f"{role} has no {variable}"
        assert options[key]["description"]
        options = options[key].get("options", {})


@pytest.mark.parametrize("variable", CATALOGUE.variables())
def test_every_variable_has_a_test(variable: str) -> None:
    assert [case for case in CASES if case.variable == variable]


@pytest.fixture(scope="module")
def rendered() -> list[Json]:
    """What each case comes to."""
    wanted = [{"role": rendering.role_of(case.variable), "given": case.given} for case in CASES]
    answers: list[Json] = rendering.render(wanted)
    return answers


@pytest.fixture(scope="module")
def rendered_without() -> list[Json]:
    """What each case comes to without its variable."""
    wanted = [{"role": rendering.role_of(case.variable), "given": without(case) or {}} for case in CASES]
    answers: list[Json] = rendering.render(wanted)
    return answers


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.variable for case in CASES])
def test_the_variable_comes_to_this(rendered: list[Json], number: int) -> None:
    assert rendered[number]["problems"] == []
    assert [each for check in CASES[number].checks for each in unlike(check, rendered[number]["objects"])] == []


@pytest.mark.parametrize(
    "number",
    [number for number, case in enumerate(CASES) if not required(case.variable)],
    ids=[case.variable for case in CASES if not required(case.variable)],
)
def test_without_the_variable_it_is_otherwise(rendered_without: list[Json], number: int) -> None:
    assert rendered_without[number]["problems"] == []
    assert [each for check in CASES[number].checks for each in unlike(check, rendered_without[number]["objects"])]


def test_the_page_is_what_the_catalogue_says() -> None:
    assert TARGET.read_text() == page(CATALOGUE), "write it anew: python -m reference.values"


def without(case: Any) -> Json | None:
    """The variables of a case without the one in question; None where the role demands it."""
    if required(case.variable):
        return None
    name, _, key = case.variable.partition("[].")
    rest: Json = copy.deepcopy(case.given)
    if not key:
        del rest[name]
    for item in rest[name] if key else []:
        del item[key]
    return rest


def unlike(check: Any, found: list[Json]) -> list[str]:
    """What speaks against a check."""
    item = rendering.find(found, check.kind, check.name)
    where = f"{check.kind} {check.name}"
    if (item is not None) != check.present:
        return [f"{where} is {'not ' if item is None else ''}there"]
    if item is None or not check.path:
        return []
    values = jsonpath.find(jsonpath.parse(check.path), view(item))
    return [] if values == check.found else [f"{where}: {check.path} leads to {values}, not {check.found}"]


def view(item: Json) -> Json:
    """An object with the flags of its containers, and with the documents in a ConfigMap, as fields."""
    seen = copy.deepcopy(item)
    if item["kind"] == "ConfigMap":
        seen["texts"] = {name: yaml.safe_load(text) for name, text in item["data"].items()}
    pod = seen.get("spec", {}).get("template", {}).get("spec", {})
    for container in pod.get("containers", []):
        container["flags"] = flags(container.get("args", []))
    return seen


def flags(args: list[str]) -> dict[str, str]:
    """``--a=b`` and ``--a b`` as a: b."""
    found: dict[str, str] = {}
    for number, arg in enumerate(args):
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            follower = args[number + 1] if number + 1 < len(args) else ""
            found[name] = value if equals or follower.startswith("--") else follower
    return found
