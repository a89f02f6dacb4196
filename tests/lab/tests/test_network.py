# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice of address ranges."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from lab import network
from lab.errors import LabError


def test_all_parts_lie_in_the_whole_and_none_overlaps_another() -> None:
    plan = network.Plan(199)
    whole = ipaddress.ip_network(plan.whole)
    link = ipaddress.ip_network(f"{plan.node}/30", strict=False)
    parts = [ipaddress.ip_network(plan.pods), ipaddress.ip_network(plan.services), link]
    assert all(part.subnet_of(whole) for part in parts)
    assert not any(a.overlaps(b) for a in parts for b in parts if a is not b)
    assert ipaddress.ip_address(plan.host) in link
    for address in (plan.first_service, plan.dns):
        assert ipaddress.ip_address(address) in ipaddress.ip_network(plan.services)


def test_a_range_that_clashes_is_passed_over() -> None:
    free = network.choose(["192.0.2.0/24", "fd00::/64"])
    taken = network.choose(["192.0.2.0/24", free.pods])
    assert taken.whole != free.whole
    assert network.choose([f"{free.node}/32"]).whole == taken.whole


def test_no_free_range_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(LabError, match="remove one of those routes"):
        network.choose(["10.0.0.0/8"])


def test_the_choice_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(network, "_machine_networks", lambda: used)
    file = tmp_path / "network.json"
    first = network.load(file)
    assert network.load(file) == first
    used.append(first.services)
    with pytest.raises(LabError, match=r"down --purge"):
        network.load(file)


def test_a_wide_route_is_no_clash_and_a_narrow_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "10.0.0.0/8", "dev": "tun0"},
        {"dst": "10.199.4.0/24", "dev": "docker0"},
        {"dst": "10.197.0.0/16", "dev": network.LINK},
    ]
    addresses = [{"ifname": "eth0", "addr_info": [{"local": "192.0.2.2", "prefixlen": 24}]}, {}]
    monkeypatch.setattr(network, "_ip", lambda *words: json.dumps(routes if "route" in words else addresses))
    assert network._machine_networks() == ["10.199.4.0/24", "192.0.2.2"]
    assert network.choose(network._machine_networks()).octet == 197


def test_the_cni_gives_addresses_from_the_pod_range_and_forgets_them_with_the_lab() -> None:
    plan = network.Plan(199)
    pod, ports = json.loads(network.cni_config(plan))["plugins"]
    assert pod["ipam"]["ranges"] == [[{"subnet": plan.pods}]]
    assert pod["ipam"]["dataDir"].startswith("/run/inferops-lab/")
    assert ports == {"type": "portmap", "capabilities": {"portMappings": True}}
