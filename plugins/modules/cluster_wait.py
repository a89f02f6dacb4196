#!/usr/bin/python

# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cluster_wait
short_description: Wait for conditions on many Kubernetes objects at once
version_added: 1.0.0
author:
  - inferops.cluster maintainers (@inferops)
description:
  - Watches any number of objects at the same time under one deadline, shows what it waits for, and tells why when some
    do not become what they should - with what their pods wait for and their last events.
  - Changes nothing.
options:
  objects:
    description:
      - What to wait for; an object by its name, or all objects that a label selector finds.
    type: list
    elements: dict
    required: true
    suboptions:
      api_version:
        description: Its apiVersion.
        type: str
        default: v1
      kind:
        description:
          - Its kind. A kind of a custom resource that the server does not know yet is waited for, too.
        type: str
        required: true
      namespace:
        description:
          - Its namespace. Required for an object by name if its kind has namespaces; without it, a label selector looks
            in all of them.
        type: str
      name:
        description: Its name. Without it, all objects that O(objects[].label_selector) finds.
        type: str
      label_selector:
        description: Label selector, for example C(app=web,tier!=test). Without it and a name, all objects of the kind.
        type: str
      minimum:
        description: How many objects a label selector must find. All that it finds must be as wanted.
        type: int
        default: 1
      state:
        description:
          - V(present) waits until the object is there and ready, or as O(objects[].conditions) and
            O(objects[].jsonpath) say. Ready is what the kind customarily means by it, as with
            M(inferops.cluster.apply_set).
          - V(absent) waits until there is no such object.
        type: str
        choices: [present, absent]
        default: present
      conditions:
        description: Conditions in C(status.conditions) that must all hold.
        type: list
        elements: dict
        default: []
        suboptions:
          type:
            description: Type of the condition.
            type: str
            required: true
          status:
            description: Its status.
            type: str
            choices: ["True", "False", Unknown]
            default: "True"
          reason:
            description: Its reason; any reason if not given.
            type: str
      jsonpath:
        description: Fields that must all be set, and have a value if one is given.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description:
              - Path of the field, as C(kubectl wait --for=jsonpath) takes it, for example C(.status.phase).
            type: str
            required: true
          value:
            description:
              - The value that everything the path leads to must have, compared as text. Any but an empty value if not
                given.
            type: raw
  wait_timeout:
    description: Seconds that all objects together have. With 0, they are looked at once.
    type: int
    default: 300
extends_documentation_fragment:
  - inferops.cluster.attributes
  - inferops.cluster.attributes.action
  - kubernetes.core.k8s_auth_options
requirements:
  - python >= 3.10
  - PyYAML >= 5.1
  - kubernetes >= 24.2.0 (only for kubeconfigs with exec or auth-provider plugins, and for several merged files)
attributes:
  action:
    details: The controller shows the progress of long waits.
    support: full
  async:
    details: Full; without progress.
    support: full
  check_mode:
    details: Looks once, and does not fail when something is not there yet - an earlier task would have made it.
    support: full
  diff_mode:
    details: Nothing changes, so there is nothing to show.
    support: none
seealso:
  - module: inferops.cluster.apply_set
"""

EXAMPLES = r"""
- name: The platform is up when all this holds
  inferops.cluster.cluster_wait:
    objects:
      - {api_version: apps/v1, kind: Deployment, namespace: llm, name: litellm}
      - {kind: Pod, namespace: llm, label_selector: app.kubernetes.io/name=model-server, minimum: 2}
      - api_version: gateway.networking.k8s.io/v1
        kind: Gateway
        namespace: llm
        name: inference-gateway
        conditions:
          - type: Programmed
        jsonpath:
          - path: .status.addresses[0].value
    wait_timeout: 120

- name: Every GPU node has its MIG layout
  inferops.cluster.cluster_wait:
    objects:
      - kind: Node
        label_selector: nvidia.com/mig.config
        jsonpath:
          - path: .metadata.labels['nvidia.com/mig.config.state']
            value: success

- name: The old job is gone
  inferops.cluster.cluster_wait:
    objects:
      - {api_version: batch/v1, kind: Job, namespace: llm, name: download, state: absent}
"""

RETURN = r"""
objects:
  description: One entry for each entry of the option O(objects), in that order.
  returned: when the server could be asked
  type: list
  elements: dict
  contains:
    api_version:
      description: Its apiVersion.
      type: str
    kind:
      description: Its kind.
      type: str
    namespace:
      description: Its namespace; null for cluster-wide objects and for all namespaces.
      type: str
    name:
      description: Its name; null for a label selector.
      type: str
    label_selector:
      description: Its label selector; null for a name.
      type: str
    found:
      description: Names of the objects that there were when it was last looked at.
      type: list
      elements: str
    ready:
      description: Whether it is as wanted.
      type: bool
    reason:
      description: Why it is not.
      type: str
waited:
  description: What was waited for in vain.
  returned: when the wait failed
  type: dict
  contains:
    for:
      description: Always V(ready).
      type: str
    seconds:
      description: How long it was waited.
      type: float
    total:
      description: Number of entries that were waited for.
      type: int
    unmet:
      description: The entries that did not become as wanted, with C(reason), C(final) and C(details).
      type: list
      elements: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils.awaiting import Awaiting
from ansible_collections.inferops.cluster.plugins.module_utils.errors import NotReadyError
from ansible_collections.inferops.cluster.plugins.module_utils.expect import EXPECTATION
from ansible_collections.inferops.cluster.plugins.module_utils.session import Session, finish


def argument_spec() -> Dict[str, Any]:
    """Options of this module and of kubernetes.core's authentication."""
    awaited = {
        "api_version": {"type": "str", "default": "v1"},
        "kind": {"type": "str", "required": True},
        "namespace": {"type": "str"},
        "name": {"type": "str"},
        "label_selector": {"type": "str"},
        "minimum": {"type": "int", "default": 1},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        **EXPECTATION,
    }
    return {
        **AUTH_ARG_SPEC,
        "objects": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": awaited,
            "mutually_exclusive": [["name", "label_selector"]],
        },
        "wait_timeout": {"type": "int", "default": 300},
    }


def perform(params: Dict[str, Any], check_mode: bool, _with_diff: bool) -> Dict[str, Any]:
    """Wait: the results, with ``failed`` and ``warnings``."""
    waiting, session = Awaiting(params, check_mode), Session(params)
    session.run(waiting.run)
    results: Dict[str, Any] = {"changed": False, "objects": waiting.results()}
    if isinstance(session.failure, NotReadyError):
        results["waited"] = session.failure.waited
    if session.failure:
        results["msg"] = session.message
    return {**results, "failed": session.failure is not None, "warnings": session.warnings}


def main() -> None:
    """Entry point."""
    finish(AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True), perform)


if __name__ == "__main__":
    main()
