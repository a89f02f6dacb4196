# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: every benchmark of the EPP, one after the other, then the page about them.

Exit status: 0 all bounds met, 1 one missed, 3 the machine was too noisy to tell; a benchmark that breaks ends the run
with its own status.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import report

ROOT = Path(__file__).resolve().parents[2]
FOLDER, PAGE = ROOT / "docs" / "performance", ROOT / "docs" / "performance.md"
TOLD = (0, 1, 3)


def main() -> int:
    """Run them, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=report.COMMANDS, nargs="+", default=list(report.COMMANDS))
    parser.add_argument("--page", action="store_true", help="only make the page from the figures that are there")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = [] if given.page else [_run(name) for name in given.only]
    if broken := [each for each in results if each not in TOLD]:
        return broken[0]
    for file in report.write(FOLDER, PAGE):
        print(f"wrote {file.relative_to(ROOT)}")
    return 1 if 1 in results else 3 if 3 in results else 0


def _run(name: str) -> int:
    command = [sys.executable, *shlex.split(report.COMMANDS[name])[1:], "--output", str(FOLDER / f"{name}.json")]
    print(f"== {name}", flush=True)
    began = time.monotonic()
    # Some look at the EPP's rooms from inside.
    paths = os.pathsep.join(str(ROOT / part) for part in ("tests", "files/epp/src"))
    status = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": paths}).returncode
    print(f"== {name}: exit status {status} after {time.monotonic() - began:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
