# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m target``: what the Makefile calls."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from target import demo, suite
from target.cluster import ROOT, Target, TargetError, choose


def say(text: str) -> None:
    """Print a line at once, also into a log."""
    print(text, flush=True)


def playbook(target: Target, arguments: list[str]) -> int:
    """Run ``ansible-playbook`` on the target's inventory; its recap is the last thing that a person sees."""
    command = ["ansible-playbook", "--inventory", str(target.inventory), *arguments]
    env = {**os.environ, **target.environment(), "ANSIBLE_FORCE_COLOR": str(int(sys.stdout.isatty()))}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def run(target: Target, arguments: list[str]) -> int:
    """Run any command with the target's environment."""
    env = {**os.environ, **target.environment(), "INFEROPS_INVENTORY": str(target.inventory)}
    return subprocess.run(arguments, cwd=ROOT, env=env, check=False).returncode


def run_demo(target: Target) -> int:
    """Cluster, site.yml, verify.yml, then completions that a person can see and repeat."""
    began = time.monotonic()
    say(f"== cluster: {target.name}")
    target.up()
    for name in ("site.yml", "playbooks/verify.yml"):
        say(f"== {name} ({time.monotonic() - began:.0f} s so far)")
        if code := playbook(target, [name]):
            return code
    say(f"== completions ({time.monotonic() - began:.0f} s so far)")
    demo.show(target)
    return 0


def parse() -> argparse.Namespace:
    """The command line; see the Makefile for what people use."""
    parser = argparse.ArgumentParser(prog="python -m target", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("name", help="print which cluster is in use")
    commands.add_parser("up", help="make the cluster in use answer")
    commands.add_parser("api", help="make the API server of the cluster in use answer, and only that")
    commands.add_parser("down", help="take it away again, if it is ours")
    commands.add_parser("demo", help="from nothing to completions")
    commands.add_parser("show", help="send a few completions and show what served them")
    commands.add_parser("test", help="all tests")
    for name in ("playbook", "run"):
        commands.add_parser(name).add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main() -> int:
    """Do what was asked; a failure that we understand is one line."""
    options = parse()
    try:
        target = choose()
        if options.command == "name":
            say(target.name)
        elif options.command == "up":
            target.up()
        elif options.command == "api":
            target.api()
        elif options.command == "down":
            target.down()
        elif options.command == "demo":
            return run_demo(target)
        elif options.command == "show":
            demo.show(target)
        elif options.command == "test":
            return suite.run(target)
        else:
            return (playbook if options.command == "playbook" else run)(target, options.arguments)
    except (TargetError, demo.DemoError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
