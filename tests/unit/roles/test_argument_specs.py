# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables stand in defaults, argument specifications and playbooks' contracts. The three must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
PLAYBOOKS = sorted(path.name.removesuffix(".meta.yml") for path in (ROOT / "playbooks").glob("*.meta.yml"))


def options(role: str, entry_point: str = "main") -> dict[str, Any]:
    """The options of a role's entry point."""
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    found: dict[str, Any] = specs["argument_specs"][entry_point]["options"]
    return found


def contract(playbook: str) -> dict[str, Any]:
    """The options of a playbook."""
    specs = yaml.safe_load((ROOT / "playbooks" / f"{playbook}.meta.yml").read_text())
    found: dict[str, Any] = specs["argument_specs"][playbook]["options"]
    return found


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_what_the_specification_says(role: str) -> None:
    defaults = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    assert {name: option["default"] for name, option in options(role).items()} == defaults


@pytest.mark.parametrize("role", ROLES)
def test_variables_have_the_roles_prefix_and_a_description(role: str) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role}_")
        assert option["description"], name


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("entry_point", ["preflight", "verify", "remove"])
def test_every_entry_point_takes_the_same_variables(role: str, entry_point: str) -> None:
    assert options(role, entry_point) == options(role)
    assert (ROOT / "roles" / role / "tasks" / f"{entry_point}.yml").is_file()


def test_the_playbook_takes_every_key_of_a_model() -> None:
    keys = set(options("kserve_runtimes")["kserve_runtimes_models"]["options"])
    assert set(contract("site")["inferops_models"]["options"]) == keys | {"pool", "epp", "litellm", "canary"}


@pytest.mark.parametrize("inventory", ["lab", "kind", "example"])
def test_inventories_set_only_variables_that_there_are(inventory: str) -> None:
    known = {name for role in ROLES for name in options(role)} | {
        name for playbook in PLAYBOOKS for name in contract(playbook)
    }
    variables = yaml.safe_load((ROOT / "inventories" / inventory / "group_vars" / "all" / "main.yml").read_text())
    assert set(variables) - known <= {f"{inventory}_facts"}
    assert set(variables) & known


def test_every_playbook_has_a_contract_that_it_checks() -> None:
    plays = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "playbooks").glob("*.yml")}
    named = {name: play[0]["validate_argspec"] for name, play in plays.items() if not name.endswith(".meta")}
    assert named == {name: name for name in PLAYBOOKS}


def test_playbooks_know_each_others_variables() -> None:
    """An inventory is for all of them, and a name is mistyped only if none knows it."""
    template = (ROOT / "playbooks" / "templates" / "variable_problems.j2").read_text()
    assert [name for name in PLAYBOOKS if f"'{name}'" not in template] == []


def test_playbooks_mean_the_same_by_the_same_name() -> None:
    kinds: dict[str, set[str]] = {}
    for playbook in PLAYBOOKS:
        for name, option in contract(playbook).items():
            kinds.setdefault(name, set()).add(f"{option['type']} {option.get('elements')} {option.get('default')}")
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
