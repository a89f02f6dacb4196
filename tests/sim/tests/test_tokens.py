# SPDX-License-Identifier: GPL-3.0-or-later
"""The tokenizer stand-in is reversible, and lines up the turns of a conversation."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import tokens


@given(st.text().filter(lambda text: "\0" not in text))
def test_text_survives_encoding_and_ids(text: str) -> None:
    data = tokens.encode_text(text)
    assert tokens.count(data) == -(-len(text.encode()) // 4)
    assert tokens.encode_ids(tokens.decode_ids(data)) == data
    assert tokens.decode_text(data) == text


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_ids_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="between 0 and 4294967295"):
        tokens.encode_ids(ids)


def test_the_prompt_of_a_turn_is_a_prefix_of_the_next_turn() -> None:
    first = tokens.encode_chat([("system", "be brief"), ("user", "hello")])
    generator = tokens.TextGenerator(first, "m")
    answer = b"".join(generator.next() for _ in range(9))
    turns = [("system", "be brief"), ("user", "hello"), ("assistant", answer.decode()), ("user", "more")]
    assert tokens.encode_chat(turns).startswith(first + answer)


def test_generated_text_is_deterministic_needs_no_escaping_and_is_one_token_a_word() -> None:
    def words(prompt: bytes, model: str) -> list[bytes]:
        generator = tokens.TextGenerator(prompt, model)
        return [generator.next() for _ in range(200)]

    assert words(b"abcd", "m") == words(b"abcd", "m")
    assert words(b"abcd", "m") != words(b"abce", "m")
    assert words(b"abcd", "m") != words(b"abcd", "other")
    assert {len(word) for word in words(b"abcd", "m")} == {tokens.BYTES_PER_TOKEN}
    text = b"".join(words(b"abcd", "m")).decode()
    assert json.dumps(text) == f'"{text}"'
    assert tokens.count(tokens.encode_text(text)) == 200


def test_natural_lengths_stay_around_their_mean() -> None:
    lengths = [tokens.natural_length(f"prompt {number}".encode(), "m", 100) for number in range(2000)]
    assert min(lengths) >= 50
    assert max(lengths) <= 150
    assert abs(sum(lengths) / len(lengths) - 100) < 5
    assert tokens.natural_length(b"x", "m", 1) >= 1
