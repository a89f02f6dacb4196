#!/usr/bin/python

# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_node_info
short_description: GPUs of a cluster, how they are shared, and which pods have them
version_added: 1.0.0
author:
  - inferops.cluster maintainers (@inferops)
description:
  - Tells for each node with GPUs what it has and what it offers, how its GPUs are shared and sliced (time-slicing, MPS,
    MIG), which driver it runs, and which pods use how many of them; and which pods still wait for GPUs.
  - Reads nodes and pods from the API server. What hardware and driver there are comes from the labels of GPU Feature
    Discovery and of the GPU operator; where these do not run, it is null.
options:
  nodes:
    description:
      - Names of the nodes to tell about; all if neither they nor O(label_selector) are given. A name that the cluster
        does not have is an error. With O(label_selector), the nodes must have its labels, too.
      - In any case, only those that have GPUs are told about.
    type: list
    elements: str
    default: []
  label_selector:
    description: Label selector of the nodes to tell about, for example C(node-pool=gpu).
    type: str
  resources:
    description: Names of the extended resources that count as GPUs, as globs.
    type: list
    elements: str
    default:
      - nvidia.com/gpu*
      - nvidia.com/mig-*
      - amd.com/gpu*
      - gpu.intel.com/*
      - habana.ai/gaudi*
  pods:
    description:
      - Whether to look at pods. Without it nothing is known about what is in use, but the right to C(list) pods in all
        namespaces is not needed.
    type: bool
    default: true
extends_documentation_fragment:
  - inferops.cluster.reading
  - inferops.cluster.attributes
  - kubernetes.core.k8s_auth_options
seealso:
  - module: inferops.cluster.cluster_wait
"""

EXAMPLES = r"""
- name: What the GPU nodes have
  inferops.cluster.gpu_node_info:
  register: gpus

- name: Stop before the model is deployed if it would not get its GPUs
  ansible.builtin.assert:
    that: gpus.totals['nvidia.com/gpu'].free | default(0) >= 4

- name: Nodes whose slices are not as asked for
  ansible.builtin.debug:
    msg: "{{ gpus.nodes | rejectattr('mig.state', 'in', [none, 'success']) | map(attribute='name') }}"
"""

RETURN = r"""
nodes:
  description: The nodes that offer GPUs, or whose label C(nvidia.com/gpu.present) says that they have some, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    ready:
      description: Whether its kubelet is well.
      type: bool
    schedulable:
      description: Whether it takes new pods, that is, is not cordoned.
      type: bool
    taints:
      description: Its taints.
      type: list
      elements: dict
    capacity:
      description: Number of units of each GPU resource. Of a shared GPU, each share is a unit.
      type: dict
    allocatable:
      description: Number of units of each that pods can have; fewer than the capacity when some are unhealthy.
      type: dict
    requested:
      description: Number of units of each that pods have. Empty without O(pods).
      type: dict
    free:
      description: Number of units of each that are left. Without O(pods), all that are allocatable.
      type: dict
    gpu:
      description:
        - The hardware, as GPU Feature Discovery tells - C(product), C(count), C(memory_mib) of each, C(family) and
          C(compute_capability).
      type: dict
    driver:
      description: C(version) of the driver, and C(cuda_version), the newest CUDA that it runs.
      type: dict
    sharing:
      description:
        - How GPUs are shared - C(strategy) is V(none), V(time_slicing) or V(mps), null if nothing tells; C(replicas) is
          the number of shares of a GPU; C(shared_resources) are the resources that the device plugin has renamed.
      type: dict
    mig:
      description:
        - Slices - whether the GPUs are C(capable) of it, the C(strategy) of the device plugin, the layout C(config)
          that the MIG manager was asked for, its C(state) (V(pending), V(success), V(failed)), and the number of slices
          of each of the C(profiles).
      type: dict
    labels:
      description: Its labels about GPUs.
      type: dict
    pods:
      description: The pods that have GPUs there.
      type: list
      elements: dict
      contains:
        namespace:
          description: Its namespace.
          type: str
        name:
          description: Its name.
          type: str
        phase:
          description: Its phase.
          type: str
        owner:
          description: Kind and name of its controller; empty if it has none.
          type: str
        requests:
          description: Number of units of each GPU resource.
          type: dict
  sample:
    - name: gpu-1
      ready: true
      schedulable: true
      taints: [{key: nvidia.com/gpu, value: present, effect: NoSchedule}]
      capacity: {nvidia.com/gpu: 8}
      allocatable: {nvidia.com/gpu: 8}
      requested: {nvidia.com/gpu: 4}
      free: {nvidia.com/gpu: 4}
      gpu: {product: NVIDIA-H100-80GB-HBM3, count: 8, memory_mib: 81559, family: hopper, compute_capability: "9.0"}
      driver: {version: 595.91.07, cuda_version: "13.2"}
      sharing: {strategy: none, replicas: 1, shared_resources: []}
      mig: {capable: true, strategy: single, config: all-disabled, state: success, profiles: {}}
      labels: {nvidia.com/gpu.present: "true"}
      pods:
        - {namespace: llm, name: llama-0, phase: Running, owner: StatefulSet llama, requests: {nvidia.com/gpu: 4}}
pending:
  description:
    - Pods of the whole cluster that ask for GPUs and are on no node yet - C(namespace), C(name), C(phase), C(owner) and
      C(requests) as in RV(nodes[].pods), and the scheduler's C(reason). Empty without O(pods).
  returned: success
  type: list
  elements: dict
  sample:
    - namespace: llm
      name: llama-1
      phase: Pending
      owner: StatefulSet llama
      requests: {nvidia.com/gpu: 8}
      reason: 0/3 nodes are available, 3 Insufficient nvidia.com/gpu.
totals:
  description: For each GPU resource C(capacity), C(allocatable), C(requested) and C(free) of these nodes together.
  returned: success
  type: dict
  sample: {nvidia.com/gpu: {capacity: 8, allocatable: 8, requested: 4, free: 4}}
"""

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.gpus import Inventory
from ansible_collections.inferops.cluster.plugins.module_utils.session import Session, finish

Json = Dict[str, Any]

RESOURCES = ["nvidia.com/gpu*", "nvidia.com/mig-*", "amd.com/gpu*", "gpu.intel.com/*", "habana.ai/gaudi*"]
# Pods that have ended hold nothing any more.
ALIVE = "status.phase!=Succeeded,status.phase!=Failed"


def argument_spec() -> Json:
    """Options of this module and of kubernetes.core's authentication."""
    return {
        **AUTH_ARG_SPEC,
        "nodes": {"type": "list", "elements": "str", "default": []},
        "label_selector": {"type": "str"},
        "resources": {"type": "list", "elements": "str", "default": RESOURCES},
        "pods": {"type": "bool", "default": True},
    }


def look(client: Client, params: Json) -> Inventory:
    """Read nodes and pods. Raises ClusterError, also for nodes that are not there."""
    selector = {"labelSelector": params["label_selector"]} if params["label_selector"] else {}
    nodes = client.list("/api/v1/nodes", **selector)
    if params["nodes"]:
        known = {node["metadata"]["name"] for node in nodes}
        missing = [name for name in params["nodes"] if name not in known]
        if missing:
            where = f" with the labels {params['label_selector']}" if selector else ""
            raise InputError(f"the cluster has no node {', '.join(missing)}{where}: correct `nodes`")
        nodes = [node for node in nodes if node["metadata"]["name"] in params["nodes"]]
    pods: List[Json] = client.list("/api/v1/pods", fieldSelector=ALIVE) if params["pods"] else []
    return Inventory(nodes, pods, params["resources"])


def perform(params: Json, _check_mode: bool, _with_diff: bool) -> Json:
    """Look: the results, with ``failed`` and ``warnings``."""
    found: List[Inventory] = []
    session = Session(params)
    session.run(lambda client: found.append(look(client, params)))
    results: Json = {"changed": False, "failed": session.failure is not None, "warnings": session.warnings}
    if session.failure:
        return {**results, "msg": session.message}
    return {**results, "nodes": found[0].nodes, "pending": found[0].pending, "totals": found[0].totals}


def main() -> None:
    """Entry point."""
    finish(AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True), perform)


if __name__ == "__main__":
    main()
