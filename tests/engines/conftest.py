# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.llamacpp import llamacpp
from engines.server import Server


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two llama-servers."""
    folder: Path = tmp_path_factory.mktemp("llamacpp")
    with llamacpp(folder) as one, llamacpp(folder) as two:
        yield one, two
