# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's addresses and its one link to the machine.

The whole cluster lives in a network namespace of its own. A veth pair joins it to the machine: `inferops0` outside,
`eth0` (the node's address) inside, and one route outside for the lab's /16. So pods, Services and the API server are
reachable from the machine by their own addresses, kube-proxy's and the CNI's rules never meet the machine's, and all
of it ends with the namespace. Nothing routes further than the machine: pods have no way to the internet.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

LINK = "inferops0"
# Second octets of 10.x.0.0/16, rarely used ones first; the first that clashes with nothing on the machine is taken.
_CANDIDATES = (199, 197, 195, 193, 191, 189, 187, 185, 183, 181)


@dataclass(frozen=True)
class Plan:
    """All addresses of a lab, within one /16.

    pods: the range that the CNI gives addresses from; services: ClusterIPs; node: the node's address (API server,
    NodePorts); host: the machine's side of the link.
    """

    octet: int

    @property
    def whole(self) -> str:
        return f"10.{self.octet}.0.0/16"

    @property
    def pods(self) -> str:
        return f"10.{self.octet}.0.0/22"

    @property
    def services(self) -> str:
        return f"10.{self.octet}.128.0/20"

    @property
    def first_service(self) -> str:
        """The `kubernetes` Service."""
        return f"10.{self.octet}.128.1"

    @property
    def dns(self) -> str:
        return f"10.{self.octet}.128.10"

    @property
    def node(self) -> str:
        return f"10.{self.octet}.255.1"

    @property
    def host(self) -> str:
        return f"10.{self.octet}.255.2"


def choose(used: Sequence[str]) -> Plan:
    """The first candidate that overlaps none of the networks in `used` (CIDR texts). Raises LabError when all do."""
    networks = [ipaddress.ip_network(text, strict=False) for text in used]
    for octet in _CANDIDATES:
        plan = Plan(octet)
        if not any(ipaddress.ip_network(plan.whole).overlaps(network) for network in networks if network.version == 4):
            return plan
    raise LabError(
        f"Every address range that the lab may use (10.x.0.0/16 for x in {', '.join(map(str, _CANDIDATES))}) "
        "overlaps an address or a route of this machine; remove one of those routes (see `ip route`)."
    )


def load(file: Path) -> Plan:
    """The lab's plan: the one in `file`, else a new one, written there. Raises LabError when it clashes with the
    machine.
    """
    used = _machine_networks()
    if not file.exists():
        plan = choose(used)
        file.write_text(json.dumps({"octet": plan.octet}) + "\n", encoding="utf-8")
        return plan
    plan = Plan(int(json.loads(file.read_text(encoding="utf-8"))["octet"]))
    mine = ipaddress.ip_network(plan.whole)
    for text in used:
        if mine.overlaps(ipaddress.ip_network(text, strict=False)):
            raise LabError(
                f"This machine now uses {text}, which overlaps the lab's range {plan.whole}; "
                "run `python -m lab down --purge` and `up` again for a lab in another range."
            )
    return plan


def _machine_networks() -> list[str]:
    """IPv4 networks that the lab's /16 must not overlap: the machine's addresses, and its routes as narrow as ours or
    narrower.

    A wider route (a VPN's 10.0.0.0/8) is no clash, because ours is more specific.
    """
    found = []
    for entry in json.loads(_ip("-json", "-4", "route", "show", "table", "all")):
        if entry.get("dev") == LINK or entry["dst"] == "default":
            continue
        if ipaddress.ip_network(entry["dst"], strict=False).prefixlen >= 16:
            found.append(entry["dst"])
    for entry in json.loads(_ip("-json", "-4", "address", "show")):
        if entry.get("ifname") != LINK:
            found += [address["local"] for address in entry.get("addr_info", []) if "local" in address]
    return found


def attach(plan: Plan, pid: int) -> None:
    """From the machine's side: create the link into the network namespace of process `pid`, and the route to the
    lab.
    """
    _ip("link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _ip("address", "add", f"{plan.host}/30", "dev", LINK)
    _ip("link", "set", LINK, "up")
    _ip("route", "add", plan.whole, "via", plan.node, "dev", LINK)


def configure_inside(plan: Plan) -> None:
    """From the lab's side: the node's address, and forwarding between pods, Services and the machine."""
    _ip("link", "set", "lo", "up")
    _ip("address", "add", f"{plan.node}/30", "dev", "eth0")
    _ip("link", "set", "eth0", "up")
    # The lab's own namespace: these settings are not the machine's.
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")


def link_exists() -> bool:
    """Whether the machine's side of the link is there."""
    return any(name == LINK for _, name in socket.if_nameindex())


def detach() -> None:
    """Remove the link; its address and route go with it."""
    _ip("link", "delete", LINK)


def cni_config(plan: Plan) -> str:
    """The CNI's network list: one routed veth per pod.

    `ptp` and not a bridge: all traffic between pods passes the node's routing, where kube-proxy's rules see it
    whether the kernel has br_netfilter or not. Leases live in the run folder, because no pod's namespace outlives the
    lab.
    """
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": "inferops",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/run/inferops-lab/cni",
                        "ranges": [[{"subnet": plan.pods}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=1,
    )


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(f"`ip {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result.stdout
