# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m gates``: what ``make gates`` and ``make lint`` call."""

from __future__ import annotations

import argparse
import os
import sys

from gates.catalogue import GATES
from gates.runner import Runner


def main() -> int:
    """Run all gates, the quick ones, or those that are named; 0 if none fails."""
    names = [gate.name for gate in GATES]
    parser = argparse.ArgumentParser(prog="python -m gates", description=__doc__)
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"only these; there are {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="only what needs no other environment: the linters")
    options = parser.parse_args()
    if unknown := set(options.gates) - set(names):
        parser.error(f"no gate {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [
        gate for gate in GATES if (gate.name in options.gates or not options.gates) and gate.quick >= options.quick
    ]
    # On CI a missing Python is somebody's mistake; on a person's machine it is only a gap, which the last lines tell.
    strict = os.environ.get("CI", "").lower() in ("1", "true")
    try:
        return 0 if Runner(chosen, strict).run() else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
