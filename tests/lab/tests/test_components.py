# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines and configuration files, as far as one part must agree with another."""

from __future__ import annotations

import http.server
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab import cgroups, components, network, supervisor
from lab.state import CONTAINERD_SOCKET, Folders

PLAN = network.Plan(199)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / ".lab")


def flags(component: components.Component) -> dict[str, str]:
    pairs = (word.removeprefix("--").partition("=") for word in component.argv[1:])
    return {name: value for name, _, value in pairs}


@pytest.fixture
def built(folders: Folders) -> dict[str, components.Component]:
    return components.build(PLAN, {name: f"/bin/{name}" for name in (*components.FULL, "kwok")}, folders)


def test_components_come_in_start_order(built: dict[str, components.Component]) -> None:
    assert list(built) == [*components.FULL, "kwok"]
    assert {name for names in supervisor._AFTER.values() for name in names} <= set(built)


def test_only_programs_that_are_there_become_components(folders: Folders) -> None:
    assert list(components.build(PLAN, {"etcd": "/x/etcd"}, folders)) == ["etcd"]


def test_every_component_is_stopped_just_once() -> None:
    stopped = [*supervisor._STOP_FIRST, *supervisor._STOP_LAST]
    assert sorted(stopped) == sorted([*components.FULL, "kwok"])


def test_admission_and_authorization_are_a_real_clusters(built: dict[str, components.Component]) -> None:
    api = flags(built["kube-apiserver"])
    assert api["authorization-mode"] == "Node,RBAC"
    assert "disable-admission-plugins" not in api
    assert "anonymous-auth" not in api
    assert api["service-cluster-ip-range"] == PLAN.services


def test_every_file_that_a_component_is_given_is_written(folders: Folders) -> None:
    components.write_configuration(PLAN, folders)
    built = components.build(PLAN, {name: f"/bin/{name}" for name in (*components.FULL, "kwok")}, folders)
    named = {
        Path(value)
        for component in built.values()
        for value in (*flags(component).values(), *component.argv[1:])
        if value.startswith(str(folders.root))
    }
    assert len(named) > 20
    assert sorted(str(path) for path in named if not path.exists()) == []


def test_configuration_is_written_anew_and_keys_are_kept(folders: Folders) -> None:
    components.write_configuration(PLAN, folders)
    key = (folders.pki / "ca.key").read_bytes()
    (folders.config / "kubelet.yaml").write_text("broken", encoding="utf-8")
    components.write_configuration(PLAN, folders)
    assert yaml.safe_load((folders.config / "kubelet.yaml").read_text())["kind"] == "KubeletConfiguration"
    assert (folders.pki / "ca.key").read_bytes() == key
    assert folders.kubeconfig.stat().st_mode & 0o777 == 0o600


def test_the_kubelet_uses_the_labs_group_runtime_and_dns(folders: Folders) -> None:
    config = components.kubelet_config(PLAN, folders)
    assert config["cgroupRoot"] == f"/{cgroups.ROOT}"
    assert config["containerRuntimeEndpoint"] == f"unix://{CONTAINERD_SOCKET}"
    assert config["clusterDNS"] == [PLAN.dns]
    assert config["authentication"] == {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": str(folders.pki / "ca.crt")},
    }


def test_containerds_configuration_is_toml_and_keeps_its_data_in_the_state_folder(folders: Folders) -> None:
    config = tomllib.loads(components.containerd_config(folders))
    assert config["root"] == str(folders.containerd)
    assert config["grpc"]["address"] == str(CONTAINERD_SOCKET)
    # A Unix socket's path has at most 107 bytes.
    assert len(str(CONTAINERD_SOCKET)) < 100
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == components.SANDBOX_IMAGE
    assert cri["cni"]["conf_dir"] == str(folders.config / "cni")


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Tests stay quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_check_passes_on_200_only(server: str) -> None:
    assert components._answers(f"{server}/readyz")
    assert not components._answers(f"{server}/other")


def test_a_check_of_nobody_fails_quietly(tmp_path: Path) -> None:
    assert not components._answers("http://127.0.0.1:9/readyz")
    assert not components._listens(tmp_path / "none.sock")
