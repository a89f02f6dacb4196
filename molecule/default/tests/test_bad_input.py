# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input gets a clear error and changes nothing."""

import json
import os
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest
import yaml
from kubernetes import client
from target.cluster import ROOT
from target.platform import exchange


@pytest.fixture(scope="module")
def gateway(platform) -> str:
    """The gateway's own address, for what LiteLLM would refuse before it gets there."""
    services = platform.core.list_service_for_all_namespaces(
        label_selector="gateway.envoyproxy.io/owning-gateway-name=inference-gateway"
    ).items
    return f"http://{services[0].spec.cluster_ip}:80"


def post(gateway, model, body: bytes):
    headers = {"Content-Type": "application/json", "X-Gateway-Model-Name": model}
    return exchange(gateway, "POST", "/v1/chat/completions", body, headers, timeout=30)


def generations(platform) -> dict[str, int]:
    """What a changed platform would show: the generation of every Deployment."""
    listed = client.AppsV1Api().list_deployment_for_all_namespaces().items
    return {f"{item.metadata.namespace}/{item.metadata.name}": item.metadata.generation for item in listed}


def altered(change) -> str:
    """The kubeconfig in use with a change, as text."""
    kubeconfig = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    change(kubeconfig)
    return yaml.safe_dump(kubeconfig)


@pytest.fixture
def play(host, inventory, platform):
    """Run site.yml with more variables; the platform must be the same after a failure."""

    def run(variables: dict):
        before = generations(platform)
        command = "cd %s && ANSIBLE_NOCOLOR=1 ansible-playbook -i %s site.yml -e %s"
        result = host.run(command, str(ROOT), inventory, json.dumps(variables))
        assert generations(platform) == before
        return result

    return run


def test_an_unknown_role_variable_is_named_with_its_nearest_match(play):
    result = play({"epp_replica": 2})
    assert result.rc != 0
    assert "epp_replica" in result.stdout
    assert "epp_replicas" in result.stdout


def test_a_mistyped_role_variable_is_named(play):
    result = play({"epp_replicas": "many"})
    assert result.rc != 0
    assert "epp_replicas" in result.stdout
    assert "many" in result.stdout


def test_an_api_server_that_does_not_answer_is_named(play, tmp_path):
    deaf = tmp_path / "kubeconfig"
    deaf.write_text(altered(lambda admin: admin["clusters"][0]["cluster"].update(server="https://127.0.0.1:9")))
    result = play({"inferops_kubeconfig": str(deaf)})
    assert result.rc != 0
    assert "127.0.0.1:9" in result.stdout


def test_missing_rights_are_named(play, platform, tmp_path):
    """A ServiceAccount without rights: who may not do what comes back."""
    account = {"metadata": {"name": "nobody", "namespace": "default"}}
    platform.core.create_namespaced_service_account("default", account)
    try:
        token = platform.core.create_namespaced_service_account_token("nobody", "default", {"spec": {}}).status.token
        weak = tmp_path / "kubeconfig"
        weak.write_text(altered(lambda admin: admin["users"][0].update(user={"token": token})))
        result = play({"inferops_kubeconfig": str(weak)})
    finally:
        platform.core.delete_namespaced_service_account("nobody", "default")
    assert result.rc != 0
    assert "serviceaccount:default:nobody may not get" in result.stdout


def test_invalid_json_is_a_400_with_the_reason(gateway, model):
    answer = post(gateway, model, b'{"model": "x", "messages": [')
    assert answer.status == 400
    assert b"inference error: BadRequest" in answer.body


def test_a_body_without_a_model_is_a_400(gateway, model):
    answer = post(gateway, model, b'{"messages": []}')
    assert answer.status == 400
    assert b"model not found in request body" in answer.body


def test_an_unknown_model_is_litellms_own_error(platform):
    answer = platform.complete("no-such-model", "hello")
    assert answer.status in (400, 404)
    assert "no-such-model" in answer.json()["error"]["message"]


def test_a_wrong_key_is_refused(platform):
    answer = platform.request("GET", "/v1/models", key="sk-wrong")
    assert answer.status in (400, 401), "without a database LiteLLM calls an unknown key a bad request"
    assert b"error" in answer.body


def test_a_pool_without_pods_is_a_503_with_a_reason(gateway, model, platform):
    """The pool's pods are scaled away and come back."""
    apps = client.AppsV1Api()
    replicas = apps.read_namespaced_deployment_scale(model, platform.namespace).spec.replicas
    scale(apps, platform, model, 0)
    try:
        answer = post(gateway, model, json.dumps({"model": model, "messages": [], "max_tokens": 1}).encode())
    finally:
        scale(apps, platform, model, replicas)
    assert answer.status == 503
    assert answer.body.startswith(b"inference error: ServiceUnavailable - failed to find endpoint candidates")
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"


def scale(apps, platform, name: str, replicas: int) -> None:
    """Scale a Deployment and wait until its pods are there, or gone."""
    apps.patch_namespaced_deployment_scale(name, platform.namespace, {"spec": {"replicas": replicas}})
    deadline = monotonic() + 120
    while monotonic() < deadline:
        status = apps.read_namespaced_deployment(name, platform.namespace).status
        if (status.ready_replicas or 0) == replicas and (status.replicas or 0) == replicas:
            return
        sleep(0.5)
    raise AssertionError(f"{name} did not reach {replicas} replicas: {status}")


def test_a_broken_picker_configuration_stops_the_epp_with_the_field(host, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1\n"
        "kind: EndpointPickerConfig\n"
        "plugins:\n"
        "- type: queue-scorerr\n"
    )
    source = ROOT / "files" / "epp" / "src"
    result = host.run(f"PYTHONPATH={source} {sys.executable} -m epp --pool-name x --config-file {path}")
    assert result.rc != 0
    assert f"{path}:4" in result.stderr
    assert "queue-scorer" in result.stderr
