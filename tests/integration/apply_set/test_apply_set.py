# SPDX-License-Identifier: GPL-3.0-or-later
"""What apply_set does to a cluster: one test for each behaviour that its documentation promises."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from .conftest import Cluster, Front, Json, Run
from .objects import actions, config_map, crd, custom, deployment, namespace

pytestmark = pytest.mark.cluster


def test_a_set_is_created_then_left_alone_then_updated(cluster: Cluster, playbook: Run) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa"}}
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": "b"}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": ports}}
    items = [deployment(), service, secret, config_map("cm", a="1"), account, namespace(cluster.namespace)]
    changed = [*items[:3], config_map("cm", b="1"), *items[4:]]
    given = {"namespace": cluster.namespace}
    first, second = playbook({**given, "objects": items}, {**given, "objects": items})
    assert (first["changed"], actions(first)) == (True, ["created"] * 6)
    assert (second["changed"], actions(second)) == (False, ["unchanged"] * 6)
    kinds = [
        ("Deployment", "web", "apps/v1"),
        ("Service", "web", "v1"),
        ("Secret", "s", "v1"),
        ("ConfigMap", "cm", "v1"),
    ]
    before = {kind: cluster.get(kind, name, version).metadata.generation for kind, name, version in kinds}
    third, fourth = playbook({**given, "objects": changed}, {**given, "objects": changed})
    assert actions(third) == ["unchanged"] * 3 + ["updated"] + ["unchanged"] * 2
    assert not fourth["changed"]
    assert cluster.get("ConfigMap", "cm").data.to_dict() == {"b": "1"}
    assert {kind: cluster.get(kind, name, version).metadata.generation for kind, name, version in kinds} == before


def test_what_others_changed_or_deleted_is_put_right(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "objects": [config_map("cm", a="1"), config_map("gone", a="1")], "force": True}
    module(task)
    made.merge("ConfigMap", "cm", {"data": {"a": "2", "theirs": "kept"}}, "somebody")
    made.delete("ConfigMap", "gone")
    looked = module(task, check=True)[0]
    assert actions(looked) == ["updated", "created"]
    assert made.get("ConfigMap", "gone") is None
    repaired, after = module(task, task)
    assert actions(repaired) == ["updated", "created"]
    assert not after["changed"]
    assert made.get("ConfigMap", "cm").data.to_dict() == {"a": "1", "theirs": "kept"}


def test_a_conflict_names_field_and_manager_and_changes_nothing(made: Cluster, module: Run) -> None:
    task = {"namespace": made.namespace, "objects": [config_map("cm", a="1", b="1")]}
    module(task)
    made.merge("ConfigMap", "cm", {"data": {"a": "theirs"}}, "kubectl-edit")
    version = made.version("ConfigMap", "cm")
    more = {**task, "objects": [*task["objects"], config_map("new")]}
    refused = module(more)[0]
    assert refused["failed"]
    assert not refused["changed"]
    assert (
        f"ConfigMap {made.namespace}/cm: other field managers hold .data.a (managed by kubectl-edit)" in refused["msg"]
    )
    assert "`force: true`" in refused["msg"]
    assert "Nothing was changed." in refused["msg"]
    assert made.version("ConfigMap", "cm") == version
    assert made.get("ConfigMap", "new") is None
    forced, again = module({**more, "force": True}, more)
    assert actions(forced) == ["updated", "created"]
    assert not again["changed"]
    assert made.get("ConfigMap", "cm").data.a == "1"


def test_check_mode_works_where_nothing_exists_yet(cluster: Cluster, playbook: Run) -> None:
    group = f"{secrets.token_hex(4)}.example.com"
    items = [
        custom("Thing", group, "a", 1),
        crd("Thing", group),
        config_map("cm", a="1"),
        namespace(cluster.namespace),
        custom("FromAnEarlierSet", f"other.{group}", "b", 1),
    ]
    given = {"namespace": cluster.namespace, "wait": True, "objects": items}
    elsewhere = {"namespace": f"{cluster.namespace}-of-an-earlier-set", "objects": [config_map("cm")]}
    first, second = playbook(given, elsewhere, options=("--check", "--diff"))
    assert actions(first) == ["created"] * 5
    assert len(first["diff"]) == 5
    assert actions(second) == ["created"]
    assert cluster.get("Namespace", cluster.namespace) is None
    assert cluster.get("CustomResourceDefinition", f"things.{group}", "apiextensions.k8s.io/v1") is None


def test_a_definition_and_its_objects_in_one_set(cluster: Cluster, module: Run) -> None:
    group = f"{secrets.token_hex(4)}.example.com"
    definition = crd("Thing", group)
    given: Json = {"namespace": cluster.namespace, "wait": True, "wait_timeout": 60}
    items = [custom("Thing", group, "a", 1), definition, namespace(cluster.namespace)]
    created, again = module({**given, "objects": items}, {**given, "objects": items})
    assert actions(created) == ["created"] * 3
    assert all(entry["ready"] for entry in created["objects"])
    assert not again["changed"]
    wider = crd("Thing", group)
    schema = wider["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema["properties"]["color"] = {"type": "string"}
    colored = custom("Thing", group, "a", 1)
    colored["spec"]["color"] = "red"
    grown = {**given, "objects": [colored, wider, namespace(cluster.namespace)]}
    looked = module(grown, check=True)[0]
    assert actions(looked) == ["updated", "updated", "unchanged"]
    changed, removed, gone = module(grown, {**grown, "state": "absent"}, {**grown, "state": "absent"})
    assert actions(changed) == ["updated", "updated", "unchanged"]
    assert actions(removed) == ["deleted"] * 3
    assert (gone["changed"], actions(gone)) == (False, ["absent"] * 3)
    assert cluster.get("Namespace", cluster.namespace) is None


def test_secrets_show_neither_in_diffs_nor_in_verbose_output(made: Cluster, playbook: Run) -> None:
    def task(value: str) -> Json:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"password": value}}
        return {"namespace": made.namespace, "objects": [secret]}

    output: list[str] = []
    results = playbook(task("correct-horse"), task("battery-staple"), options=("--diff", "-vvvv"), output=output)
    assert results[1]["diff"][0]["before"] != results[1]["diff"][0]["after"]
    assert "(hidden, " in results[1]["diff"][0]["after"]
    for word in ("correct-horse", "battery-staple", "Y29ycmVjdC1ob3JzZQ==", "YmF0dGVyeS1zdGFwbGU="):
        assert word not in output[0]
        assert word not in str(results)
    assert results[0]["objects"][0]["name"] == "s"


def test_a_diff_shows_no_server_fields(made: Cluster, module: Run) -> None:
    given = {"namespace": made.namespace}
    objects = [{**given, "objects": [config_map("cm", a=value)]} for value in ("1", "2")]
    diff = module(*objects, diff=True)[1]["diff"][0]
    assert yaml.safe_load(diff["after"]) == {**config_map("cm", a="2"), "metadata": {"name": "cm", **given}}
    assert diff["before"].replace("'1'", "'2'") == diff["after"]


def test_waiting_in_vain_tells_why(made: Cluster, module: Run) -> None:
    items = [deployment(serviceAccountName="nobody"), config_map("cm")]
    task = {"namespace": made.namespace, "objects": items, "wait": True, "wait_timeout": 4}
    failed = module(task)[0]
    assert failed["failed"]
    assert failed["changed"]
    assert "1 of 2 objects were not ready after 4 s" in failed["msg"]
    assert f"Deployment {made.namespace}/web: 0 of 1 replicas" in failed["msg"]
    assert 'serviceaccount "nobody" not found' in failed["msg"]
    assert [entry["ready"] for entry in failed["objects"]] == [False, True]
    waited = module(task)[0]
    assert waited["failed"]
    assert not waited["changed"]


def test_a_wait_that_cannot_end_is_not_waited_for(made: Cluster, module: Run) -> None:
    pod = deployment()["spec"]["template"]["spec"]
    template = {"spec": {**pod, "restartPolicy": "Never"}}
    job: Json = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"suspend": True}}
    job["spec"]["template"] = template
    task = {"namespace": made.namespace, "objects": [job, deployment(serviceAccountName="nobody")], "wait": True}
    failed = module(task)[0]
    assert f"Job {made.namespace}/j: the job is suspended" in failed["msg"]


def test_a_credential_plugin_of_the_kubeconfig_is_asked(
    made: Cluster, module: Run, configuration: client.Configuration, tmp_path: Path
) -> None:
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    (tmp_path / "credential.json").write_text(json.dumps({**credential, "status": {"token": made.token("poor")}}))
    plugin = {"apiVersion": credential["apiVersion"], "command": "cat", "args": [str(tmp_path / "credential.json")]}
    login = {
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": configuration.host, "certificate-authority": configuration.ssl_ca_cert}}
        ],
        "users": [{"name": "u", "user": {"exec": {**plugin, "interactiveMode": "Never"}}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(login))
    refused = module({"kubeconfig": str(path), "namespace": made.namespace, "objects": [config_map("a")]})[0]
    assert f"user system:serviceaccount:{made.namespace}:poor may not get configmaps" in refused["msg"]


def test_absent_waits_for_finalizers_and_says_who_holds(made: Cluster, module: Run) -> None:
    held = config_map("held")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    given = {"namespace": made.namespace, "objects": [held, config_map("free")]}
    absent = {**given, "state": "absent", "wait": True, "wait_timeout": 2}
    _created, looked = module(given)[0], module(absent, check=True)[0]
    assert actions(looked) == ["deleted", "deleted"]
    stuck = module(absent)[0]
    assert "1 objects still exist after 2 s" in stuck["msg"]
    assert "held: is being deleted (held by example.com/hold)" in stuck["msg"]
    made.merge("ConfigMap", "held", {"metadata": {"finalizers": []}}, "its-controller")
    done = module(absent)[0]
    assert actions(done) == ["absent", "absent"]
    assert made.get("ConfigMap", "free") is None


def test_invalid_objects_are_told_together_and_nothing_is_changed(made: Cluster, module: Run) -> None:
    wrong_name = config_map("Not_A_Name")
    wrong_field = deployment("typo", containerz=[])
    task = {"namespace": made.namespace, "objects": [config_map("good"), wrong_name, wrong_field]}
    refused = module(task)[0]
    assert "2 of 3 objects were refused" in refused["msg"]
    assert f"ConfigMap {made.namespace}/Not_A_Name: metadata.name: Invalid value" in refused["msg"]
    assert "containerz" in refused["msg"]
    assert "Nothing was changed." in refused["msg"]
    assert not refused["changed"]
    assert made.get("ConfigMap", "good") is None


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({**config_map("a"), "kind": "ConfigMao"}, "v1 has no kind ConfigMao; did you mean ConfigMap?"),
        (
            {**config_map("a"), "apiVersion": "nothing.example.com/v1"},
            "does not serve nothing.example.com/v1: its Custom",
        ),
        ({**deployment(), "apiVersion": "apps/v1beta1"}, "serves the group apps as v1, not as v1beta1"),
    ],
)
def test_unknown_kinds_are_told_before_anything_happens(made: Cluster, module: Run, item: Json, said: str) -> None:
    refused = module({"namespace": made.namespace, "objects": [config_map("good"), item]})[0]
    assert said in refused["msg"]
    assert made.get("ConfigMap", "good") is None


def test_a_missing_namespace_is_named(cluster: Cluster, module: Run) -> None:
    nowhere, unsaid = module(
        {"namespace": cluster.namespace, "objects": [config_map("a")]}, {"objects": [config_map("a")]}
    )
    assert f"the namespace {cluster.namespace} does not exist: add it to the set" in nowhere["msg"]
    assert "ConfigMap a names no namespace" in unsaid["msg"]


def test_an_immutable_field_is_told_with_a_way_out(made: Cluster, module: Run) -> None:
    other = deployment()
    other["spec"]["selector"] = {"matchLabels": {"app": "other"}}
    other["spec"]["template"]["metadata"] = {"labels": {"app": "other"}}
    given = {"namespace": made.namespace}
    refused = module({**given, "objects": [deployment()]}, {**given, "objects": [other]})[1]
    assert f"Deployment {made.namespace}/web: spec.selector: Invalid value" in refused["msg"]
    assert "delete the object first (`state: absent`)" in refused["msg"]


def test_missing_rights_are_named_and_nothing_is_changed(
    made: Cluster, module: Run, configuration: client.Configuration
) -> None:
    token = made.token("poor")
    login = {"kubeconfig": None, "host": configuration.host, "api_key": token, "ca_cert": configuration.ssl_ca_cert}
    task = {**login, "namespace": made.namespace, "objects": [config_map("a"), config_map("b")]}
    refused, wrong = module(task, {**task, "api_key": "wrong"})
    user = f"system:serviceaccount:{made.namespace}:poor"
    assert f"user {user} may not get configmaps in namespace {made.namespace}" in refused["msg"]
    assert f"Role or ClusterRole on {configuration.host}" in refused["msg"]
    assert "Nothing was changed." in refused["msg"]
    assert "does not accept these credentials (401)" in wrong["msg"]
    assert made.get("ConfigMap", "a") is None


def test_an_unreachable_server_is_one_sentence(module: Run) -> None:
    login = {"kubeconfig": None, "host": "https://127.0.0.1:1", "api_key": "x"}
    refused = module({**login, "namespace": "n", "objects": [config_map("a")]})[0]
    assert "the API server https://127.0.0.1:1 cannot be reached at all: Connection refused" in refused["msg"]
    assert not refused["changed"]


def test_an_untrusted_certificate_is_one_sentence(module: Run, configuration: client.Configuration) -> None:
    login = {"kubeconfig": None, "host": configuration.host, "api_key": "x"}
    refused = module({**login, "namespace": "n", "objects": [config_map("a")]})[0]
    assert f"the certificate of the API server {configuration.host} is not trusted" in refused["msg"]


def test_somebody_elses_file_is_patched_and_thinned_out(made: Cluster, module: Run, tmp_path: Path) -> None:
    source = tmp_path / "operator.yaml"
    source.write_text(yaml.safe_dump_all([deployment("operator"), config_map("left-out"), config_map("kept", a="1")]))
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "localhost/other:2"}]}}}}
    task = {
        "namespace": made.namespace,
        "src": [str(source)],
        "exclude": [{"kind": "ConfigMap", "name": "left-*"}],
        "patches": [{"kind": "Deployment", "patch": patch}],
    }
    applied, again = module(task, task)
    assert actions(applied) == ["created", "created"]
    assert not again["changed"]
    assert made.get("ConfigMap", "left-out") is None
    container = made.get("Deployment", "operator", "apps/v1").spec.template.spec.containers[0]
    assert (container.image, container.ports[0].containerPort) == ("localhost/other:2", 80)


def test_two_hundred_unchanged_objects_cost_a_few_reads(made: Cluster, module: Run, front: tuple[Front, Json]) -> None:
    counted, login = front
    items = [config_map(f"cm-{number}", a=str(number)) for number in range(200)]
    task = {**login, "namespace": made.namespace, "objects": items}
    created = module(task)[0]
    assert actions(created) == ["created"] * 200
    versions = [made.version("ConfigMap", name) for name in ("cm-0", "cm-199")]
    counted.counts.clear()
    again = module(task)[0]
    assert actions(again) == ["unchanged"] * 200
    assert counted.counts == {"GET": 2}
    assert [made.version("ConfigMap", name) for name in ("cm-0", "cm-199")] == versions


def test_broken_connections_are_outlived(made: Cluster, module: Run, front: tuple[Front, Json]) -> None:
    flaky, login = front
    flaky.drop_every = 3
    items = [config_map(f"cm-{number}", a=str(number)) for number in range(12)]
    applied = module({**login, "namespace": made.namespace, "objects": items})[0]
    assert actions(applied) == ["created"] * 12
    assert flaky.dropped > 5
    assert made.get("ConfigMap", "cm-11").data.a == "11"


def test_an_object_of_somebody_else_is_adopted_without_a_change_of_content(made: Cluster, module: Run) -> None:
    body = config_map("cm", a="1")
    made.api.resources.get(api_version="v1", kind="ConfigMap").create(body=body, namespace=made.namespace)
    task = {"namespace": made.namespace, "objects": [body]}
    adopted, again = module(task, task)
    assert actions(adopted) == ["updated"]
    assert adopted["objects"][0]["reason"] == "only the ownership of its fields goes to inferops.cluster"
    assert not again["changed"]
