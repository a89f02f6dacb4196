#!/usr/bin/python

# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: apply_set
short_description: Bring a set of Kubernetes objects to the wanted state, all at once
version_added: 1.0.0
author:
  - inferops.cluster maintainers (@inferops)
description:
  - Server-side applies any number of objects in one task, in the order they need (CustomResourceDefinitions and their
    kinds, namespaces, configuration, workloads, custom resources, webhooks), whatever the order they are given in.
  - Writes only what has drifted. Objects that already are as wanted cost one read, and many of one kind share it.
  - Judges the whole set by a server-side dry run first; when one object is refused, nothing is written. Objects whose
    namespace or kind comes from the set itself are judged as soon as that exists.
  - Waits for all objects at the same time under one deadline, shows what it waits for, and tells why when some do not
    become ready.
options:
  name:
    description:
      - Name of the set, used in messages, and with O(prune) in the name of its record.
    type: str
    required: true
  namespace:
    description:
      - Namespace of the namespaced objects that name none, and with O(prune) of the set's record.
    type: str
  objects:
    description:
      - The objects; a mapping, YAML text with any number of documents, or a list of these. A C(List) counts as its
        items.
      - The C(stringData) of a Secret is folded into C(data), so that both are compared alike.
      - Never logged, as Secrets may be among them.
      - One of O(objects), O(src) and O(templates) is required; an empty list is fine.
    type: raw
  src:
    description:
      - Paths or URLs of YAML or JSON files with more objects, any number of documents each. For a folder, its files
        C(*.yaml), C(*.yml) and C(*.json) by name, without those of its subfolders.
      - Relative paths are looked up on the controller as the files of the role or play are (in C(files/)), then from
        the directory in which Ansible was started, and may be encrypted with Ansible Vault. Absolute paths and URLs are
        read on the host that runs the module.
    type: list
    elements: raw
  templates:
    description:
      - Paths of Jinja templates, or folders of such, that render to YAML text with more objects.
      - They are looked up and rendered on the controller, as M(ansible.builtin.template) does, then from the directory
        in which Ansible was started. In a folder, the files C(*.j2), C(*.yaml), C(*.yml) and C(*.json) are rendered by
        name.
    type: list
    elements: raw
  exclude:
    description:
      - Leave out the objects that one of these selectors matches. All keys that a selector gives must fit.
      - Keys are case-sensitive globs.
    type: list
    elements: dict
    default: []
    suboptions:
      kind: &kind
        description: Kind of the objects.
        type: str
      api_group: &api_group
        description: API group of the objects; the empty string is the core group.
        type: str
      name: &name
        description: Name of the objects.
        type: str
      namespace: &namespace
        description: Namespace that the objects themselves name.
        type: str
  patches:
    description:
      - Changes to the objects that the selector keys match, merged in the given order.
      - A patch that matches no object is an error.
    type: list
    elements: dict
    default: []
    suboptions:
      kind: *kind
      api_group: *api_group
      name: *name
      namespace: *namespace
      patch:
        description:
          - A merge patch. Maps are merged, V(null) deletes a key, other values replace.
          - Lists whose entries all have a C(name) are merged by that name.
        type: dict
        required: true
  state:
    description:
      - V(present) creates and corrects the objects.
      - V(absent) deletes them in the reverse order. Kinds that the server does not know count as absent.
    type: str
    choices: [present, absent]
    default: present
  prune:
    description:
      - Delete the objects that belong to the set, and are no longer given. With O(state=absent), delete all that
        belongs to the set, given or not, but what O(exclude) matches.
      - An object belongs to the set when a task with this option has applied it. It then carries the label
        C(applyset.kubernetes.io/part-of), and the ConfigMap C(applyset-<name>) in O(namespace), which is then
        required, records the kinds and namespaces to look in. This is an ApplySet as of Kubernetes KEP-3659.
      - Objects of another set are neither pruned nor, without O(force), changed. Objects that merely carry a copy of
        the label, as controllers make, do not count.
      - A CustomResourceDefinition or Namespace is not pruned, and the task fails before it changes anything, when that
        would delete objects that are not of the set.
      - Give the whole set in one task, as every other task of the same O(name) and O(namespace) with this option
        prunes what it is not given. Tasks without it leave the membership of objects as it is.
    type: bool
    default: false
  shared:
    description:
      - Objects of the set that others need as well, such as a namespace that several sets live in; one of these
        selectors matches them. They are applied with the set, but are never members of it, so they are not pruned, and
        may be in other sets, too.
      - With O(state=absent), a shared namespace is deleted once nothing is left in it, unless another field manager has
        made or applied it. Other shared objects stay.
    type: list
    elements: dict
    default: []
    suboptions:
      kind: *kind
      api_group: *api_group
      name: *name
      namespace: *namespace
  force:
    description:
      - Take over fields that other field managers hold with other values. Otherwise such a field is an error that
        names the field and its manager.
      - With O(prune), also take over objects that belong to another set.
    type: bool
    default: false
  repair:
    description:
      - Undo what people have changed by hand. Of objects that O(field_manager) has applied before, take over fields
        that were last written with C(kubectl), C(k9s), C(curl), a browser (Headlamp and other consoles), Lens or the
        Kubernetes dashboard. Fields that a program holds, such as an autoscaler, or that somebody server-side applies,
        remain an error.
    type: bool
    default: false
  wait:
    description:
      - For O(state=present), wait until every object is ready, changed or not. Workloads must have rolled out, Jobs
        completed, claims bound, CustomResourceDefinitions be established; Gateway API objects and policies must be
        accepted by their controllers; other kinds must have their customary condition (Ready, Available, Programmed or
        Accepted), if they have one at all. Conditions about an older generation do not count.
      - For O(state=absent), wait until every object, and what it owns, is gone.
    type: bool
    default: true
  wait_for:
    description:
      - What to wait for with the objects that a selector matches, instead of what their kind customarily means by
        ready. The first entry that matches an object decides; an entry that matches none is an error.
      - Conditions and fields count only when they are about the current generation of the object, as far as its
        controller tells.
    type: list
    elements: dict
    default: []
    suboptions:
      kind: *kind
      api_group: *api_group
      name: *name
      namespace: *namespace
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
              - Path of the field, as C(kubectl wait --for=jsonpath) takes it, for example C(.status.phase) or
                C({.status.addresses[?(@.type=="IPAddress")].value}).
            type: str
            required: true
          value:
            description:
              - The value that everything the path leads to must have, compared as text. Any but an empty value if not
                given.
            type: raw
  wait_timeout:
    description:
      - Seconds that all objects together have to become ready, or to go away. Also the time that an earlier deletion of
        objects of the set, such as a namespace that still terminates, has to end before they are made anew.
    type: int
    default: 300
  field_manager:
    description:
      - Name under which the server remembers which fields these manifests own.
    type: str
    default: inferops.cluster
  foreseen:
    description:
      - For check mode only. Kinds that the server will have, or whose definition will have changed, by the time that
        the set is applied for real. What the server then says against objects of these kinds does not count.
      - What earlier tasks of this module would have brought or changed in the same run, on the same host and with the
        same options of authentication, is added by itself. So this is for definitions that come from elsewhere.
    type: list
    elements: dict
    default: []
    suboptions:
      api_version:
        description: API version of the kind, with its group.
        type: str
        required: true
      kind:
        description: Name of the kind.
        type: str
        required: true
      plural:
        description: Its name in URLs.
        type: str
        required: true
      namespaced:
        description: Whether its objects are in namespaces.
        type: bool
        required: true
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
    details: Templates are rendered on the controller, which also shows the progress of long waits.
    support: full
  async:
    details: Full; without progress.
    support: full
  check_mode:
    details: >-
      Full, by server-side dry run. Also works on an empty cluster: objects whose namespace or kind does not exist yet
      count as changed. So do objects that the server refuses because an earlier task of the same run, in check mode
      itself, has not changed the definition of their kind.
    support: full
  diff_mode:
    details: Full, without fields that the server writes, and with the values of Secrets masked.
    support: full
notes:
  - "Proxies are used when O(proxy) or the kubeconfig's C(proxy-url) says so; they must be plain C(http://) ones."
seealso:
  - module: kubernetes.core.k8s
"""

EXAMPLES = r"""
- name: Install the CRDs of the Gateway API, and nothing else of its bundle
  inferops.cluster.apply_set:
    name: gateway-api
    src:
      - https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.0/experimental-install.yaml
    exclude:
      - kind: ValidatingAdmissionPolicy*

- name: A namespace and what lives in it, in one task
  inferops.cluster.apply_set:
    name: hello
    namespace: hello
    objects:
      - apiVersion: v1
        kind: Namespace
        metadata:
          name: hello
    templates:
      - deployment.yaml.j2
    wait_timeout: 120

- name: A model that is ready when its endpoint has an address
  inferops.cluster.apply_set:
    name: model
    namespace: llm
    src: [model.yaml]
    wait_for:
      - kind: LLMInferenceService
        conditions:
          - type: Ready
        jsonpath:
          - path: .status.url

- name: Somebody else's manifest with two replicas and another image
  inferops.cluster.apply_set:
    name: operator
    namespace: operators
    src: [operator.yaml]
    patches:
      - kind: Deployment
        name: operator
        patch:
          spec:
            replicas: 2
            template:
              spec:
                containers:
                  - name: manager
                    image: registry.example.com/operator:v2

- name: Remove it again
  inferops.cluster.apply_set:
    name: operator
    namespace: operators
    src: [operator.yaml]
    state: absent

- name: Exactly these models; what an earlier run made for others goes
  inferops.cluster.apply_set:
    name: models
    namespace: llm
    objects: "{{ my_model_objects }}"
    prune: true
"""

RETURN = r"""
objects:
  description:
    - One entry for each object of the set, in the order given. With O(prune), then one for each object that is pruned,
      and one for the ConfigMap that records what belongs to the set.
    - When the task fails, only those that were changed, or are told about in the message.
  returned: when the objects could be read and their kinds are known
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
      description: Its namespace; null for cluster-wide objects.
      type: str
    name:
      description: Its name.
      type: str
    action:
      description:
        - What was done with it, or would be in check mode.
        - V(created), V(updated), V(unchanged), V(deleted) or V(absent).
        - V(skipped) when the task failed before its turn.
      type: str
    changed:
      description: Whether that is a change.
      type: bool
    ready:
      description: Whether it is ready; null when that was not looked at.
      type: bool
    reason:
      description: Why it is not ready, or was not done, or whose fields it takes over.
      type: str
    taken_over:
      description: Fields that another manager holds with another value, and that get or would get the value of the set.
      type: list
      elements: dict
      contains:
        field:
          description: Path of the field.
          type: str
        manager:
          description: Field manager that holds it.
          type: str
  sample:
    - api_version: apps/v1
      kind: Deployment
      namespace: hello
      name: web
      action: created
      changed: true
      ready: true
      reason: ""
      taken_over: []
foreseen:
  description: Kinds that the CustomResourceDefinitions of the set would bring or change, in the form of O(foreseen).
  returned: in check mode, when there are any
  type: list
  elements: dict
  contains:
    api_version:
      description: API version of the kind, with its group.
      type: str
    kind:
      description: Name of the kind.
      type: str
    plural:
      description: Its name in URLs.
      type: str
    namespaced:
      description: Whether its objects are in namespaces.
      type: bool
waited:
  description: What was waited for in vain.
  returned: when the wait failed
  type: dict
  contains:
    for:
      description: V(ready) or V(gone).
      type: str
    seconds:
      description: How long it was waited.
      type: float
    total:
      description: Number of objects that were waited for.
      type: int
    unmet:
      description: The objects that did not become ready, or did not go away.
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
          description: Its namespace; null for cluster-wide objects.
          type: str
        name:
          description: Its name.
          type: str
        reason:
          description: What is missing.
          type: str
        final:
          description: Whether waiting longer cannot help, as with a failed Job.
          type: bool
        details:
          description: What its pods wait for, and the last warnings about it and them.
          type: list
          elements: str
        conditions:
          description: The conditions that were waited for, if O(wait_for) says so.
          type: list
          elements: dict
        jsonpath:
          description: The fields that were waited for, if O(wait_for) says so.
          type: list
          elements: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils.errors import NotReadyError
from ansible_collections.inferops.cluster.plugins.module_utils.expect import EXPECTATION
from ansible_collections.inferops.cluster.plugins.module_utils.session import Session, finish
from ansible_collections.inferops.cluster.plugins.module_utils.task import Task

RULES: Dict[str, Any] = {"required_one_of": [["objects", "src", "templates"]]}
SELECTOR: Dict[str, Any] = {
    "kind": {"type": "str"},
    "api_group": {"type": "str"},
    "name": {"type": "str"},
    "namespace": {"type": "str"},
}


def argument_spec() -> Dict[str, Any]:
    """Options of this module and of kubernetes.core's authentication."""
    return {
        **AUTH_ARG_SPEC,
        "name": {"type": "str", "required": True},
        "namespace": {"type": "str"},
        "objects": {"type": "raw", "no_log": True},
        "src": {"type": "list", "elements": "raw", "no_log": True},
        "templates": {"type": "list", "elements": "raw", "no_log": True},
        "exclude": {"type": "list", "elements": "dict", "default": [], "options": dict(SELECTOR)},
        "patches": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {**SELECTOR, "patch": {"type": "dict", "required": True, "no_log": True}},
        },
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "prune": {"type": "bool", "default": False},
        "shared": {"type": "list", "elements": "dict", "default": [], "options": dict(SELECTOR)},
        "force": {"type": "bool", "default": False},
        "repair": {"type": "bool", "default": False},
        "wait": {"type": "bool", "default": True},
        "wait_for": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {**SELECTOR, **EXPECTATION},
        },
        "wait_timeout": {"type": "int", "default": 300},
        "field_manager": {"type": "str", "default": "inferops.cluster"},
        "foreseen": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "api_version": {"type": "str", "required": True},
                "kind": {"type": "str", "required": True},
                "plural": {"type": "str", "required": True},
                "namespaced": {"type": "bool", "required": True},
            },
        },
    }


def perform(params: Dict[str, Any], check_mode: bool, with_diff: bool) -> Dict[str, Any]:
    """Bring the set to its state: the results, with ``failed`` and ``warnings``."""
    task, session = Task(params, check_mode), Session(params)
    session.run(task.run)
    results = task.results(with_diff)
    message = session.message
    if isinstance(session.failure, NotReadyError):
        results["waited"] = session.failure.waited
    elif message:
        message = f"{message}\n{task.outcome()}"
    if message:
        results["msg"] = f"set {params['name']}: {message}"
    return {**results, "failed": bool(message), "warnings": session.warnings}


def main() -> None:
    """Entry point."""
    finish(AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True, **RULES), perform)


if __name__ == "__main__":
    main()
