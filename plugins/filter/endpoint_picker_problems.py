# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what is wrong with the values of an EndpointPickerConfig, instead of failing on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.inferops.cluster.plugins.filter.endpoint_picker_config import endpoint_picker_config

DOCUMENTATION = r"""
name: endpoint_picker_problems
short_description: What P(inferops.cluster.endpoint_picker_config#filter) would refuse
version_added: 1.0.0
description:
  - Takes the same values as P(inferops.cluster.endpoint_picker_config#filter) and returns what is wrong with them, so
    that it can be told together with other problems.
options:
  _input:
    description: The values.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse wrong scorers before anything is changed
  ansible.builtin.assert:
    that: problems | length == 0
    fail_msg: "{{ problems | join('\n') }}"
  vars:
    problems: "{{ {'scorers': epp_scorers} | inferops.cluster.endpoint_picker_problems }}"
"""

RETURN = r"""
_value:
  description: One sentence for the first problem; an empty list if there is none.
  type: list
  elements: str
"""


def endpoint_picker_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with C(values)."""
    try:
        endpoint_picker_config(values)
    except AnsibleFilterError as error:
        return [str(error)]
    return []


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"endpoint_picker_problems": endpoint_picker_problems}
