# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: `python -m lab up|down|status|kubeconfig|kubectl|load|images`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lab import cluster, dns, facts, loader, manifests, network, preflight, report, supervisor
from lab.errors import LabError
from lab.progress import Progress
from lab.state import FOLDERS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Where `su` and cron leave them out, `ip`, `iptables` and containerd's programs would not be found.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    try:
        if words[:1] == ["kubectl"]:
            return _kubectl(words[1:])
        arguments = _parser().parse_args(words)
        return int(arguments.run(arguments, Progress()) or 0)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; run the command again to go on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description="A real single-node Kubernetes without Docker.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring the lab up, or what is missing of it")
    up.add_argument("--control-plane", action="store_true", help="only etcd, API server and controller manager")
    up.add_argument("--gpus", type=_count, metavar="N", help="fake nvidia.com/gpu of the node; kept until changed")
    up.add_argument("--kwok", action="store_true", help="run KWOK, which keeps fake nodes and their pods")
    up.set_defaults(run=_up)
    down = commands.add_parser("down", help="stop the lab; leave no process, mount, link or control group behind")
    down.add_argument(
        "--purge", action="store_true", help="also remove the state folder (the built programs stay cached)"
    )
    down.set_defaults(run=_down)
    commands.add_parser("status", help="components, memory and node").set_defaults(run=_status)
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    kubeconfig.set_defaults(run=_kubeconfig)
    # For the help text only: `main` hands all that follows to kubectl as it is.
    commands.add_parser("kubectl", help="run kubectl on the lab")
    load = commands.add_parser(
        "load", help="load images into the lab: archive files, or images of buildah, podman or docker"
    )
    load.add_argument("image", nargs="+", metavar="IMAGE")
    load.set_defaults(run=_load)
    images = commands.add_parser(
        "images", help="build the project's images that are missing and load them; print their names"
    )
    images.add_argument("image", nargs="*", metavar="NAME", help="only these, for example epp (default: all)")
    images.set_defaults(run=_images)
    commands.add_parser("supervise").set_defaults(run=lambda *_: supervisor.supervise())
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPUs (0 or more)")
    return int(text)


def _up(arguments: argparse.Namespace, progress: Progress) -> None:
    preflight.machine()
    with preflight.one_at_a_time(progress):
        cluster.up(progress, control_plane=arguments.control_plane, gpus=arguments.gpus, kwok=arguments.kwok)
        if not arguments.control_plane:
            plan = network.load(FOLDERS.network)
            # What the node itself needs comes first: a broken image of the platform then meets a whole cluster.
            dns.ensure(loader.ensure(progress, ["pause", "coredns"])["coredns"], plan, progress)
            try:
                loader.ensure(progress)
            finally:
                facts.write(plan, loader.remembered(), manifests.ensure(progress))
    progress.say(f"The lab is up. Its kubeconfig: {FOLDERS.kubeconfig}")


def _down(arguments: argparse.Namespace, progress: Progress) -> None:
    preflight.machine()
    with preflight.one_at_a_time(progress):
        cluster.down(progress, purge=arguments.purge)


def _status(arguments: argparse.Namespace, progress: Progress) -> int:
    return report.show()


def _load(arguments: argparse.Namespace, progress: Progress) -> None:
    preflight.machine()
    for image in arguments.image:
        loader.load(image, progress)


def _images(arguments: argparse.Namespace, progress: Progress) -> None:
    preflight.machine()
    with preflight.one_at_a_time(progress):
        try:
            loader.ensure(progress, arguments.image or None)
        finally:
            facts.write(network.load(FOLDERS.network), loader.remembered(), manifests.ensure(progress))
    for name, reference in loader.remembered().items():
        print(f"{name}: {reference}")


def _kubeconfig(arguments: argparse.Namespace, progress: Progress) -> None:
    if not FOLDERS.kubeconfig.exists():
        raise LabError("This checkout has no lab yet; run `python -m lab up`.")
    print(FOLDERS.kubeconfig)


def _kubectl(words: Sequence[str]) -> int:
    program = str(cluster.kubectl_path())
    os.execve(program, [program, *words], os.environ | {"KUBECONFIG": str(FOLDERS.kubeconfig)})
