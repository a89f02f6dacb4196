# SPDX-License-Identifier: GPL-3.0-or-later
"""Options, the surroundings of all cases, and the record of what each case did."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.kit import driver as drivers
from conformance.kit import leftovers
from conformance.kit.cluster import ApiError
from conformance.kit.driver import Driver, DriverError
from conformance.kit.picker import Picker
from conformance.kit.wait import LONG, PATIENCE, SHORT
from conformance.kit.world import Pool, Standing, World, world

DRIVER = pytest.StashKey[Driver]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--epp", default="ours", help="picker to test: a name in drivers/, or a driver's YAML file")
    parser.addoption("--results", type=Path, help="write what each case did to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "differs(NAME=WHY): the picker NAME does something else here, on purpose")
    # Whoever ends the run politely wants the namespace and the processes gone, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config.stash[DRIVER] = drivers.load(config.getoption("epp"))
    except DriverError as error:
        raise pytest.UsageError(str(error)) from None
    if hasattr(config, "workerinput"):
        leftovers.end_with_parent()
    else:
        config.pluginmanager.register(Results(config), "conformance-results")


def case_name(nodeid: str) -> str:
    """A case's name in reports: ``headers/test_name[parameter]``."""
    file, _, rest = nodeid.partition("::")
    return f"{Path(file).stem.removeprefix('test_')}/{rest.replace('::', '.')}"


def _deviation(item: pytest.Item) -> str:
    """Why the picker under test may fail this case; empty when it may not."""
    driver = item.config.stash[DRIVER]
    for mark in item.iter_markers("differs"):
        if why := mark.kwargs.get(driver.name):
            return str(why)
    return driver.deviation(case_name(item.nodeid))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Patience is short where it is known that nothing will come, in the case itself: others share its fixtures."""
    PATIENCE.seconds = SHORT if _deviation(item) else LONG


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """And long again."""
    PATIENCE.seconds = LONG


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record each case. A failure that was declared is no failure, but a difference, and reported as such."""
    report = yield
    why = _deviation(item)
    failed = report.failed
    if failed and why and report.when != "teardown":
        report.outcome = "skipped"
        report.wasxfail = why
    if report.when == "call" or failed or (report.when == "setup" and report.skipped):
        # Where several processes run the cases, this travels to the one that writes the results.
        report.case = _record(item, report, failed, why)  # type: ignore[attr-defined]
    return report


class Results:
    """Collects what each case did."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = time.monotonic()
        self._cases: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if case := getattr(report, "case", None):
            self._cases.append(case)

    def pytest_sessionfinish(self) -> None:
        file = self._config.getoption("results")
        if file:
            driver = self._config.stash[DRIVER]
            found = {
                "name": driver.name,
                "title": driver.title,
                "seconds": round(time.monotonic() - self._started, 1),
                "cases": sorted(self._cases, key=lambda case: str(case["case"]).partition("/")[0]),
            }
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _record(item: pytest.Item, report: pytest.TestReport, failed: bool, why: str) -> dict[str, Any]:
    outcome: str = report.outcome
    text = ""
    if failed:
        outcome = "differs" if why and report.when != "teardown" else "failed"
        text = _error(report)
    elif outcome == "passed" and why:
        outcome = "agrees"
    elif isinstance(report.longrepr, tuple):
        text = report.longrepr[2]
    doc = (getattr(item.obj, "__doc__", "") or "").strip().splitlines()  # type: ignore[attr-defined]
    return {
        "case": case_name(item.nodeid),
        "about": doc[0] if doc else "",
        "outcome": outcome,
        "why": why,
        "text": text,
        "seconds": round(report.duration, 2),
    }


def _error(report: pytest.TestReport) -> str:
    """The error of a failed case in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash else report.longrepr or "").strip().splitlines()
    return lines[0][:400] if lines else ""


@pytest.fixture(scope="session")
def around(request: pytest.FixtureRequest) -> Iterator[World]:
    """A namespace of the session's own, in the cluster of KUBECONFIG."""
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        pytest.exit("set KUBECONFIG to a cluster that may have a namespace more for a while", returncode=4)
    try:
        with world(request.config.stash[DRIVER], os.path.abspath(kubeconfig)) as found:
            yield found
    except ApiError as error:
        pytest.exit(f"the cluster of {kubeconfig} refuses: {error}", returncode=4)


@pytest.fixture(scope="session")
def main_pool(around: World) -> Iterator[Pool]:
    """Three engines that nobody takes away."""
    with around.pool("main") as pool:
        yield pool


@pytest.fixture
def pool(main_pool: Pool) -> Iterator[Pool]:
    """The same, idle; what a case does to their figures is undone."""
    yield main_pool
    main_pool.reset()


@pytest.fixture(scope="session")
def main_pickers(around: World, main_pool: Pool) -> Iterator[Standing]:
    """A picker with the default profile, plaintext, for all cases that need nothing else."""
    with Standing(around, main_pool.name) as found:
        yield found


@pytest.fixture
def picker(main_pickers: Standing, pool: Pool) -> Picker:
    """The same, and its engines idle."""
    return main_pickers.get()
