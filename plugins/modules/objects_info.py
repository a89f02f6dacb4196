#!/usr/bin/python

# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: objects_info
short_description: Read a few Kubernetes objects at once
version_added: 1.0.0
author:
  - inferops.cluster maintainers (@inferops)
description:
  - Answers several questions about a cluster in one task, and returns only the parts of the objects that are asked for.
  - A kind, namespace or object that does not exist is an empty answer, not an error; an unreachable API server or a
    missing right is an error.
options:
  queries:
    description:
      - The questions. With O(queries[].name), one object; otherwise all objects of the kind that the selector and the
        namespace leave.
    type: list
    elements: dict
    required: true
    suboptions:
      api_version:
        description: API version of the objects.
        type: str
        required: true
      kind:
        description: Kind of the objects.
        type: str
        required: true
      namespace:
        description:
          - Namespace of the objects; all namespaces if not given. Required for an object by name if its kind has
            namespaces.
        type: str
      name:
        description: Name of the object.
        type: str
      label_selector:
        description: Label selector of the objects, for example C(app=web,tier!=test). Not together with a name.
        type: str
  fields:
    description:
      - Paths of the parts of each object to return, with dots between keys, for example C(status.allocatable).
      - Name, namespace, labels and annotations are always returned.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - inferops.cluster.reading
  - inferops.cluster.attributes
  - kubernetes.core.k8s_auth_options
seealso:
  - module: kubernetes.core.k8s_info
"""

EXAMPLES = r"""
- name: What the GPU nodes offer, and which Gateway API there is
  inferops.cluster.objects_info:
    queries:
      - {api_version: v1, kind: Node, label_selector: nvidia.com/gpu.present=true}
      - {api_version: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, name: gateways.gateway.networking.k8s.io}
    fields: [status.allocatable]
  register: state

- name: Show the nodes
  ansible.builtin.debug:
    var: state.found[0]
"""

RETURN = r"""
found:
  description: For each query, in the same order, the list of objects.
  returned: success
  type: list
  elements: list
  sample:
    - - apiVersion: v1
        kind: Node
        metadata: {name: gpu-1, labels: {nvidia.com/gpu.present: "true"}}
        status: {allocatable: {nvidia.com/gpu: "8"}}
"""

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils import access
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Discovery
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError, InputError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import missing_right, unauthorized

METADATA = ("name", "namespace", "labels", "annotations")

Json = Dict[str, Any]


def argument_spec() -> Json:
    """Options of this module and of kubernetes.core's authentication."""
    query = {
        "api_version": {"type": "str", "required": True},
        "kind": {"type": "str", "required": True},
        "namespace": {"type": "str"},
        "name": {"type": "str"},
        "label_selector": {"type": "str"},
    }
    return {
        **AUTH_ARG_SPEC,
        "queries": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": query,
            "mutually_exclusive": [["name", "label_selector"]],
        },
        "fields": {"type": "list", "elements": "str", "default": []},
    }


def answer(client: Client, discovery: Discovery, query: Json) -> List[Json]:
    """The objects that one query asks for; none if its kind or namespace does not exist. Raises ClusterError."""
    resource = discovery.resource(query["api_version"], query["kind"])
    if resource is None:
        return []
    if query["name"] and resource.namespaced and not query["namespace"]:
        raise InputError(f"{query['kind']} {query['name']} is in a namespace: say in which, by `namespace`")
    path = resource.path(query["namespace"], query["name"])
    if query["name"]:
        item = client.find(path)
        return [item] if item else []
    selector = {"labelSelector": query["label_selector"]} if query["label_selector"] else {}
    listing = client.find(path, **selector) or {}
    # Items of a list do not say what they are.
    named = {"apiVersion": query["api_version"], "kind": query["kind"]}
    return [{**named, **item} for item in listing.get("items", [])]


def reduced(item: Json, fields: List[str]) -> Json:
    """C(item) with its identity and C(fields), and nothing else."""
    metadata = {key: item["metadata"][key] for key in METADATA if key in item["metadata"]}
    result: Json = {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata}
    for field in fields:
        _copy(item, result, field.split("."))
    return result


def _copy(source: Json, target: Json, keys: List[str]) -> None:
    """Copy the value at the path C(keys), if there is one."""
    for key in keys[:-1]:
        if not isinstance(source.get(key), dict):
            return
        source, target = source[key], target.setdefault(key, {})
    if keys[-1] in source:
        target[keys[-1]] = source[keys[-1]]


def told(error: ClusterError, server: str) -> str:
    """What to tell about C(error)."""
    if not isinstance(error, ApiError):
        return str(error)
    if error.status == 401:
        return unauthorized(server)
    right = missing_right(error)
    if right:
        return f"{right}. Give this user that right on {server}, or use other credentials"
    return f"the API server {server} refused {error.method} {error.path}: {error.message}"


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    client = None
    try:
        client = Client(access.resolve(module.params))
        discovery = Discovery(client)
        queries: List[Json] = module.params["queries"]
        discovery.load(query["api_version"] for query in queries)
        found = client.map(lambda query: answer(client, discovery, query), queries)
    except ClusterError as error:
        module.fail_json(msg=told(error, client.server if client else ""))
    finally:
        if client:
            client.close()
    fields = module.params["fields"]
    module.exit_json(changed=False, found=[[reduced(item, fields) for item in items] for items in found])


if __name__ == "__main__":
    main()
