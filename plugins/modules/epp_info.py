#!/usr/bin/python

# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: epp_info
short_description: An endpoint picker's view of its endpoints, and its last decisions
version_added: 1.0.0
author:
  - inferops.cluster maintainers (@inferops)
description:
  - Asks every replica of an endpoint picker what it knows of its endpoints (load, cache, adapters, and how old these
    readings are), and where it has sent the last requests, with the scores and the reason.
  - Reaches the pods through the API server, so that no address outside of the cluster is needed, but the rights to
    C(get) its Service, to C(list) pods and to C(get) C(pods/proxy) in O(namespace).
  - From pickers of other makes, only O(metrics) can be had.
options:
  namespace:
    description: Namespace of the endpoint picker.
    type: str
    required: true
  name:
    description: Name of its Service; the role P(inferops.cluster.epp#role) names it after the pool, C(<pool>-epp).
    type: str
    required: true
  port:
    description: Its port for metrics, in the pods.
    type: int
    default: 9090
  scheme:
    description: V(https) if it serves its metrics with a certificate.
    type: str
    choices: [http, https]
    default: http
  service_account:
    description:
      - Service account, in O(namespace), whose token is shown to the picker, which asks who reads its metrics unless
        C(--metrics-endpoint-auth=false). The token is made for this, and lasts ten minutes. You need the right to
        C(create) C(serviceaccounts/token).
      - The account needs the right to C(get) the C(nonResourceURLs) C(/metrics), C(/debug/endpoints) and
        C(/debug/decisions).
    type: str
  token:
    description: A token to show instead. Not together with O(service_account).
    type: str
  gather:
    description: What to ask for.
    type: list
    elements: str
    choices: [endpoints, decisions, metrics]
    default: [endpoints, decisions]
  limit:
    description: How many decisions of each replica to return, newest first. It remembers no more than 256.
    type: int
    default: 20
  model:
    description: Only decisions about this model.
    type: str
    default: ""
  metrics:
    description: Names of the metrics to return if O(gather) includes them, as globs.
    type: list
    elements: str
    default: ["inference_pool_*", "inference_objective_request_total", "inference_objective_request_error_total"]
extends_documentation_fragment:
  - inferops.cluster.reading
  - inferops.cluster.attributes
  - kubernetes.core.k8s_auth_options
seealso:
  - module: inferops.cluster.inference_request
"""

EXAMPLES = r"""
- name: What the picker of the pool llama-70b sees
  inferops.cluster.epp_info:
    namespace: llm-platform
    name: llama-70b-epp
    service_account: metrics-reader
  register: picker

- name: Every replica should have fresh readings of all endpoints
  ansible.builtin.assert:
    that: item.metrics.age_seconds is not none and item.metrics.age_seconds < 5
  loop: "{{ picker.replicas | map(attribute='endpoints') | flatten }}"
  loop_control:
    label: "{{ item.name }}"

- name: Where did the last ten requests for this model go, and why?
  inferops.cluster.epp_info:
    namespace: llm-platform
    name: llama-70b-epp
    service_account: metrics-reader
    gather: [decisions]
    model: llama-70b
    limit: 10
"""

RETURN = r"""
replicas:
  description: One entry for each running pod of the picker.
  returned: success
  type: list
  elements: dict
  contains:
    pod:
      description: Its name.
      type: str
    ready:
      description: Whether it is ready for requests.
      type: bool
    endpoints:
      description: What it knows of each endpoint; empty if O(gather) leaves them out.
      type: list
      elements: dict
      contains:
        pool:
          description: Pool that the endpoint belongs to.
          type: str
        name:
          description: Name of the endpoint.
          type: str
        pod:
          description: Pod that serves it.
          type: str
        address:
          description: Its address and port.
          type: str
        inflight:
          description: Requests that this replica has sent there, and whose answers have not ended.
          type: int
        metrics:
          description:
            - The last reading of its metrics - C(age_seconds) (null if there was none yet), requests C(waiting) and
              C(running), C(kv_cache_usage) from 0 to 1, C(running_adapters) and C(waiting_adapters).
          type: dict
    decisions:
      description: Its last decisions, newest first; empty if O(gather) leaves them out.
      type: list
      elements: dict
      contains:
        time:
          description: When, in seconds since 1970.
          type: float
        request_id:
          description: Id of the request.
          type: str
        model:
          description: Model that the client asked for; C(target_model) is the one that the endpoint was asked for.
          type: str
        endpoint:
          description: Address and port of the endpoint that was picked; empty if the request was refused.
          type: str
        fallbacks:
          description: Those that come next if it does not answer.
          type: list
          elements: str
        scores:
          description: Weighted score of each endpoint that was rated.
          type: dict
        cached:
          description: Whether the endpoint was believed to hold the beginning of the prompt.
          type: bool
        status:
          description: V(200), or the HTTP status of the refusal.
          type: int
        reason:
          description: Why this endpoint, or why none.
          type: str
    metrics:
      description: Samples with C(name), C(labels) and C(value); empty if O(gather) leaves them out.
      type: list
      elements: dict
picked:
  description: How many of these decisions went to each endpoint, over all replicas.
  returned: success
  type: dict
  sample: {"10.199.0.7:8000": 6, "10.199.0.9:8000": 4}
"""

from collections import Counter
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.picker import Picker, token_of
from ansible_collections.inferops.cluster.plugins.module_utils.session import Session, finish

Json = Dict[str, Any]

METRICS = ["inference_pool_*", "inference_objective_request_total", "inference_objective_request_error_total"]


def argument_spec() -> Json:
    """Options of this module and of kubernetes.core's authentication."""
    return {
        **AUTH_ARG_SPEC,
        "namespace": {"type": "str", "required": True},
        "name": {"type": "str", "required": True},
        "port": {"type": "int", "default": 9090},
        "scheme": {"type": "str", "choices": ["http", "https"], "default": "http"},
        "service_account": {"type": "str"},
        "token": {"type": "str", "no_log": True},
        "gather": {
            "type": "list",
            "elements": "str",
            "choices": ["endpoints", "decisions", "metrics"],
            "default": ["endpoints", "decisions"],
        },
        "limit": {"type": "int", "default": 20},
        "model": {"type": "str", "default": ""},
        "metrics": {"type": "list", "elements": "str", "default": METRICS},
    }


def look(client: Client, params: Json) -> List[Json]:
    """Ask every replica. Raises ClusterError."""
    token = params["token"] or ""
    if params["service_account"]:
        token = token_of(client, params["namespace"], params["service_account"])
    picker = Picker(client, params["namespace"], params["name"], params["port"], params["scheme"], token)
    return client.map(lambda pod: _replica(picker, pod, params), picker.pods())


def _replica(picker: Picker, pod: Json, params: Json) -> Json:
    name, gather = pod["metadata"]["name"], params["gather"]
    conditions = (pod.get("status") or {}).get("conditions") or []
    return {
        "pod": name,
        "ready": any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions),
        "endpoints": picker.endpoints(name) if "endpoints" in gather else [],
        "decisions": picker.decisions(name, params["limit"], params["model"]) if "decisions" in gather else [],
        "metrics": picker.metrics(name, params["metrics"]) if "metrics" in gather else [],
    }


def perform(params: Json, _check_mode: bool, _with_diff: bool) -> Json:
    """Ask: the results, with ``failed`` and ``warnings``."""
    replicas: List[Json] = []
    session = Session(params)
    session.run(lambda client: replicas.extend(look(client, params)))
    results: Json = {"changed": False, "failed": session.failure is not None, "warnings": session.warnings}
    if session.failure:
        return {**results, "msg": session.message}
    made = [decision for replica in replicas for decision in replica["decisions"]]
    picked = Counter(decision["endpoint"] for decision in made if decision["endpoint"])
    return {**results, "replicas": replicas, "picked": dict(picked)}


def main() -> None:
    """Entry point."""
    rules: Json = {"mutually_exclusive": [["service_account", "token"]]}
    finish(AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True, **rules), perform)


if __name__ == "__main__":
    main()
