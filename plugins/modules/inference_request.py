#!/usr/bin/python

# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: inference_request
short_description: Send completions to an OpenAI-compatible API
version_added: 1.0.0
author:
  - inferops.cluster maintainers (@inferops)
description:
  - Sends one request or many, one after the other or at the same time, and returns what came back, how long it took,
    and which server answered.
  - With O(expect), the task fails when an answer is not as expected. Without it, answers that are errors do not fail
    the task; judge RV(responses) in a later one.
  - Sends nothing in check mode.
options:
  url:
    description:
      - Address of the API, with the path below which it is, for example C(http://llm.example.com/v1).
      - Either O(url) or O(service) is required.
    type: str
  service:
    description:
      - A Service in the cluster that has the API below C(/v1), reached through the API server. No address outside of
        the cluster is needed, but the right to C(create) C(services/proxy).
    type: dict
    suboptions:
      namespace:
        description: Namespace of the Service.
        type: str
        required: true
      name:
        description: Name of the Service.
        type: str
        required: true
      port:
        description: Port of the Service.
        type: int
        required: true
  inference_key:
    description:
      - Key for the API. None is sent if it is empty.
      - It goes along as C(Authorization), as OpenAI's does; through O(service), where the API server takes that header
        for itself, as C(x-litellm-api-key), which LiteLLM takes as well.
    type: str
    default: ""
  model:
    description:
      - Name of the model.
    type: str
    required: true
  prompts:
    description:
      - The prompts, one request for each.
    type: list
    elements: str
    required: true
  path:
    description:
      - What to call.
    type: str
    choices: [chat/completions, completions]
    default: chat/completions
  stream:
    description:
      - Whether to ask for the answer piece by piece.
    type: bool
    default: false
  parameters:
    description:
      - More fields of the request, for example C(max_tokens).
    type: dict
    default: {}
  headers:
    description:
      - More headers of the request. They may be secret, so what they say is in no output; values of fewer than eight
        characters are, as they would blot out half of it.
    type: dict
    default: {}
  concurrency:
    description:
      - How many requests are in progress at the same time.
    type: int
    default: 1
  timeout:
    description:
      - Seconds in which no byte comes, after which a request has failed.
    type: int
    default: 120
  served_header:
    description:
      - Header of the answer that names the server. The default is what LiteLLM makes of the gateway's header; where the
        gateway itself is asked, it is C(x-gateway-destination-endpoint-served).
    type: str
    default: llm_provider-x-gateway-destination-endpoint-served
  expect:
    description:
      - What every answer must be like. An answer that is not fails the task, which tells all that is wrong with each.
    type: dict
    suboptions:
      status:
        description: HTTP statuses of which it must have one.
        type: list
        elements: int
        default: [200]
      served_by:
        description:
          - Servers of which one must have served it, as globs of C(address:port) or of the address alone.
        type: list
        elements: str
      text:
        description: Regular expression, in Python's syntax, that its text must contain a match of.
        type: str
      finish_reason:
        description: Why the text may have ended, for example V(stop).
        type: list
        elements: str
      max_first_token_seconds:
        description: Seconds to its first piece of text (TTFT) at most. Needs O(stream=true).
        type: float
      max_seconds:
        description: Seconds to its end at most.
        type: float
      min_servers:
        description: How many servers must have answered at least, all answers taken together.
        type: int
extends_documentation_fragment:
  - inferops.cluster.attributes
  - kubernetes.core.k8s_auth_options
requirements:
  - python >= 3.10
  - PyYAML >= 5.1
attributes:
  check_mode:
    details: Sends nothing, and returns no answers.
    support: full
  diff_mode:
    details: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: Ask ten times at once
  inferops.cluster.inference_request:
    url: http://llm.example.com/v1
    inference_key: "{{ key }}"
    model: llama-70b
    prompts: "{{ ['Say hello.'] * 10 }}"
    concurrency: 10
    parameters: {max_tokens: 16}
  register: answers

- name: Look for the pods of the model
  inferops.cluster.objects_info:
    queries:
      - {api_version: v1, kind: Pod, namespace: llm-platform, label_selector: inferops.cluster/model=llama-70b}
    fields: [status.podIP]
  register: pods

- name: One completion that must begin within a second, and come from a pod of the model
  inferops.cluster.inference_request:
    service: {namespace: llm-platform, name: litellm, port: 4000}
    inference_key: "{{ key }}"
    model: llama-70b
    prompts: [Say hello.]
    stream: true
    expect:
      served_by: "{{ pods.found[0] | map(attribute='status.podIP') }}"
      max_first_token_seconds: 1
      text: "[Hh]ello"

- name: Ask piece by piece, without an address outside of the cluster
  inferops.cluster.inference_request:
    service: {namespace: llm-platform, name: litellm, port: 4000}
    inference_key: "{{ key }}"
    model: llama-70b
    prompts: [Say hello.]
    stream: true
"""

RETURN = r"""
responses:
  description: One entry for each prompt, in the same order.
  returned: when requests were sent
  type: list
  elements: dict
  contains:
    status:
      description: HTTP status; 0 if no answer came.
      type: int
    text:
      description: Text of the first choice.
      type: str
    error:
      description: What went wrong; empty if nothing did.
      type: str
    headers:
      description: Headers of the answer, their names in lower case.
      type: dict
    served_by:
      description: What the header O(served_header) says; empty if it is not there.
      type: str
    usage:
      description: Numbers of tokens, as the API tells them (C(prompt_tokens), C(completion_tokens) and others).
      type: dict
    finish_reason:
      description: Why the text ended.
      type: str
    chunks:
      description: Number of pieces in which it came; 0 without O(stream).
      type: int
    first_token_seconds:
      description: Seconds to the first piece of text; null without O(stream), and if no text came.
      type: float
    seconds:
      description: Seconds to the end.
      type: float
served:
  description: How many requests each server answered.
  returned: success
  type: dict
  sample: {"10.199.0.7:8000": 6, "10.199.0.9:8000": 4}
failed_count:
  description: How many requests have not been answered with status 200 and without an error.
  returned: success
  type: int
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Set

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils import access, openai
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ClusterError
from ansible_collections.inferops.cluster.plugins.module_utils.judging import EXPECTATIONS, Judge

Json = Dict[str, Any]
SECRET_LENGTH = 8


def argument_spec() -> Json:
    """Options of this module and of kubernetes.core's authentication."""
    service = {
        "namespace": {"type": "str", "required": True},
        "name": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
    }
    return {
        **AUTH_ARG_SPEC,
        "url": {"type": "str"},
        "service": {"type": "dict", "options": service},
        "inference_key": {"type": "str", "default": "", "no_log": True},
        "model": {"type": "str", "required": True},
        "prompts": {"type": "list", "elements": "str", "required": True},
        "path": {"type": "str", "choices": ["chat/completions", "completions"], "default": "chat/completions"},
        "stream": {"type": "bool", "default": False},
        "parameters": {"type": "dict", "default": {}},
        "headers": {"type": "dict", "default": {}, "no_log": True},
        "concurrency": {"type": "int", "default": 1},
        "timeout": {"type": "int", "default": 120},
        "expect": {"type": "dict", "options": EXPECTATIONS},
        "served_header": {"type": "str", "default": "llm_provider-x-gateway-destination-endpoint-served"},
    }


def reach(params: Json) -> openai.Endpoint:
    """The API that the options describe. Raises ClusterError with what is wrong with them."""
    key, timeout = params["inference_key"], float(params["timeout"])
    if params["url"]:
        verify = params["validate_certs"] is not False
        return openai.direct(params["url"], key, timeout, params["ca_cert"], verify)
    service = params["service"]
    proxy = openai.ServiceProxy(access.resolve(params))
    return proxy.endpoint(service["namespace"], service["name"], service["port"], key, timeout)


def request_body(params: Json, prompt: str) -> Json:
    """The body of the request for one prompt."""
    asked: Json = {"prompt": prompt}
    if params["path"] == "chat/completions":
        asked = {"messages": [{"role": "user", "content": prompt}]}
    return {"model": params["model"], **asked, "stream": params["stream"], **params["parameters"]}


def send_all(params: Json) -> List[Json]:
    """Send the request for every prompt; the answers in the order of the prompts."""
    endpoint = reach(params)
    headers = {str(name): str(value) for name, value in params["headers"].items()}

    def send(prompt: str) -> Json:
        answer = openai.ask(endpoint, params["path"], request_body(params, prompt), headers).as_dict()
        answer["served_by"] = answer["headers"].get(params["served_header"].lower(), "")
        return answer

    with ThreadPoolExecutor(params["concurrency"]) as pool:
        return list(pool.map(send, params["prompts"]))


def guard(no_log_values: Set[str], headers: Json) -> None:
    """Have only those values of headers blotted out that can be secret, and of credentials what stands behind their
    scheme, too: servers quote it alone."""
    for value in map(str, headers.values()):
        if len(value) < SECRET_LENGTH:
            no_log_values.discard(value)
        scheme, _space, credentials = value.partition(" ")
        if scheme and len(credentials) >= SECRET_LENGTH:
            no_log_values.add(credentials)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec=argument_spec(), supports_check_mode=True, required_one_of=[["url", "service"]],
        mutually_exclusive=[["url", "service"]],
    )  # fmt: skip
    guard(module.no_log_values, module.params["headers"])
    if module.params["concurrency"] < 1:
        module.fail_json(msg=f"concurrency is {module.params['concurrency']}, but must be 1 or more")
    expect = module.params["expect"]
    if expect and expect["max_first_token_seconds"] is not None and not module.params["stream"]:
        module.fail_json(msg="expect.max_first_token_seconds needs `stream: true`: a whole answer has no first token")
    responses: List[Json] = []
    problems: List[str] = []
    try:
        judge = Judge(expect) if expect else None
        if not module.check_mode:
            responses = send_all(module.params)
            problems = judge.problems(responses) if judge else []
    except ClusterError as error:
        module.fail_json(msg=str(error))
    served = Counter(answer["served_by"] for answer in responses if answer["served_by"])
    failed = sum(answer["status"] != 200 or bool(answer["error"]) for answer in responses)
    results = {"changed": False, "responses": responses, "served": dict(served), "failed_count": failed}
    if problems:
        module.fail_json(msg="\n".join(problems), **results)
    module.exit_json(**results)


if __name__ == "__main__":
    main()
