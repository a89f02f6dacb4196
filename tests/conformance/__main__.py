# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m conformance``: run the cases against one picker after another, and write one report."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from conformance import report

HERE = Path(__file__).resolve().parent
WORKERS = (os.cpu_count() or 1) + 1
"""Cases wait more than they work."""


def main() -> int:
    """Exit status: 0 all well, 1 a picker failed a case, 2 the cases could not be run."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument(
        "--epp", action="append", help="picker: a name in drivers/, or a driver's file (default: ours, go)"
    )
    parser.add_argument("--output", type=Path, default=Path("conformance-report"), help="folder for the report")
    parser.add_argument("--summary", type=Path, help="also write the report's summary to this Markdown file")
    parser.add_argument(
        "--workers",
        type=int,
        default=WORKERS,
        help="processes that run cases, each with pickers of its own (%(default)s)",
    )
    parser.add_argument("-k", dest="only", help="only the cases that this expression names, as in pytest")
    arguments = parser.parse_args()
    if not os.environ.get("KUBECONFIG"):
        print("set KUBECONFIG to a cluster that may have a namespace more for a while", file=sys.stderr)
        return 2
    runs = []
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        for number, epp in enumerate(arguments.epp or ["ours", "go"]):
            results = Path(folder) / f"{number}.json"
            if not _run(epp, results, arguments.only, arguments.workers):
                return 2
            runs += report.read([results])
    files = report.write(runs, arguments.output)
    if arguments.summary:
        arguments.summary.parent.mkdir(parents=True, exist_ok=True)
        arguments.summary.write_text(report.as_summary(runs), encoding="utf-8")
    for run in runs:
        print(report.summary(run))
    print(f"the report is in {files[0]} and {files[1].name}")
    return int(any(report.failures(run) for run in runs))


def _run(epp: str, results: Path, only: str | None, workers: int) -> bool:
    """Run the cases against a picker; returns whether they could be run."""
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), str(HERE / "cases"), "-q", "--no-header"]
    command += ["--tb=short", "--epp", epp, "--results", str(results), *(["-k", only] if only else [])]
    command += ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
    return status in (0, 1) and results.exists()


if __name__ == "__main__":
    sys.exit(main())
