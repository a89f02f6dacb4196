# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab runs: each component's command line, configuration file and readiness check, in start order."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab import cgroups, network, pki
from lab.state import CONTAINERD_SOCKET, FOLDERS, NODE, Folders

CNI_PROGRAMS = "/usr/lib/cni"
# A fixed name, so that containerd's configuration does not change with the image's content; `lab.images` says what it
# is.
SANDBOX_IMAGE = "localhost/inferops/pause:lab"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager")
FULL = (*CONTROL_PLANE, "kube-scheduler", "containerd", "kubelet", "kube-proxy")
_PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Component:
    """One program. argv: its command line; ready: a quick check that answers whether it does its work."""

    name: str
    argv: list[str]
    ready: Callable[[], bool]


def api_server(plan: network.Plan) -> str:
    """The API server's URL, the same from the machine and from pods."""
    return f"https://{plan.node}:6443"


def certificates(plan: network.Plan) -> list[pki.Certificate]:
    return pki.certificates(NODE, plan.node, plan.first_service)


def write_configuration(plan: network.Plan, folders: Folders = FOLDERS) -> None:
    """Write every configuration file and kubeconfig below the state folder, anew."""
    pki.create(folders.pki, certificates(plan))
    for folder in (folders.config / "cni", folders.log, folders.etcd, folders.containerd, folders.kubelet):
        folder.mkdir(parents=True, exist_ok=True)
    folders.etcd.chmod(0o700)
    names = {
        "controller-manager": "controller-manager",
        "scheduler": "scheduler",
        "kube-proxy": "kube-proxy",
        "kubelet-client": "kubelet",
    }
    for certificate, name in names.items():
        _write(folders.config / f"{name}.kubeconfig", pki.kubeconfig(folders.pki, certificate, api_server(plan)))
    _write(folders.kubeconfig, pki.kubeconfig(folders.pki, "admin", api_server(plan)))
    _write(folders.config / "kubelet.yaml", yaml.safe_dump(kubelet_config(plan, folders), sort_keys=False))
    _write(folders.config / "cni" / "10-inferops.conflist", network.cni_config(plan))
    _write(folders.config / "containerd.toml", containerd_config(folders))
    # CoreDNS and pods with the node's DNS look nothing up outside: the lab has no way out.
    _write(folders.config / "resolv.conf", "# The lab has no name server outside the cluster.\n")


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")


def build(plan: network.Plan, binaries: Mapping[str, str], folders: Folders = FOLDERS) -> dict[str, Component]:
    """Every component whose program is in `binaries` (name → path), in start order."""
    makers: dict[str, Callable[[str], Component]] = {
        "etcd": lambda program: _etcd(program, folders),
        "kube-apiserver": lambda program: _api_server(program, plan, folders),
        "kube-controller-manager": lambda program: _controller_manager(program, plan, folders),
        "kube-scheduler": lambda program: _scheduler(program, folders),
        "containerd": lambda program: _containerd(program, folders),
        "kubelet": lambda program: _kubelet(program, plan, folders),
        "kube-proxy": lambda program: _kube_proxy(program, plan, folders),
        "kwok": lambda program: _kwok(program, folders),
    }
    return {name: make(binaries[name]) for name, make in makers.items() if name in binaries}


def _flags(program: str, **flags: object) -> list[str]:
    """`--some-flag=value` for each keyword; the order is kept."""
    return [program, *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())]


def _etcd(program: str, folders: Folders) -> Component:
    keys = folders.pki
    argv = _flags(
        program,
        name=NODE,
        data_dir=folders.etcd,
        listen_client_urls="https://127.0.0.1:2379",
        advertise_client_urls="https://127.0.0.1:2379",
        listen_peer_urls="http://127.0.0.1:2380",
        initial_advertise_peer_urls="http://127.0.0.1:2380",
        initial_cluster=f"{NODE}=http://127.0.0.1:2380",
        listen_metrics_urls="http://127.0.0.1:2381",
        cert_file=keys / "etcd.crt",
        key_file=keys / "etcd.key",
        client_cert_auth="true",
        trusted_ca_file=keys / "etcd-ca.crt",
        # Nobody speaks JSON to it, and its gateway would need a client certificate of its own.
        enable_grpc_gateway="false",
        auto_compaction_retention="1h",
        # The lab's data may be lost with the machine, and its disks are slow.
        unsafe_no_fsync="true",
        log_level="warn",
    )
    return Component("etcd", argv, lambda: _answers("http://127.0.0.1:2381/readyz"))


def _api_server(program: str, plan: network.Plan, folders: Folders) -> Component:
    keys = folders.pki
    argv = _flags(
        program,
        bind_address="0.0.0.0",
        advertise_address=plan.node,
        secure_port=6443,
        service_cluster_ip_range=plan.services,
        allow_privileged="true",
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        client_ca_file=keys / "ca.crt",
        tls_cert_file=keys / "apiserver.crt",
        tls_private_key_file=keys / "apiserver.key",
        etcd_servers="https://127.0.0.1:2379",
        etcd_cafile=keys / "etcd-ca.crt",
        etcd_certfile=keys / "apiserver-etcd-client.crt",
        etcd_keyfile=keys / "apiserver-etcd-client.key",
        kubelet_certificate_authority=keys / "ca.crt",
        kubelet_client_certificate=keys / "apiserver-kubelet-client.crt",
        kubelet_client_key=keys / "apiserver-kubelet-client.key",
        kubelet_preferred_address_types="InternalIP",
        service_account_issuer="https://kubernetes.default.svc.cluster.local",
        service_account_key_file=keys / "service-account.pub",
        service_account_signing_key_file=keys / "service-account.key",
        requestheader_client_ca_file=keys / "front-proxy-ca.crt",
        requestheader_allowed_names="front-proxy-client",
        requestheader_extra_headers_prefix="X-Remote-Extra-",
        requestheader_group_headers="X-Remote-Group",
        requestheader_username_headers="X-Remote-User",
        proxy_client_cert_file=keys / "front-proxy-client.crt",
        proxy_client_key_file=keys / "front-proxy-client.key",
        # One server and one store: nothing to wait for when it stops.
        shutdown_delay_duration="0s",
    )
    return Component("kube-apiserver", argv, lambda: _answers("https://127.0.0.1:6443/readyz", keys / "ca.crt"))


def _controller_manager(program: str, plan: network.Plan, folders: Folders) -> Component:
    keys, config = folders.pki, folders.config / "controller-manager.kubeconfig"
    argv = _flags(
        program,
        kubeconfig=config,
        authentication_kubeconfig=config,
        authorization_kubeconfig=config,
        bind_address="127.0.0.1",
        leader_elect="false",
        cluster_name=NODE,
        service_cluster_ip_range=plan.services,
        # One static pod range (the CNI's); fake nodes would soon use up a divided one.
        allocate_node_cidrs="false",
        use_service_account_credentials="true",
        client_ca_file=keys / "ca.crt",
        root_ca_file=keys / "ca.crt",
        requestheader_client_ca_file=keys / "front-proxy-ca.crt",
        service_account_private_key_file=keys / "service-account.key",
        cluster_signing_cert_file=keys / "ca.crt",
        cluster_signing_key_file=keys / "ca.key",
    )
    return Component("kube-controller-manager", argv, lambda: _answers("https://127.0.0.1:10257/healthz"))


def _scheduler(program: str, folders: Folders) -> Component:
    config = folders.config / "scheduler.kubeconfig"
    argv = _flags(
        program,
        kubeconfig=config,
        authentication_kubeconfig=config,
        authorization_kubeconfig=config,
        bind_address="127.0.0.1",
        leader_elect="false",
    )
    return Component("kube-scheduler", argv, lambda: _answers("https://127.0.0.1:10259/healthz"))


def _containerd(program: str, folders: Folders) -> Component:
    argv = [program, "--config", str(folders.config / "containerd.toml")]
    return Component("containerd", argv, lambda: _listens(CONTAINERD_SOCKET))


def _kubelet(program: str, plan: network.Plan, folders: Folders) -> Component:
    argv = _flags(
        program,
        config=folders.config / "kubelet.yaml",
        kubeconfig=folders.config / "kubelet.kubeconfig",
        hostname_override=NODE,
        node_ip=plan.node,
    )
    return Component("kubelet", argv, lambda: _answers("http://127.0.0.1:10248/healthz"))


def _kube_proxy(program: str, plan: network.Plan, folders: Folders) -> Component:
    argv = _flags(
        program,
        kubeconfig=folders.config / "kube-proxy.kubeconfig",
        hostname_override=NODE,
        proxy_mode="iptables",
        cluster_cidr=plan.pods,
        healthz_bind_address="127.0.0.1:10256",
        metrics_bind_address="127.0.0.1:10249",
        # The table's size is the machine's and not this namespace's to set.
        conntrack_max_per_core=0,
        conntrack_min=0,
        conntrack_tcp_timeout_established="0s",
        conntrack_tcp_timeout_close_wait="0s",
    )
    return Component("kube-proxy", argv, lambda: _answers("http://127.0.0.1:10256/healthz"))


def _kwok(program: str, folders: Folders) -> Component:
    argv = _flags(
        program,
        kubeconfig=folders.kubeconfig,
        # The lab's own node is a real one.
        manage_all_nodes="false",
        manage_nodes_with_annotation_selector="kwok.x-k8s.io/node=fake",
        server_address="127.0.0.1:10247",
    )
    return Component("kwok", argv, lambda: _answers("http://127.0.0.1:10247/healthz"))


def kubelet_config(plan: network.Plan, folders: Folders) -> dict[str, object]:
    """The KubeletConfiguration object."""
    keys = folders.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(keys / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(keys / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(keys / "kubelet-server.key"),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroups.ROOT}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [plan.dns],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folders.config / "resolv.conf"),
        "maxPods": 250,
        # The disk is the user's, and images cannot be pulled again: never evict or collect because it is rather full.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Pods that wait for one another at the first start are tried again soon.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
        "featureGates": {"KubeletCrashLoopBackOffMax": True},
    }


def containerd_config(folders: Folders) -> str:
    """containerd's TOML. Strings are written as JSON strings, which TOML reads alike."""
    snapshotter = "native" if is_overlay(folders.containerd) else "overlayfs"
    runc = shutil.which("runc") or "runc"
    return f"""version = 2
root = {json.dumps(str(folders.containerd))}
state = "/run/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
"io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = {json.dumps(str(CONTAINERD_SOCKET))}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {json.dumps(SANDBOX_IMAGE)}
  # Lowering oom_score_adj takes a capability that root in a container or a small virtual machine may lack.
  restrict_oom_score_adj = true
  # As containerd 2 has it: a pod without capabilities may listen on port 80.
  enable_unprivileged_ports = true
  stream_server_address = "127.0.0.1"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {json.dumps(CNI_PROGRAMS)}
    conf_dir = {json.dumps(str(folders.config / "cni"))}

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = {json.dumps(snapshotter)}
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = {json.dumps(runc)}
        SystemdCgroup = false
"""


def is_overlay(folder: Path) -> bool:
    """Whether a folder lies on an overlay file system, which cannot carry another one (the checkout is in a
    container).
    """
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4]
        if folder.is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), after.split()[0]
    return kind == "overlay"


def _answers(url: str, authority: Path | None = None) -> bool:
    """Whether a GET gets 200. authority: the CA of an https server; None: a self-made certificate on this node's
    loopback.
    """
    context = ssl.create_default_context(cafile=str(authority) if authority else None)
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        ).open(url, timeout=_PROBE_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        return probe.connect_ex(str(path)) == 0
