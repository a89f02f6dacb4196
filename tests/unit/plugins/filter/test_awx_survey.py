# SPDX-License-Identifier: GPL-3.0-or-later
"""Surveys from contracts, held to the rules by which AWX takes or refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.inferops.cluster.plugins.filter.awx_survey import awx_survey

PLAYBOOKS = Path(__file__).resolve().parents[4] / "playbooks"
CONTRACTS = sorted(PLAYBOOKS.glob("*.meta.yml"))
TYPES = {"text", "textarea", "password", "multiplechoice", "multiselect", "integer", "float"}


def one(**option: Any) -> dict[str, Any]:
    """The question that an option becomes."""
    specs = {"argument_specs": {"p": {"short_description": "P", "options": {"x": {"description": "What.", **option}}}}}
    question: dict[str, Any] = awx_survey(specs, "p")["spec"][0]
    return question


def refused(survey: dict[str, Any]) -> list[str]:
    """What AWX would say against a survey, by its rules for survey specifications."""
    found = [name for name in ("name", "description") if not isinstance(survey[name], str)]
    seen: set[str] = set()
    for question in survey["spec"]:
        where = question["variable"]
        texts = ("type", "question_name", "variable")
        found += [f"{where}: {key}" for key in texts if not isinstance(question.get(key), str) or not question[key]]
        found += [f"{where}: required"] * (not isinstance(question.get("required"), bool))
        found += [f"{where}: type"] * (question["type"] not in TYPES) + [f"{where}: twice"] * (where in seen)
        seen.add(where)
        if question["type"] == "multiplechoice" and not (isinstance(question["choices"], list) and question["choices"]):
            found.append(f"{where}: choices")
    return found


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.name)
def test_every_playbook_has_a_survey_that_awx_takes(path: Path) -> None:
    name = path.name.removesuffix(".meta.yml")
    contract = yaml.safe_load(path.read_text())
    survey = awx_survey(contract, name)
    assert refused(survey) == []
    assert [question["variable"] for question in survey["spec"]] == list(contract["argument_specs"][name]["options"])
    required = {key for key, option in contract["argument_specs"][name]["options"].items() if option.get("required")}
    assert {question["variable"] for question in survey["spec"] if question["required"]} == required


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ({"type": "str", "default": "a"}, {"type": "text"}),
        ({"type": "path"}, {"type": "text"}),
        ({"type": "str", "choices": ["a", "b"]}, {"type": "multiplechoice", "choices": ["a", "b"]}),
        ({"type": "bool", "default": False}, {"type": "multiplechoice", "choices": ["true", "false"]}),
        ({"type": "int", "default": 8}, {"type": "integer"}),
        ({"type": "int", "choices": [1, 2]}, {"type": "multiplechoice", "choices": ["1", "2"]}),
        ({"type": "float"}, {"type": "float"}),
        ({"type": "list"}, {"type": "textarea"}),
        ({"type": "dict"}, {"type": "textarea"}),
        ({"type": "str", "no_log": True}, {"type": "password"}),
        ({"type": "str", "required": True}, {"required": True}),
    ],
)
def test_each_type_has_its_question(option: dict[str, Any], wanted: dict[str, Any]) -> None:
    question = one(**option)
    assert {key: question.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("default", "told"),
    [
        (8, "What. Default: 8."),
        (False, "What. Default: false."),
        ("a", "What. Default: a."),
        ([1, 2], "What. Default: [1, 2]."),
        ("", "What."),
        ([], "What."),
    ],
)
def test_a_default_is_told_and_not_passed_on(default: Any, told: str) -> None:
    """AWX passes defaults of surveys on, and they would overrule the inventory."""
    question = one(type="raw", default=default)
    assert question["question_description"] == told
    assert "default" not in question


def test_a_passwords_default_is_not_told() -> None:
    assert "secret" not in str(one(type="str", no_log=True, default="secret"))


def test_descriptions_lose_their_markup() -> None:
    text = "As O(epp_image), C(a.b); see P(inferops.cluster.epp#role). More."
    question = one(type="str", description=text)
    assert question["question_description"] == "As epp_image, a.b; see inferops.cluster.epp. More."
    assert question["question_name"] == "As epp_image, a.b"


def test_options_may_be_left_out() -> None:
    specs = {"argument_specs": {"p": {"short_description": "P", "options": {"x": {"description": "X."}}}}}
    assert awx_survey(specs, "p", skip=["x"])["spec"] == []


def test_an_entry_point_that_there_is_not_is_named() -> None:
    with pytest.raises(AnsibleFilterError, match="no entry point 'q'"):
        awx_survey({"argument_specs": {}}, "q")
