#!/usr/bin/python

# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: apply_set
short_description: Bring a set of Kubernetes objects to the wanted state, all at once
version_added: 0.1.0
author:
  - inferops.cluster maintainers (@inferops)
description:
  - Server-side applies any number of objects in one task, in the order they need (CustomResourceDefinitions and their
    kinds, namespaces, configuration, workloads, custom resources, webhooks), whatever the order they are given in.
  - Writes only what has drifted. Objects that already are as wanted cost one read, and many of one kind share it.
  - Judges the whole set by a server-side dry run first; when one object is refused, nothing is written. Objects whose
    namespace or kind comes from the set itself are judged as soon as that exists.
  - Waits for all objects at the same time under one deadline, and tells why when some do not become ready.
options:
  name:
    description:
      - Name of the set, used in messages.
    type: str
    required: true
  namespace:
    description:
      - Namespace of the namespaced objects that name none.
    type: str
  objects:
    description:
      - The objects, as mappings. A C(List) counts as its items.
      - The C(stringData) of a Secret is folded into C(data), so that both are compared alike.
      - Never logged, as Secrets may be among them.
      - One of O(objects) and O(src) is required; an empty list is fine.
    type: list
    elements: dict
  src:
    description:
      - Paths or URLs of YAML files with more objects, any number of documents each. They are read on the host that
        runs the module.
    type: list
    elements: str
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
  force:
    description:
      - Take over fields that other field managers hold with other values. Otherwise such a field is an error that
        names the field and its manager.
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
  wait_timeout:
    description:
      - Seconds that all objects together have to become ready, or to go away.
    type: int
    default: 300
  field_manager:
    description:
      - Name under which the server remembers which fields these manifests own.
    type: str
    default: inferops.cluster
extends_documentation_fragment:
  - kubernetes.core.k8s_auth_options
requirements:
  - python >= 3.10
  - PyYAML >= 5.1
  - kubernetes >= 24.2.0 (only for kubeconfigs with exec or auth-provider plugins, and for several merged files)
attributes:
  check_mode:
    description: >-
      Full, by server-side dry run. Also works on an empty cluster: objects whose namespace or kind does not exist yet
      count as changed.
    support: full
  diff_mode:
    description: Full, without fields that the server writes, and with the values of Secrets masked.
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
      - "{{ lookup('ansible.builtin.template', 'deployment.yaml.j2') | from_yaml }}"
    wait_timeout: 120

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
"""

RETURN = r"""
objects:
  description: One entry for each object of the set, in the order given.
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
      description: Why it is not ready, or was not done.
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
"""

from typing import Any, Dict, List, Optional, Tuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import (
    AUTH_ARG_SPEC,
    extract_sensitive_values_from_kubeconfig,
)

from ansible_collections.inferops.cluster.plugins.module_utils import access, diff, load, members, patch
from ansible_collections.inferops.cluster.plugins.module_utils.apply import Applier
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError, NotReadyError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import missing_right, rights_advice, unauthorized
from ansible_collections.inferops.cluster.plugins.module_utils.removal import Remover
from ansible_collections.inferops.cluster.plugins.module_utils.wait import wait_ready

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
        "objects": {"type": "list", "elements": "dict", "no_log": True},
        "src": {"type": "list", "elements": "str"},
        "exclude": {"type": "list", "elements": "dict", "default": [], "options": dict(SELECTOR)},
        "patches": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {**SELECTOR, "patch": {"type": "dict", "required": True, "no_log": True}},
        },
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "force": {"type": "bool", "default": False},
        "wait": {"type": "bool", "default": True},
        "wait_timeout": {"type": "int", "default": 300},
        "field_manager": {"type": "str", "default": "inferops.cluster"},
    }


class Task:
    """One run of the module: what it was given, and what it has found so far."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.members: List[members.Member] = []

    def run(self, client: Client) -> None:
        """Apply or remove the set. Raises ClusterError; ``members`` then still say what has been done."""
        items = load.load_set(self.params["objects"] or [], self.params["src"] or [])
        items = patch.exclude(items, self.params["exclude"])
        if self.params["state"] == "present":
            items = patch.patch_all(items, self.params["patches"])
        self._apply_or_remove(client, items)

    def _apply_or_remove(self, client: Client, items: List[Dict[str, Any]]) -> None:
        check, present = self.module.check_mode, self.params["state"] == "present"
        discovery = Discovery(client)
        self.members = members.resolve(discovery, items, self.params["namespace"], check or not present)
        if not present:
            Remover(client, self.members, check, self.params["wait"], self.params["wait_timeout"]).run()
            return
        Applier(
            client, discovery, self.members, self.params["field_manager"], self.params["force"], check_mode=check
        ).run()
        if self.params["wait"] and not check:
            wait_ready(client, self.members, self.params["wait_timeout"])

    def outcome(self) -> str:
        """For a failure: what had been done before it."""
        done = [member for member in self.members if member.written]
        if not done:
            return "Nothing was changed."
        shown = ", ".join(f"{member.title} {member.action}" for member in done[:10])
        return f"Done before that: {shown}" + (f" and {len(done) - 10} more." if len(done) > 10 else ".")

    def results(self) -> Dict[str, Any]:
        """What the module returns, whether it succeeded or not."""
        found: Dict[str, Any] = {
            "changed": any(member.changed and (member.written or self.module.check_mode) for member in self.members),
            "objects": [member.result() for member in self.members],
            "invocation": {"module_args": self._shown_params()},
        }
        if self.module._diff:
            found["diff"] = [self._diff(member) for member in self.members if member.changed]
        return found

    def _diff(self, member: members.Member) -> Dict[str, str]:
        after = None if member.action == "deleted" else member.after or member.wanted
        return diff.entry(member.live, after)

    def _shown_params(self) -> Dict[str, Any]:
        """The parameters without manifests and patches: these may hold Secrets."""
        shown = dict(self.params)
        shown["objects"] = f"{len(self.params['objects'] or [])} objects"
        shown["patches"] = f"{len(self.params['patches'])} patches"
        return shown


def protect_secrets(module: AnsibleModule) -> None:
    """Keep credentials, and only these, out of results.

    The manifests are marked no_log so that they reach no log of the host; but then Ansible would also mask every word
    of theirs, such as the names of the objects, in what the module returns.
    """
    params = module.params
    secrets = {params.get("api_key"), params.get("password"), *(params.get("proxy_headers") or {}).values()}
    if isinstance(params.get("kubeconfig"), dict):
        secrets |= extract_sensitive_values_from_kubeconfig(params["kubeconfig"])
    module.no_log_values = {secret for secret in secrets if secret}


def told(error: ClusterError, server: str) -> str:
    """The sentence for an API error that no object stands for, such as a refused LIST."""
    if not isinstance(error, ApiError):
        return str(error)
    if error.status == 401:
        return unauthorized(server)
    right = missing_right(error)
    if right:
        return f"{right}. {rights_advice(server)}"
    return f"the API server {server} refused {error.method} {error.path}: {error.message}"


def perform(task: Task) -> Tuple[str, Optional[Client]]:
    """Run the task: the failure message (empty when all went well) and the client that was used."""
    client: Optional[Client] = None
    try:
        client = Client(access.resolve(task.params))
        task.run(client)
    except NotReadyError as error:
        return str(error), client
    except ClusterError as error:
        return f"{told(error, client.server if client else '')}\n{task.outcome()}", client
    finally:
        if client:
            client.close()
    return "", client


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec=argument_spec(), supports_check_mode=True, required_one_of=[["objects", "src"]]
    )
    protect_secrets(module)
    task = Task(module)
    failure, client = perform(task)
    for warning in client.warnings if client else ():
        module.warn(warning)
    results = task.results()
    if failure:
        module.fail_json(msg=f"set {task.params['name']}: {failure}", **results)
    module.exit_json(**results)


if __name__ == "__main__":
    main()
