# SPDX-License-Identifier: GPL-3.0-or-later
"""`.lab/facts.yml`: what a playbook or a test needs to know of the running lab."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from lab import network
from lab.state import FOLDERS, NODE


def write(plan: network.Plan, images: Mapping[str, str], manifests: Mapping[str, object]) -> None:
    """Write the facts, whole or not at all. images: key → reference; manifests: as `manifests.ensure` returns them."""
    facts = {
        "kubeconfig": str(FOLDERS.kubeconfig),
        "node": {"name": NODE, "address": plan.node},
        "images": dict(images),
        "manifests": dict(manifests),
    }
    partial = FOLDERS.facts.with_suffix(".partial")
    partial.write_text("# Written by `python -m lab up`.\n" + yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")
    partial.rename(FOLDERS.facts)
