# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which kinds are written, and its reverse in which they are deleted."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, TypeVar

T = TypeVar("T")

CRDS, NAMESPACES, CLUSTER, ACCOUNTS, CONFIG, BINDINGS, NETWORK, WORKLOADS, CUSTOM, INTERCEPTORS = range(10)

# What others need to exist first comes first; what can refuse or redirect other writes comes last.
RANKS: Dict[str, int] = {
    "CustomResourceDefinition": CRDS,
    "Namespace": NAMESPACES,
    **dict.fromkeys(
        ("PriorityClass", "RuntimeClass", "StorageClass", "IngressClass", "CSIDriver", "PersistentVolume"), CLUSTER
    ),
    # Deleted after its Gateways, and not with them: Envoy Gateway may then fail to release it, and does not try again.
    "GatewayClass": CLUSTER,
    **dict.fromkeys(("ResourceQuota", "LimitRange", "NetworkPolicy"), CLUSTER),
    # Before Secrets: Kubernetes deletes a token whose account it does not find.
    "ServiceAccount": ACCOUNTS,
    **dict.fromkeys(("ConfigMap", "Secret", "ClusterRole", "Role", "PersistentVolumeClaim"), CONFIG),
    **dict.fromkeys(("ClusterRoleBinding", "RoleBinding"), BINDINGS),
    **dict.fromkeys(("Service", "Endpoints", "EndpointSlice"), NETWORK),
    **dict.fromkeys(
        ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob", "Pod"),
        WORKLOADS,
    ),
    **dict.fromkeys(("PodDisruptionBudget", "HorizontalPodAutoscaler"), WORKLOADS),
    **dict.fromkeys(
        (
            "APIService",
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
            "MutatingAdmissionPolicy",
            "MutatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ),
        INTERCEPTORS,
    ),
}
BUILT_IN_GROUPS = ("", "apps", "batch", "autoscaling", "policy")


def rank(item: Dict[str, Any]) -> int:
    """The place of an object in the order of writing; kinds of other API groups are custom resources."""
    group = item["apiVersion"].rpartition("/")[0]
    if group in BUILT_IN_GROUPS or group.endswith(".k8s.io"):
        return RANKS.get(item["kind"], CUSTOM)
    return CUSTOM


def phases(items: Iterable[T], rank_of: Callable[[T], int]) -> List[List[T]]:
    """``items`` in groups of one rank, first to be written first; inside a group the given order is kept."""
    groups: Dict[int, List[T]] = {}
    for item in items:
        groups.setdefault(rank_of(item), []).append(item)
    return [groups[number] for number in sorted(groups)]
