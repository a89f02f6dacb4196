# SPDX-License-Identifier: GPL-3.0-or-later
"""The converged platform, for every test of it."""

import os

import pytest
from target import platform as stack
from target.cluster import choose


@pytest.fixture(scope="session", autouse=True)
def _cluster_in_use():
    """Clients in these tests find the cluster that the scenario converged."""
    os.environ.update(choose().environment())


@pytest.fixture(scope="session")
def platform(_cluster_in_use) -> stack.Platform:
    return stack.find()


@pytest.fixture(scope="session")
def model(platform) -> str:
    return platform.models()[0]


@pytest.fixture(scope="session")
def inventory() -> str:
    return str(choose().inventory)
