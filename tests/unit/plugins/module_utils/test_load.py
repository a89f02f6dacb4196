# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and checking the objects of a set."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.load import load_set, refuse_duplicates, title


def config_map(**changes: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, **changes}


def test_documents_lists_and_objects_come_in_order(tmp_path: Path) -> None:
    source = tmp_path / "set.yaml"
    source.write_text(
        "# a comment alone\n---\napiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}\n"
        "- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n---\n"
        "{apiVersion: v1, kind: Secret, metadata: {name: d}}\n"
    )
    found = load_set([config_map()], [str(source)])
    assert [item["metadata"]["name"] for item in found] == ["a", "b", "c", "d"]


def test_yaml_is_read_as_kubernetes_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "set.yaml"
    source.write_text("apiVersion: v1\nkind: X\nmetadata: {name: a}\nspec: {day: 2026-01-02, sign: =, number: 012}\n")
    assert load_set([], [str(source)])[0]["spec"] == {"day": "2026-01-02", "sign": "=", "number": 10}


def test_broken_yaml_names_file_document_and_line(tmp_path: Path) -> None:
    source = tmp_path / "set.yaml"
    source.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\na: [1\nb: 2\n")
    with pytest.raises(InputError, match=r"set\.yaml, document 2, is not valid YAML: line 6"):
        load_set([], [str(source)])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("text", r"objects\[0\], document 1: an object must be a mapping .*, not str"),
        (config_map(apiVersion="V1"), "apiVersion 'V1' is not of the form"),
        (config_map(apiVersion=None), "apiVersion None"),
        (config_map(kind=""), "kind is missing"),
        (config_map(metadata=None), "ConfigMap has no metadata"),
        (config_map(metadata={"generateName": "x-"}), "has no metadata.name .*generateName"),
        (config_map(metadata={"name": "a/b"}), "'a/b' is no valid metadata.name"),
        (config_map(metadata={"name": "a", "namespace": "Not_Valid"}), "invalid namespace 'Not_Valid'"),
        (config_map(data={"port": 80}), "data.port of ConfigMap a must be a string, not int: quote it"),
        (config_map(data=["x"]), "data of ConfigMap a must be a mapping, not list"),
        (config_map(kind="Secret", stringData={"n": 5}), "stringData.n must be a string, not int"),
    ],
)
def test_a_bad_object_is_refused_with_its_place(item: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_set([item], [])


def test_a_bad_secret_is_refused_without_showing_it() -> None:
    with pytest.raises(InputError, match=r"data.password of Secret a is not base64") as caught:
        load_set([config_map(kind="Secret", data={"password": "hunter-two!"})], [])
    assert "hunter" not in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        load_set([config_map(kind=""), config_map(), config_map(metadata=None)], [])
    assert str(caught.value).startswith("objects[0]: ")
    assert "\nobjects[2]: " in str(caught.value)


def test_missing_files_folders_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("---\n")
    with pytest.raises(InputError, match=r"cannot read src .*none.yaml: No such file"):
        load_set([], [str(tmp_path / "none.yaml")])
    with pytest.raises(InputError, match=r"empty.yaml holds no object"):
        load_set([], [str(tmp_path / "empty.yaml")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no manifest \(\*.yaml, "):
        load_set([], [str(tmp_path / "empty")])
    (tmp_path / "empty" / "kustomization.yaml").write_text("resources: []\n")
    with pytest.raises(InputError, match="is made for kustomize: render it first"):
        load_set([], [str(tmp_path / "empty")])


def test_a_folder_is_read_by_name_without_its_subfolders(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.json", "c.yml", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).write_text(f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name[0]}}}}}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.yaml").write_text("wrong: [")
    assert [item["metadata"]["name"] for item in load_set([], [str(tmp_path)])] == ["a", "b", "c"]


def test_text_and_what_was_read_before_come_as_documents() -> None:
    text = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n---\n- {apiVersion: v1, kind: Pod}\n"
    with pytest.raises(InputError, match=r"^objects, document 3\[0\]: Pod has no metadata$"):
        load_set(text)
    read = {"path": "here.yaml", "text": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\n"}
    items = load_set([text.rpartition("---")[0], config_map()], [read], [{"path": "t", "text": "\n"}])
    assert [item["metadata"]["name"] for item in items] == ["x", "a", "y"]
    assert [item["metadata"]["name"] for item in load_set(config_map())] == ["a"]
    with pytest.raises(InputError, match=r"here.yaml, document 1: kind is missing"):
        load_set([], [{**read, "text": "apiVersion: v1"}])


def test_string_data_becomes_data_and_server_fields_go() -> None:
    secret = config_map(
        kind="Secret",
        metadata={"name": "a", "creationTimestamp": None, "uid": "u", "namespace": ""},
        data={"a": base64.b64encode(b"old").decode(), "b": base64.b64encode(b"kept").decode()},
        stringData={"a": "new"},
        status={},
    )
    assert load_set([secret], []) == [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "a"},
            "data": {"a": base64.b64encode(b"new").decode(), "b": base64.b64encode(b"kept").decode()},
        }
    ]
    assert "stringData" in secret


def test_the_same_object_in_another_version_is_a_duplicate() -> None:
    route = {"apiVersion": "g.io/v1", "kind": "Route", "metadata": {"name": "a", "namespace": "n"}}
    with pytest.raises(InputError, match="more than once in the set: Route n/a"):
        refuse_duplicates([route, {**route, "apiVersion": "g.io/v1beta1"}])
    refuse_duplicates([route, {**route, "apiVersion": "other.io/v1"}])


def test_titles_name_kind_namespace_and_name() -> None:
    assert title(config_map()) == "ConfigMap a"
    assert title(config_map(metadata={"name": "a", "namespace": "n"})) == "ConfigMap n/a"
