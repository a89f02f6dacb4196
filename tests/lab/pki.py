# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster's certificates, as kubeadm lays them out: three authorities, so that a client of one is nothing to
another.

`ca` signs Kubernetes' servers and clients, `etcd-ca` the store and its only client, `front-proxy-ca` the API
aggregator.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALIDITY = datetime.timedelta(days=3650)
# Clocks of containers and hosts differ a little.
_BACKDATE = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Certificate:
    """What to issue: the file's name, its authority, the subject, and for servers the names and addresses they
    answer to.
    """

    name: str
    authority: str
    common_name: str
    organisation: str | None = None
    sans: Sequence[str] = ()


def certificates(node: str, node_address: str, service_address: str) -> list[Certificate]:
    """All leaf certificates of the cluster.

    node: the node's name; node_address: its address, where the API server also answers; service_address: the first
    address of the service range, which is the `kubernetes` Service.
    """
    api_names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    return [
        Certificate("etcd", "etcd-ca", "etcd", sans=["localhost", "127.0.0.1"]),
        Certificate("apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client"),
        Certificate("front-proxy-client", "front-proxy-ca", "front-proxy-client"),
        Certificate(
            "apiserver",
            "ca",
            "kube-apiserver",
            sans=[*api_names, "localhost", node, "127.0.0.1", service_address, node_address],
        ),
        Certificate("apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", "system:masters"),
        Certificate("admin", "ca", "kubernetes-admin", "system:masters"),
        Certificate("controller-manager", "ca", "system:kube-controller-manager"),
        Certificate("scheduler", "ca", "system:kube-scheduler"),
        Certificate("kube-proxy", "ca", "system:kube-proxy"),
        Certificate("kubelet-client", "ca", f"system:node:{node}", "system:nodes"),
        Certificate("kubelet-server", "ca", node, sans=[node, node_address, "127.0.0.1"]),
    ]


def create(folder: Path, wanted: Sequence[Certificate]) -> None:
    """Make all authorities, certificates and the service-account key in `folder`, unless it exists already."""
    if folder.exists():
        return
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True, mode=0o700)
    authorities = {name: _authority(scratch, name) for name in dict.fromkeys(c.authority for c in wanted)}
    for certificate in wanted:
        _issue(scratch, certificate, *authorities[certificate.authority])
    service_account = ec.generate_private_key(ec.SECP256R1())
    _write_key(scratch / "service-account.key", service_account)
    public = service_account.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (scratch / "service-account.pub").write_bytes(public)
    scratch.rename(folder)


def kubeconfig(folder: Path, certificate: str, server: str) -> str:
    """A kubeconfig (YAML text) for one client certificate, with everything embedded. server: the API server's URL."""

    def data(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}],
            "users": [
                {
                    "name": certificate,
                    "user": {
                        "client-certificate-data": data(f"{certificate}.crt"),
                        "client-key-data": data(f"{certificate}.key"),
                    },
                }
            ],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": certificate}}],
            "current-context": "lab",
        },
        sort_keys=False,
    )


def _authority(folder: Path, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"inferops lab {name}")])
    builder = (
        _builder(subject, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    _write(folder, name, certificate, key)
    return certificate, key


def _issue(folder: Path, wanted: Certificate, issuer: x509.Certificate, issuer_key: ec.EllipticCurvePrivateKey) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name)]
    if wanted.organisation:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, wanted.organisation))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH if wanted.sans else ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(x509.Name(attributes), issuer.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    if wanted.sans:
        builder = builder.add_extension(x509.SubjectAlternativeName([_san(san) for san in wanted.sans]), critical=False)
    _write(folder, wanted.name, builder.sign(issuer_key, hashes.SHA256()), key)


def _san(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _VALIDITY)
    )


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / f"{name}.key", key)


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
