# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsers that somebody else wrote: which paths are theirs, and what their mistakes cost."""

from __future__ import annotations

from typing import Any

import pytest

from epp.model import AnswerReader, ParsedBody, RawRequest, Usage
from epp.requests import BodyError, Guarded, Parsers, UsageTail

JSON = "application/json"


class Reader:
    """Finds a body's first word; does worse things for other words."""

    PATHS: tuple[str, ...] = ("/v1/mine", "/completions/mine")
    NAMES_MODEL = True

    def parse(self, request: RawRequest) -> ParsedBody:
        word = request.body.decode().split()[0]
        if word == "refuse":
            raise BodyError("no such word")
        if word == "nothing":
            return None  # type: ignore[return-value]
        if word == "fail":
            raise RuntimeError("on purpose")
        return ParsedBody(model=word)

    def answer(self) -> AnswerReader | None:
        return None


class Lengths:
    """Counts bytes as tokens."""

    def __init__(self, fails: str = "") -> None:
        self.size, self.fails = 0, fails

    def feed(self, chunk: bytes) -> None:
        if self.fails == "feed":
            raise RuntimeError("on purpose")
        self.size += len(chunk)

    def usage(self) -> Usage | None:
        if self.fails == "usage":
            raise RuntimeError("on purpose")
        return Usage(completion_tokens=self.size)


def with_answer(answer: Any) -> Guarded:
    reader = Reader()
    reader.answer = answer  # type: ignore[method-assign]
    return Guarded(reader, "mine")


PARSERS = Parsers(["openai-parser", "mine"], {"mine": Guarded(Reader(), "mine")})


@pytest.mark.parametrize("path", ["/v1/mine", "/x/v1/mine?y", "/v1/completions/mine"])
def test_its_paths_are_its_own(path: str) -> None:
    assert PARSERS.parse(path, "text/plain", b"word and more") == ParsedBody(model="word")
    assert PARSERS.reader(path) is not None


def test_other_paths_are_not() -> None:
    assert PARSERS.parse("/v1/completions", JSON, b'{"model":"m"}').model == "m"
    assert PARSERS.reader("/v1/completions") is None
    with pytest.raises(BodyError, match="configured are openai-parser, mine"):
        PARSERS.parse("/what", JSON, b"{}")


def test_an_empty_end_takes_what_is_left() -> None:
    reader = Reader()
    reader.PATHS = ("",)
    parsers = Parsers(["mine", "openai-parser"], {"mine": reader})
    assert parsers.parse("/what", "", b"word").model == "word"
    assert parsers.parse("/v1/completions", JSON, b'{"model":"m"}').model == "m"


def test_it_may_have_the_type_of_another_one() -> None:
    parsers = Parsers(["passthrough-parser"], {"passthrough-parser": Reader()})
    assert parsers.parse("/v1/mine", "", b"word").model == "word"
    with pytest.raises(BodyError, match="no parser understands"):
        parsers.parse("/what", JSON, b"{}")


def test_it_sees_the_request_as_it_came() -> None:
    seen: list[RawRequest] = []
    reader = Reader()
    reader.parse = lambda request: seen.append(request) or ParsedBody()  # type: ignore[method-assign, func-returns-value]
    Parsers(["m"], {"m": reader}).parse("/v1/mine?a", "x/y", b"z", truncated=True, headers={"k": "v"})
    assert seen == [RawRequest("/v1/mine?a", {"k": "v"}, b"z", truncated=True)]


class TestMistakes:
    def test_refusing_is_none(self) -> None:
        with pytest.raises(BodyError, match="no such word"):
            PARSERS.parse("/v1/mine", "", b"refuse")

    @pytest.mark.parametrize(("word", "told"), [("fail", "on purpose"), ("nothing", "parse returned NoneType")])
    def test_parse(self, word: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
        guarded = Guarded(Reader(), "mine")
        for _ in range(3):
            assert guarded.parse(RawRequest("/v1/mine", {}, word.encode())) == ParsedBody()
        assert caplog.text.count("plugin mine failed: the request goes on unread") == 1, "not for each request"
        assert told in caplog.text

    def test_answer(self, caplog: pytest.LogCaptureFixture) -> None:
        def fails() -> AnswerReader | None:
            raise RuntimeError("on purpose")

        answer = with_answer(fails).answer()
        answer.feed(b'{"usage":{"prompt_tokens":9}}')
        assert answer.usage() == Usage(9)
        assert "the answer is read as the OpenAI API's" in caplog.text

    @pytest.mark.parametrize("where", ["feed", "usage"])
    def test_reading_an_answer(self, where: str, caplog: pytest.LogCaptureFixture) -> None:
        answer = with_answer(lambda: Lengths(where)).answer()
        answer.feed(b"one")
        answer.feed(b"two")
        assert answer.usage() is None
        assert "nothing is counted of the answer" in caplog.text


def test_its_answers() -> None:
    assert isinstance(with_answer(lambda: None).answer(), UsageTail)
    answer = with_answer(Lengths).answer()
    answer.feed(b"one")
    answer.feed(b"two")
    assert answer.usage() == Usage(completion_tokens=6)
