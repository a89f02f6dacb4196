# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names mistyped role variables, which Ansible's argument specifications let pass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: unknown_variables
short_description: Say which variables a role or a playbook does not know
version_added: 1.0.0
description:
  - Argument specifications check the variables that they list, and ignore all others. A mistyped variable is therefore
    silently without effect.
  - This filter compares names that are in use with those that any entry point of the specification lists.
positional: specs
options:
  _input:
    description: Names of variables in use that start with the prefix, as P(ansible.builtin.varnames#lookup) gives them.
    type: list
    elements: str
    required: true
  specs:
    description: The content of C(argument_specs.yml) or C(PLAYBOOK.meta.yml), with C(argument_specs) at the top.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Variables of the role that do nothing
  ansible.builtin.debug:
    msg: "{{ query('ansible.builtin.varnames', '^epp_') | inferops.cluster.unknown_variables(specs) }}"
  vars:
    specs: "{{ lookup('ansible.builtin.file', role_path ~ '/meta/argument_specs.yml') | from_yaml }}"
"""

RETURN = r"""
_value:
  description: One sentence for each unknown variable, by their names, with the nearest known name where there is one.
  type: list
  elements: str
"""


def unknown_variables(names: Iterable[str], specs: dict[str, Any]) -> list[str]:
    """Return one sentence for each of C(names) that no entry point in C(specs) lists."""
    try:
        known = {str(name) for entry in specs["argument_specs"].values() for name in entry.get("options", {})}
    except (AttributeError, KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"unknown_variables needs the content of an argument_specs.yml, not {specs!r}"
        ) from error
    return [_sentence(name, known) for name in sorted({str(name) for name in names} - known)]


def _sentence(name: str, known: set[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    advice = f"did you mean {nearest[0]}?" if nearest else "remove it, or see the README for the variables there are"
    return f"unknown variable {name}: {advice}"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"unknown_variables": unknown_variables}
