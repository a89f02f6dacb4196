# SPDX-License-Identifier: GPL-3.0-or-later
"""A real single-node Kubernetes on a Linux machine without Docker, for tests and demonstrations.

Everything in it is the real program: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet,
containerd, runc, kube-proxy and CoreDNS, built from Go modules and taken from Debian packages. README.md beside this
file tells how to use it.
"""
