# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns what apply_set would do into sentences about how the cluster differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DOCUMENTATION = r"""
name: drift
short_description: How the cluster differs from a set
version_added: 1.0.0
description:
  - Tells for each object that M(inferops.cluster.apply_set) would change what is wrong with it, and which other field
    manager, if any, holds which of its fields.
options:
  _input:
    description: The C(objects) that M(inferops.cluster.apply_set) returned in check mode.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Look for differences
  inferops.cluster.apply_set:
    name: hello
    src: [hello.yaml]
    force: true
  check_mode: true
  register: looked

- name: There should be none
  ansible.builtin.assert:
    that: looked.objects | inferops.cluster.drift | length == 0
    fail_msg: "{{ looked.objects | inferops.cluster.drift | join('\n') }}"
"""

RETURN = r"""
_value:
  description: One sentence for each object that differs; none if all is as wanted.
  type: list
  elements: str
  sample: ["Deployment llm/litellm differs: .spec.replicas is held by kubectl-edit"]
"""

VERBS = {
    "created": "is missing",
    "updated": "differs",
    "deleted": "is there, but no longer among the variables",
}


def drift(objects: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each object that would change."""
    return [_sentence(entry) for entry in objects if entry["changed"]]


def _sentence(entry: Mapping[str, Any]) -> str:
    place = f"{entry['namespace']}/" if entry.get("namespace") else ""
    text = f"{entry['kind']} {place}{entry['name']} {VERBS.get(entry['action'], entry['action'])}"
    holders = [f"{taken['field']} is held by {taken['manager']}" for taken in entry.get("taken_over") or []]
    if holders:
        return f"{text}: {', '.join(holders)}"
    return f"{text}: {entry['reason']}" if entry.get("reason") else text


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"drift": drift}
