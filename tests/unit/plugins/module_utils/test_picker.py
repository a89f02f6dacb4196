# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of an endpoint picker's answers. The reading itself is tested on a real one."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.errors import ClusterError, InputError
from ansible_collections.inferops.cluster.plugins.module_utils.picker import Picker, samples, snake

PAGE = r"""
# HELP inference_pool_ready_pods Pods.
# TYPE inference_pool_ready_pods gauge
inference_pool_ready_pods{name="llama"} 3.0
odd_name:total{a="x\"y, {z}",b="line\nfeed"} 1.5e+03 1700000000
plain 7
"""


class FakeClient:
    """Answers with the objects and pages that it is given."""

    def __init__(self, service: dict[str, Any] | None, pods: list[dict[str, Any]], page: tuple[int, str]) -> None:
        self.service, self.pods, self.page = service, pods, page
        self.asked: list[tuple[str, dict[str, str]]] = []

    def find(self, path: str) -> dict[str, Any] | None:
        return self.service

    def list(self, path: str, **query: str) -> list[dict[str, Any]]:
        assert query == {"labelSelector": "app=epp"}
        return self.pods

    def fetch(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        self.asked.append((path, headers))
        return self.page


SERVICE = {"spec": {"selector": {"app": "epp"}}}


def pod(name: str, phase: str = "Running") -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"phase": phase}}


def picker(client: Any, token: str = "") -> Picker:
    return Picker(client, "llm", "llama-epp", 9090, "http", token)


def test_samples_of_a_page() -> None:
    assert list(samples(PAGE)) == [
        {"name": "inference_pool_ready_pods", "labels": {"name": "llama"}, "value": "3.0"},
        {"name": "odd_name:total", "labels": {"a": 'x"y, {z}', "b": "line\nfeed"}, "value": "1.5e+03"},
        {"name": "plain", "labels": {}, "value": "7"},
    ]


def test_fields_get_ansible_names_and_data_stays() -> None:
    answer = {"requestId": "r", "metrics": {"kvCacheUsage": 0.5}, "labels": {"myLabel": "x"}, "list": [{"aB": 1}]}
    assert snake(answer) == {
        "request_id": "r",
        "metrics": {"kv_cache_usage": 0.5},
        "labels": {"myLabel": "x"},
        "list": [{"a_b": 1}],
    }


def test_running_pods_are_asked_with_the_token() -> None:
    client = FakeClient(
        SERVICE, [pod("b"), pod("a"), pod("c", "Pending")], (200, '{"decisions": [{"requestId": "1"}]}')
    )
    asked = picker(client, "t")
    assert [one["metadata"]["name"] for one in asked.pods()] == ["a", "b"]
    assert asked.decisions("a", 5, "org/m") == [{"request_id": "1"}]
    path = "/api/v1/namespaces/llm/pods/http:a:9090/proxy/debug/decisions?limit=5&model=org%2Fm"
    assert client.asked == [(path, {"X-Authorization": "Bearer t"})]


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ((401, "send a bearer token\n"), "401: send a bearer token. Give a `service_account`"),
        ((404, "404: Not Found"), "another kind of endpoint picker"),
        ((502, "bad gateway"), "502: bad gateway"),
        ((200, "<html>"), "is no JSON"),
    ],
)
def test_refusals_say_what_to_do(page: tuple[int, str], said: str) -> None:
    with pytest.raises(ClusterError) as failure:
        picker(FakeClient(SERVICE, [], page)).endpoints("a")
    assert said in str(failure.value)


@pytest.mark.parametrize(
    ("service", "said"),
    [
        (None, "there is no Service llm/llama-epp"),
        ({"spec": {}}, "selects no pods"),
        (SERVICE, r"no pod of the Service llm/llama-epp runs \(1 exist\)"),
    ],
)
def test_a_picker_that_cannot_be_found(service: Any, said: str) -> None:
    with pytest.raises((InputError, ClusterError), match=said):
        picker(FakeClient(service, [pod("a", "Pending")], (200, ""))).pods()
