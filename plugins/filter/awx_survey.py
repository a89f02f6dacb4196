# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the survey of an AWX job template from the contract of its playbook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: awx_survey
short_description: Turn an argument specification into an AWX survey
version_added: 0.1.0
description:
  - Gives each option of an argument specification a question, of the type that AWX has for it.
  - Booleans become a choice of C(true) and C(false), as AWX has no booleans; lists and dictionaries a text area for
    YAML; options with C(no_log) a password.
  - Questions have no defaults; AWX would pass them on and overrule the inventory. What a question that is left open
    comes to, its description says.
positional: entry_point
options:
  _input:
    description: The content of C(PLAYBOOK.meta.yml), with C(argument_specs) at the top.
    type: dict
    required: true
  entry_point:
    description: The entry point of the specification; for a playbook, its name.
    type: str
    required: true
  skip:
    description: Options that get no question, because AWX has another place for them.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Questions of the playbook model_deploy, but for the cluster, which a credential names
  ansible.builtin.debug:
    msg: "{{ contract | inferops.cluster.awx_survey('model_deploy', skip=skip) }}"
  vars:
    skip: [inferops_kubeconfig, inferops_context]
    contract: "{{ lookup('ansible.builtin.file', 'model_deploy.meta.yml') | from_yaml }}"
"""

RETURN = r"""
_value:
  description: The survey, with C(name), C(description) and C(spec), as AWX's C(survey_spec) takes it.
  type: dict
"""

Json = dict[str, Any]

TYPES = {"int": "integer", "float": "float", "list": "textarea", "dict": "textarea", "raw": "textarea"}
MARKUP = re.compile(r"\b[A-Z]\(([^)#,]+)[^)]*\)")


def awx_survey(specs: Mapping[str, Any], entry_point: str, skip: Iterable[str] = ()) -> Json:
    """Return the survey of C(entry_point); raises AnsibleFilterError when C(specs) does not have it."""
    try:
        entry = specs["argument_specs"][entry_point]
        options = entry["options"]
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(f"awx_survey: the specification has no entry point {entry_point!r}") from error
    left_out = set(skip)
    return {
        "name": entry["short_description"],
        "description": _plain(entry.get("description") or specs.get("description") or entry["short_description"]),
        "spec": [_question(name, option) for name, option in options.items() if name not in left_out],
    }


def _question(name: str, option: Mapping[str, Any]) -> Json:
    text = _plain(option["description"])
    default = option.get("default")
    told = "" if default in (None, "", [], {}) or option.get("no_log") else f" Default: {_typed_in(default)}."
    return {
        "variable": name,
        "question_name": text.split(". ")[0].split("; ")[0].rstrip("."),
        "question_description": text + told,
        "required": bool(option.get("required", False)),
        **_form(option),
    }


def _form(option: Mapping[str, Any]) -> Json:
    """The type of the question, and its choices."""
    kind = option.get("type", "str")
    if kind == "bool":
        return {"type": "multiplechoice", "choices": ["true", "false"]}
    if option.get("choices"):
        return {"type": "multiplechoice", "choices": [str(choice) for choice in option["choices"]]}
    return {"type": "password" if option.get("no_log") else TYPES.get(kind, "text")}


def _typed_in(value: Any) -> str:
    """A value as it would be typed in: text as it is, all else as YAML of one line, which JSON is, too."""
    return str(value) if isinstance(value, str) else json.dumps(value)


def _plain(text: Any) -> str:
    """A description without its markup."""
    joined = " ".join(text) if isinstance(text, list) else str(text)
    return MARKUP.sub(r"\1", " ".join(joined.split()))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"awx_survey": awx_survey}
