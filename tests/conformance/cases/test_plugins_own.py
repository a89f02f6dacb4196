# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins of one's own, in Python; and what plugins that misbehave cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.kit.picker import Picker
from conformance.kit.talk import destinations, refuse, route
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

pytestmark = pytest.mark.differs(go="plugins are compiled in")

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
SCORER = '''\
"""Prefers what a header asks for; does worse things for other headers."""

from dataclasses import dataclass

from epp.scheduling import Scorer, param


@dataclass(frozen=True)
class Parameters:
    header: str = param("x-want", doc="which header")


class Wanted(Scorer):
    TYPE = "wanted-scorer"
    PARAMETERS = Parameters

    def score(self, request, endpoints):
        if "x-raise" in request.headers:
            raise RuntimeError("on purpose")
        while "x-hang" in request.headers:
            pass
        wanted = request.headers.get(self.parameters.header)
        return [float(each.hostport == wanted) for each in endpoints]
'''
CONFIG = HEAD + "plugins:\n- {type: wanted-scorer, parameters: {header: x-engine}}\n"


@pytest.fixture(scope="module")
def own(around: World, main_pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Picker]:
    """A picker with a plugin from a folder that looks like a mounted ConfigMap."""
    folder = tmp_path_factory.mktemp("plugins")
    data = folder / "..2026_11_26"
    data.mkdir()
    (data / "wanted.py").write_text(SCORER)
    (folder / "..data").symlink_to(data.name)
    (folder / "wanted.py").symlink_to("..data/wanted.py")
    with around.picker(main_pool.name, f"--plugin-path={folder}", config=CONFIG) as found:
        yield found


def test_it_decides(own: Picker, pool: Pool) -> None:
    """A scorer from a file is used, with its parameters."""
    for each in pool.hostports:
        assert destinations(own, 6, headers={"x-engine": each}) == {each}


def test_it_raises(own: Picker, pool: Pool) -> None:
    """When it raises, its scores count as nothing, the request goes on, and the log has its traceback."""
    headers = {"x-raise": "1", "x-engine": pool.hostports[0]}
    eventually(lambda: destinations(own, 40, headers=headers), lambda seen: seen == set(pool.hostports))
    assert 'raise RuntimeError("on purpose")' in own.process.log()


def test_it_hangs(own: Picker, pool: Pool) -> None:
    """When it hangs, its request ends with 503, and those after it are served."""
    assert refuse(own, headers={"x-hang": "1"}).status == 503
    assert route(own, headers={"x-engine": pool.hostports[1]}).destination == pool.hostports[1]


def test_its_time_is_measured(own: Picker, pool: Pool) -> None:
    """How long it takes is on the metrics page, under its name."""
    route(own)
    name = "llm_d_epp_plugin_duration_seconds_count"
    eventually(lambda: own.metrics().value(name, plugin_name="wanted-scorer", extension_point="Scorer") > 0)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 / 0\n", "ZeroDivisionError"),
        ("class X(:\n", "SyntaxError"),
        ("x = 1\n", "has no plugin"),
        (SCORER.replace("def score", "def scores"), "lacks score"),
    ],
    ids=["raises", "no Python", "no plugin", "no method"],
)
def test_a_file_that_cannot_be_used(around: World, main_pool: Pool, tmp_path: Path, code: str, told: str) -> None:
    """The picker does not start, and names the file and what is wrong."""
    file = tmp_path / "mine.py"
    file.write_text(code)
    said = around.refusal(*around.flags(main_pool.name, CONFIG), f"--plugin-path={file}")
    assert str(file) in said
    assert told in said


def test_the_nearest_name(around: World, main_pool: Pool, tmp_path: Path) -> None:
    """A type that is not known: the nearest one is named, one's own included."""
    file = tmp_path / "mine.py"
    file.write_text(SCORER)
    config = CONFIG.replace("wanted-scorer", "wantd-scorer")
    said = around.refusal(*around.flags(main_pool.name, config), f"--plugin-path={file}")
    assert "did you mean 'wanted-scorer'" in said
