# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificates: who signed them, for whom, and which names they answer to."""

from __future__ import annotations

import base64
import ipaddress
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab import pki


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("state") / "pki"
    pki.create(made, pki.certificates("lab", "10.199.255.1", "10.199.128.1"))
    return made


def load(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def names(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = extension.get_values_for_type(x509.IPAddress)
    return {*extension.get_values_for_type(x509.DNSName), *map(str, addresses)}


def test_the_api_server_answers_to_every_name_that_clients_use(folder: Path) -> None:
    assert names(load(folder, "apiserver")) == {
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "lab",
        "127.0.0.1",
        "10.199.128.1",
        "10.199.255.1",
    }


@pytest.mark.parametrize(
    ("leaf", "authority"),
    [
        ("apiserver", "ca"),
        ("admin", "ca"),
        ("kubelet-server", "ca"),
        ("etcd", "etcd-ca"),
        ("apiserver-etcd-client", "etcd-ca"),
        ("front-proxy-client", "front-proxy-ca"),
    ],
)
def test_each_leaf_is_signed_by_its_own_authority_only(folder: Path, leaf: str, authority: str) -> None:
    certificate = load(folder, leaf)
    certificate.verify_directly_issued_by(load(folder, authority))
    for other in {"ca", "etcd-ca", "front-proxy-ca"} - {authority}:
        with pytest.raises(ValueError):
            certificate.verify_directly_issued_by(load(folder, other))


def test_the_kubelets_client_is_what_the_node_authorizer_expects(folder: Path) -> None:
    subject = load(folder, "kubelet-client").subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:lab"
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"


@pytest.mark.parametrize(
    ("name", "usage"),
    [("etcd", ExtendedKeyUsageOID.SERVER_AUTH), ("scheduler", ExtendedKeyUsageOID.CLIENT_AUTH)],
)
def test_servers_cannot_act_as_clients_nor_clients_as_servers(
    folder: Path, name: str, usage: x509.ObjectIdentifier
) -> None:
    assert list(load(folder, name).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]


def test_keys_are_readable_by_their_owner_only(folder: Path) -> None:
    keys = sorted(folder.glob("*.key"))
    assert len(keys) == 15
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_a_second_call_changes_nothing(folder: Path) -> None:
    before = (folder / "ca.crt").read_bytes()
    pki.create(folder, pki.certificates("lab", "10.1.255.1", "10.1.128.1"))
    assert (folder / "ca.crt").read_bytes() == before
    assert ipaddress.ip_address("10.199.255.1") in load(folder, "apiserver").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value.get_values_for_type(x509.IPAddress)


def test_the_kubeconfig_carries_all_it_needs(folder: Path) -> None:
    config = yaml.safe_load(pki.kubeconfig(folder, "admin", "https://10.199.255.1:6443"))
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    assert cluster["server"] == "https://10.199.255.1:6443"
    assert base64.b64decode(cluster["certificate-authority-data"]) == (folder / "ca.crt").read_bytes()
    assert base64.b64decode(user["client-certificate-data"]) == (folder / "admin.crt").read_bytes()
    assert base64.b64decode(user["client-key-data"]) == (folder / "admin.key").read_bytes()
    assert config["current-context"] == config["contexts"][0]["name"]
