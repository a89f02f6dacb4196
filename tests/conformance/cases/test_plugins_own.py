# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins of one's own, in Python; and what plugins that misbehave cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.kit.picker import Picker
from conformance.kit.talk import destinations, refuse, route, talk
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


PARSER = '''\
"""Bodies of one's own: the model, a slash, the prompt. Answers: a token per byte."""

from epp.scheduling import BodyError, BodyParser, ParsedBody, Usage


class Bytes:
    def __init__(self):
        self.size = 0

    def feed(self, chunk):
        self.size += len(chunk)

    def usage(self):
        return Usage(3, self.size)


class Slashed(BodyParser):
    TYPE = "slashed-parser"
    PATHS = ("/slashed",)
    NAMES_MODEL = False

    def parse(self, request):
        model, slash, prompt = request.body.partition(b"/")
        if not slash:
            raise BodyError("there is no slash")
        if model == b"raise":
            raise RuntimeError("on purpose")
        return ParsedBody(model=model.decode(), prompt=prompt)

    def answer(self):
        return Bytes()
'''
PARSERS = (
    HEAD
    + """\
plugins: [{type: prefix-cache-scorer}, {type: slashed-parser, name: mine}, {type: openai-parser}]
schedulingProfiles: [{name: default, plugins: [{pluginRef: prefix-cache-scorer}]}]
requestHandler: {parsers: [{pluginRef: mine}, {pluginRef: openai-parser}]}
"""
)


class TestParser:
    """A parser of one's own, beside another."""

    @pytest.fixture(scope="class")
    def parsing(self, around: World, main_pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Picker]:
        file = tmp_path_factory.mktemp("parser") / "slashed.py"
        file.write_text(PARSER)
        with around.picker(main_pool.name, f"--plugin-path={file}", config=PARSERS) as found:
            yield found

    def test_it_reads_bodies(self, parsing: Picker) -> None:
        """Its prompts keep their endpoint, and a rewrite of the model changes nothing in the body."""
        body = b"llama/" + b"a prompt " * 200
        rewrite = {"x-gateway-model-name-rewrite": "target", "content-type": "text/plain"}
        found = [route(parsing, body, rewrite, path="/v1/slashed") for _ in range(12)]
        assert {each.body for each in found} == {body}
        assert len({each.destination for each in found}) == 1

    def test_it_counts(self, parsing: Picker) -> None:
        """Metrics have the model and the tokens as it says."""
        with talk(parsing) as one:
            one.ask(b"counted/x", path="/slashed")
            one.answer(b"12345", "text/plain", pieces=2)
            one.finish()
        name = "inference_objective_output_tokens_sum"
        eventually(lambda: parsing.metrics().value(name, model_name="counted") == 5)

    def test_it_refuses(self, parsing: Picker) -> None:
        """400, with its own words."""
        refused = refuse(parsing, b"nothing", path="/slashed")
        assert (refused.status, "there is no slash" in refused.body) == (400, True)

    def test_it_raises(self, parsing: Picker, pool: Pool) -> None:
        """The request goes on unread, and the log has the traceback."""
        assert route(parsing, b"raise/x", path="/slashed").destination in pool.hostports
        assert 'raise RuntimeError("on purpose")' in parsing.process.log()

    def test_others_have_their_paths(self, parsing: Picker) -> None:
        """The other parser takes its own, and unknown ones are refused."""
        assert route(parsing, path="/v1/completions")
        assert refuse(parsing, path="/what").status == 400


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
