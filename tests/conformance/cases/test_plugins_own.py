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
GATE = '''\
"""Refuses what headers ask it to refuse, at every place where a plugin may."""

from epp.model import Rejection
from epp.scheduling import Admitter, HeaderProcessor, ProfileHandler, Screener


class Gate(HeaderProcessor, Screener, Admitter):
    TYPE = "gate"

    def refuse(self, request, place):
        if request.headers.get("x-place") == place:
            status, code = request.headers["x-refuse"].split()
            raise Rejection(int(status), code, f"{place} says so")

    def request_headers(self, request):
        self.refuse(request, "headers")

    def screen(self, request, endpoints):
        self.refuse(request, "screener")
        allowed = request.headers.get("x-allow")
        return endpoints if allowed is None else [each for each in endpoints if each.hostport == allowed]

    def admit(self, request, endpoints):
        self.refuse(request, "admitter")
        return request.headers.get("x-deny", "")


class Broken(ProfileHandler):
    TYPE = "broken-profile-handler"

    def pick(self, request, profiles, results):
        if "x-break" in request.headers:
            raise RuntimeError("on purpose")
        return [] if results else list(profiles)

    def primary(self, request, results):
        return next(iter(results))
'''
GATED = HEAD + "plugins:\n- {type: gate}\n- {type: broken-profile-handler}\n"
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


@pytest.fixture(scope="module")
def parsing(around: World, main_pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Picker]:
    """A picker with that parser and another one."""
    file = tmp_path_factory.mktemp("parser") / "slashed.py"
    file.write_text(PARSER)
    with around.picker(main_pool.name, f"--plugin-path={file}", config=PARSERS) as found:
        yield found


class TestParser:
    """A parser of one's own, beside another."""

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


@pytest.fixture(scope="module")
def gated(around: World, main_pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Picker]:
    """A picker whose own plugins refuse what headers say."""
    file = tmp_path_factory.mktemp("gate") / "gate.py"
    file.write_text(GATE)
    with around.picker(main_pool.name, f"--plugin-path={file}", config=GATED) as found:
        yield found


@pytest.mark.parametrize("place", ["headers", "screener", "admitter"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "Unauthorized"), (403, "Forbidden"), (404, "NotFound"), (412, "PreconditionFailed")],
    ids=lambda value: str(value),
)
def test_it_refuses(gated: Picker, place: str, status: int, code: str) -> None:
    """A plugin refuses with a status of its own: the client gets it, with the class and the plugin's words."""
    found = refuse(gated, headers={"x-place": place, "x-refuse": f"{status} {code}"})
    assert (found.status, found.body) == (status, f"inference error: {code} - {place} says so")
    name = "inference_objective_request_error_total"
    eventually(lambda: gated.metrics().value(name, error_code=code) > 0)


def test_it_denies_admission(gated: Picker) -> None:
    """An admitter that gives only words refuses with 429, and the client reads them."""
    found = refuse(gated, headers={"x-deny": "come back at night"})
    assert (found.status, found.reason) == (429, "rejected-saturated")
    assert found.body == "inference error: ResourceExhausted - request cannot be admitted: come back at night"


def test_it_screens(gated: Picker, pool: Pool) -> None:
    """What a screener takes away is no candidate."""
    for each in pool.hostports:
        assert destinations(gated, 6, headers={"x-allow": each}) == {each}


def test_it_screens_all(gated: Picker) -> None:
    """Screeners that leave nobody: 503, and the dropped-reason header says that there is no endpoint."""
    found = refuse(gated, headers={"x-allow": "nobody"})
    assert (found.status, found.reason) == (503, "rejected-no-endpoints")
    assert found.body == ("inference error: ServiceUnavailable - screeners eliminated all endpoint candidates")


def test_the_cycle_breaks(gated: Picker) -> None:
    """A plugin without which nothing can be decided raises: 500, the log has the traceback, and others are served."""
    found = refuse(gated, headers={"x-break": "1"})
    assert (found.status, found.body) == (500, "inference error: Internal - scheduling failed: RuntimeError")
    assert 'raise RuntimeError("on purpose")' in gated.process.log()
    assert route(gated).destination
