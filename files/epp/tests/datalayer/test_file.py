# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints from a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from epp.datalayer import Datastore, EndpointsFile
from epp.datalayer.file import EndpointsFileError, parse

GOOD = """\
endpoints:
- {name: a, address: 127.0.0.2, port: 8000}
- {name: b, address: "::1", port: 8001, labels: {zone: z}, namespace: n}
"""


def test_parse() -> None:
    first, second = parse(GOOD, "f")
    assert (first.name, first.pod, first.hostport, first.namespace) == ("a", "a", "127.0.0.2:8000", "default")
    assert (second.hostport, second.labels, second.namespace) == ("[::1]:8001", {"zone": "z"}, "n")
    assert parse("endpoints: []", "f") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: must be a map with one field, endpoints"),
        ("[", "f: is not YAML"),
        ("endpoints: {}", "f: must be a map"),
        ("endpoints: []\nmore: 1", "f: must be a map"),
        ("endpoints: [x]", "f: endpoints[0]: must be a map"),
        ("endpoints: [{name: a, address: 1.2.3.4, port: 1, weight: 2}]", "endpoints[0]: unknown field 'weight'"),
        ("endpoints: [{address: 1.2.3.4, port: 1}]", "endpoints[0].name"),
        ("endpoints: [{name: a, address: localhost, port: 1}]", "endpoints[0].address: must be an IP address"),
        ("endpoints: [{name: a, address: 1.2.3.4, port: 70000}]", "endpoints[0].port"),
        ("endpoints: [{name: a, address: 1.2.3.4, port: true}]", "endpoints[0].port"),
        ("endpoints: [{name: a, address: 1.2.3.4, port: 1, labels: {x: 1}}]", "endpoints[0].labels"),
        ("endpoints: [{name: a, address: 1.2.3.4, port: 1, namespace: 7}]", "endpoints[0].namespace"),
        (
            "endpoints: [{name: a, address: 1.2.3.4, port: 1}, {name: a, address: 1.2.3.4, port: 2}]",
            "endpoints[1]: a is there twice",
        ),
        (
            "endpoints: [{name: a, address: 1.2.3.4, port: 1}, {name: b, address: 1.2.3.4, port: 1}]",
            "endpoints[1]: 1.2.3.4:1 is there twice",
        ),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(EndpointsFileError) as caught:
        parse(text, "f")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EndpointsFileError, match="cannot be read: No such file"):
        EndpointsFile(Datastore(), tmp_path / "none").load()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EndpointsFileError, match="not UTF-8"):
        EndpointsFile(Datastore(), tmp_path / "binary").load()


async def eventually(condition: object, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_changes_are_followed_and_bad_ones_ignored(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text(GOOD)
    store = Datastore()
    source = EndpointsFile(store, path, interval=0.01)
    source.load()
    task = asyncio.create_task(source.run())
    try:
        first = store.endpoints()[0]
        path.write_text("endpoints: [{name: broken}]")
        await eventually(lambda: source.problem())
        assert "endpoints[0].address" in source.problem()
        assert len(store.endpoints()) == 2, "the endpoints stay as they were"
        fresh = tmp_path / "fresh"
        fresh.write_text("endpoints: [{name: a, address: 127.0.0.2, port: 8000}]")
        os.replace(fresh, path)
        await eventually(lambda: len(store.endpoints()) == 1)
        assert store.endpoints()[0] is first
        assert source.problem() == ""
        path.unlink()
        await eventually(lambda: "cannot be read" in source.problem())
        assert store.endpoints() == (first,)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
