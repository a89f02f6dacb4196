# SPDX-License-Identifier: GPL-3.0-or-later
"""What every role and every playbook has to have, so that people and AWX can rely on it."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from reference.variables import markdown, readme, roles, written

ROOT = Path(__file__).resolve().parents[3]
ENTRY_POINTS = ("main", "preflight", "verify", "remove")
PLAYBOOKS = sorted(path for path in (ROOT / "playbooks").glob("*.yml") if not path.name.endswith(".meta.yml"))

Json = dict[str, Any]


def specification(path: Path) -> Json:
    """The argument specifications of a role or playbook, by entry point."""
    found: Json = yaml.safe_load(path.read_text())["argument_specs"]
    return found


def every_option(options: Json, where: str) -> Iterator[tuple[str, Json]]:
    """All options with their place, those of dictionaries and of lists' items included."""
    for name, option in options.items():
        yield f"{where}.{name}", option
        yield from every_option(option.get("options", {}), f"{where}.{name}")


@pytest.mark.parametrize("role", roles())
def test_a_roles_readme_has_its_variables(role: str) -> None:
    assert readme(role).read_text() == written(role), "write it anew: make docs"


def test_markup_of_descriptions_becomes_markdown() -> None:
    text = "As O(epp_image), C(a.b) or V(true); see P(inferops.cluster.epp#role) and L(this,https://example.com/a)."
    assert (
        markdown(text)
        == "As `epp_image`, `a.b` or `true`; see `inferops.cluster.epp` and [this](https://example.com/a)."
    )


@pytest.mark.parametrize("role", roles())
def test_a_role_has_its_task_files(role: str) -> None:
    tasks = ROOT / "roles" / role / "tasks"
    for name in (*ENTRY_POINTS, "apply"):
        assert (tasks / f"{name}.yml").is_file(), f"tasks/{name}.yml is missing"
    named = {task["ansible.builtin.import_tasks"] for task in yaml.safe_load((tasks / "main.yml").read_text())}
    assert {"preflight.yml", "apply.yml"} <= named


@pytest.mark.parametrize("role", roles())
def test_a_roles_entry_points_are_specified(role: str) -> None:
    entries = specification(ROOT / "roles" / role / "meta" / "argument_specs.yml")
    assert set(entries) == set(ENTRY_POINTS)
    for entry in entries.values():
        assert entry["short_description"]
        assert entry["description"]
        assert entry["author"]


@pytest.mark.parametrize(
    "path", [*(ROOT / "roles").glob("*/meta/argument_specs.yml"), *(ROOT / "playbooks").glob("*.meta.yml")],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_every_variable_has_a_type_and_a_description_with_units(path: Path) -> None:
    for entry, content in specification(path).items():
        for where, option in every_option(content.get("options", {}), entry):
            assert option.get("description"), f"{where} has no description"
            assert option.get("type"), f"{where} has no type"
            assert option["type"] != "list" or option.get("elements"), f"{where} does not say what it is a list of"
            text = " ".join(option["description"]) if isinstance(option["description"], list) else option["description"]
            if where.endswith(("timeout", "interval", "seconds")) and option["type"] in ("int", "float"):
                assert "econds" in text or "as o(" in text.lower(), f"{where}: the description has no unit"


def test_there_are_playbooks() -> None:
    assert {"site", "verify", "teardown"} <= {path.stem for path in PLAYBOOKS}


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_a_playbook_checks_its_contract_first(path: Path) -> None:
    plays = yaml.safe_load(path.read_text())
    assert plays[0].get("validate_argspec") in (True, path.stem), "its first play needs `validate_argspec`"
    contract = path.with_suffix(".meta.yml")
    assert contract.is_file(), f"playbooks/{contract.name} is missing"
    entry = specification(contract)[path.stem]
    assert entry["short_description"]
    assert entry["examples"]


def test_no_contract_without_its_playbook() -> None:
    contracts = {path.name.removesuffix(".meta.yml") for path in (ROOT / "playbooks").glob("*.meta.yml")}
    assert contracts == {path.stem for path in PLAYBOOKS}


def test_the_artifact_has_what_an_installed_collection_needs_and_no_more(tmp_path: Path) -> None:
    subprocess.run(
        ["ansible-galaxy", "collection", "build", "--output-path", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (artifact,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(artifact) as archive:
        names = set(archive.getnames())
    top = {name.partition("/")[0] for name in names}
    assert {"meta", "plugins", "roles", "playbooks", "MANIFEST.json", "LICENSE", "README.md"} <= top
    assert not top & {"files", "molecule", "requirements", ".venv", ".cache", ".lab", "Makefile"}
    tests = {name for name in names if name.startswith("tests/")}
    assert {name for name in tests if not name.startswith("tests/unit")} == {"tests/config.yml"}
    assert {"/".join(name.split("/")[:3]) for name in tests} <= {"tests/config.yml", "tests/unit", "tests/unit/plugins"}
