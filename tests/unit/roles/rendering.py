# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles would apply, without a cluster: their variables and templates go through Ansible's own templating.

A task of a role sees its defaults, then what the user gave, then the role's vars; so does this program. What it does
not run are the tasks: that they hand over what is rendered here is for the tests against a real API server.

It is a program because Ansible's loader of collections must be there before anything else imports one. It reads a list
of ``{"role": …, "given": {…}}`` and writes one of ``{"problems": […], "objects": […]}``, in the same order. With
``"template": …``, that text stands in for the role's ``problems.j2``, and nothing else is rendered.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
Json = dict[str, Any]

# What the tasks of a role find out before they render.
FOUND_OUT: Mapping[str, Json] = {"litellm": {"__litellm_key": "sk-test"}}


def render(wanted: Sequence[Json]) -> list[Json]:
    """The answers of the program. Raises RuntimeError with what it wrote to its error output."""
    keys = [json.dumps(each) for each in wanted]
    once = list(dict.fromkeys(keys))
    text = f"[{','.join(once)}]"
    done = subprocess.run([sys.executable, __file__], input=text, capture_output=True, text=True, timeout=110)
    if done.returncode:
        raise RuntimeError(done.stderr)
    answers: dict[str, Json] = dict(zip(once, json.loads(done.stdout), strict=True))
    return [answers[key] for key in keys]


@functools.cache
def options(role: str) -> Json:
    """The options of a role's main entry point."""
    specs: Json = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    found: Json = specs["argument_specs"]["main"]["options"]
    return found


def role_of(variable: str) -> str:
    """The role that a variable belongs to, by its prefix."""
    roles = sorted((path.name for path in (ROOT / "roles").iterdir()), key=len, reverse=True)
    return next(role for role in roles if variable.startswith(f"{role}_"))


def find(items: Sequence[Json], kind: str, name: str) -> Json | None:
    """The one object of this kind and name; None if there is none."""
    found = [item for item in items if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    if len(found) > 1:
        raise AssertionError(f"{kind} {name} is there {len(found)} times")
    return found[0] if found else None


class Renderer:
    """Ansible's templating, set up to find the collection where the checkout links to itself."""

    def __init__(self) -> None:
        from ansible.parsing.dataloader import DataLoader
        from ansible.plugins.loader import init_plugin_loader

        collections = ROOT / ".cache" / "collections"
        if not (collections / "ansible_collections" / "inferops" / "cluster").exists():
            raise SystemExit(f"{collections} does not lead to the collection: run `make env`")
        init_plugin_loader([str(collections)])
        self._loader = DataLoader()
        self._files: dict[Path, Json] = {}

    def answer(self, role: str, given: Json, template: str = "") -> Json:
        """What the role says against the variables, and what it would apply."""
        if template:
            return {"problems": list(json.loads(self._template(role, given, template))), "objects": []}
        problems = self._problems(role, given)
        template = "{{ __" + role + "_objects }}"
        return {"problems": problems, "objects": [] if problems else self._template(role, given, template)}

    def _problems(self, role: str, given: Json) -> list[str]:
        from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

        found = list(ArgumentSpecValidator(options(role)).validate(given).error_messages)
        template = "{{ lookup('ansible.builtin.template', 'problems.j2') | from_json }}"
        return found or list(self._template(role, given, template))

    def _template(self, role: str, given: Json, template: str) -> Any:
        from ansible.template import Templar, trust_as_template

        folder = ROOT / "roles" / role
        variables = {
            "role_path": str(folder),
            "ansible_search_path": [str(folder)],
            **self._variables(folder / "defaults" / "main.yml"),
            **given,
            **self._variables(folder / "vars" / "main.yml"),
            **FOUND_OUT.get(role, {}),
        }
        return Templar(self._loader, variables=variables).template(trust_as_template(template))

    def _variables(self, path: Path) -> Json:
        """A file of variables, whose values are templates."""
        if path not in self._files:
            self._files[path] = self._loader.load_from_file(str(path), trusted_as_template=True) or {}
        return self._files[path]


def main() -> None:
    renderer = Renderer()
    answers = [renderer.answer(**each) for each in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
