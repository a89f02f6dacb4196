# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guides name exists: files, headings, playbooks, roles, modules, variables, goals of the Makefile."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from unit.roles import rendering

MODULES = "ansible_collections.inferops.cluster.plugins.modules"
ROOT = Path(__file__).resolve().parents[3]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("roles/*/README.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in GUIDES]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FQCN = re.compile(r"\binferops\.cluster\.([a-z_]+)\b")
# Names that others have given, and that begin like variables of ours.
OTHERS = {"litellm_params"}
VARIABLE = re.compile(r"(?<![\w.-])([a-z]+(?:_[a-z0-9]+)+)(?![\w.-]*[(/])")


def guide(name: str) -> str:
    return (ROOT / name).read_text()


def roles() -> list[str]:
    return [path.name for path in (ROOT / "roles").iterdir()]


def options(path: Path) -> dict[str, Any]:
    """The options of all entry points of a specification."""
    specs = yaml.safe_load(path.read_text())["argument_specs"]
    return {name: option for entry in specs.values() for name, option in entry["options"].items()}


def variables() -> set[str]:
    """All variables of roles and playbooks."""
    paths = [*ROOT.glob("roles/*/meta/argument_specs.yml"), *ROOT.glob("playbooks/*.meta.yml")]
    return {name for path in paths for name in options(path)}


def keys() -> set[str]:
    """All keys of the items of variables that are lists, or of dictionaries."""
    paths = ROOT.glob("roles/*/meta/argument_specs.yml")
    return {key for path in paths for option in options(path).values() for key in option.get("options", {})}


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(text: str, *languages: str) -> list[str]:
    return [
        re.sub(rf"^{indent}", "", body, flags=re.M) for indent, kind, body in FENCE.findall(text) if kind in languages
    ]


def commands(text: str) -> list[list[str]]:
    """The words of each command line in the blocks for a shell; continued lines are one."""
    lines = "\n".join(blocks(text, "sh", "")).replace("\\\n", " ").splitlines()
    known = ("ansible-playbook ", "ansible-doc ", "make ", "python -m ")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(known)]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(FENCE.sub("", guide(name))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(found), f"{name}: {link}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_named_of_the_collection_is_in_it(name: str) -> None:
    there = {path.stem for folder in ("plugins/*", "playbooks") for path in ROOT.glob(f"{folder}/*.*")} | set(roles())
    assert {found for found in FQCN.findall(guide(name)) if found not in there} == set()


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_those_of_roles_and_playbooks(name: str) -> None:
    """Whatever begins like a variable of a role or a playbook, in code, is one."""
    prefixes = tuple(f"{role}_" for role in [*roles(), "inferops"])
    code = " ".join([*CODE.findall(FENCE.sub("", guide(name))), *(body for _, _, body in FENCE.findall(guide(name)))])
    # Names of files, and a few of roles, begin like variables.
    words = {word for word in VARIABLE.findall(code) if word.startswith(prefixes)} - set(roles())
    assert words - variables() - keys() - OTHERS == set()


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_ones_that_there_are(name: str) -> None:
    goals = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(guide(name)):
        if words[0] == "make":
            assert words[1] in goals, words
        elif words[0] == "ansible-playbook":
            check_play(words)
        elif words[0] == "python":
            path = ROOT / "tests" / Path(*words[2].split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), words


def check_play(words: list[str]) -> None:
    """The playbook exists, and takes the variables that it must have and those that it is given."""
    playbooks = [word.removeprefix("inferops.cluster.") for word in words if word.startswith("inferops.cluster.")]
    assert len(playbooks) == 1, words
    contract = options(ROOT / "playbooks" / f"{playbooks[0]}.meta.yml")
    given: set[str] = set()
    for option, value in itertools.pairwise(words):
        if option == "-e":
            given |= set(yaml.safe_load(value)) if value.startswith("{") else {value.partition("=")[0]}
    own = {name for name in given if name.startswith("inferops_")}
    assert own <= set(contract), words
    assert given - own <= variables(), words
    assert {key for key, option in contract.items() if option.get("required")} <= given, words


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_good_yaml(name: str) -> None:
    for body in blocks(guide(name), "yaml"):
        assert yaml.safe_load(body)


def examples(module: str) -> list[tuple[str, dict[str, Any]]]:
    """The tasks of a module's examples that call modules of ours: module and options."""
    text = importlib.import_module(f"{MODULES}.{module}").EXAMPLES
    calls = [(name, given) for task in yaml.safe_load(text) for name, given in task.items()]
    return [(name.rpartition(".")[2], given or {}) for name, given in calls if name.startswith("inferops.cluster.")]


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("[a-z]*.py")))
def test_examples_of_a_module_are_what_it_takes(module: str) -> None:
    assert module in {name for name, _ in examples(module)}
    for name, given in examples(module):
        program = importlib.import_module(f"{MODULES}.{name}")
        checked = ArgumentSpecValidator(program.argument_spec(), **getattr(program, "RULES", {})).validate(given)
        assert checked.error_messages == []


def told(text: str) -> list[dict[str, Any]]:
    """What the examples of a guide give to roles, as ``rendering`` takes it: in plays, and as variables alone."""
    found = []
    for body in blocks(text, "yaml"):
        example = yaml.safe_load(body)
        for play in example if isinstance(example, list) else []:
            for entry in play.get("roles", []):
                given = {name: value for name, value in entry.items() if name != "role"}
                found.append({"role": entry["role"].rpartition(".")[2], "given": {**play.get("vars", {}), **given}})
        for role in roles() if isinstance(example, dict) else []:
            given = {name: value for name, value in example.items() if name.startswith(f"{role}_")}
            if given:
                found.append({"role": role, "given": given})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_roles_have_nothing_against_the_examples(name: str) -> None:
    found = told(guide(name))
    for each in found:
        assert set(each["given"]) <= set(rendering.options(each["role"])), each
        checked = ArgumentSpecValidator(rendering.options(each["role"])).validate(each["given"])
        assert checked.error_messages == [], each
    # The others ask the cluster before they judge.
    wanted = [each for each in found if each["role"] not in ("gateway_api_crds", "gpu_nodes")]
    for each, answer in zip(wanted, rendering.render(wanted), strict=True):
        assert answer["problems"] == [], each
