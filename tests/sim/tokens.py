# SPDX-License-Identifier: GPL-3.0-or-later
"""A reversible stand-in for a tokenizer: four bytes of UTF-8 are one token.

A token's id is its four bytes read as a little-endian unsigned integer; the last token of a text is padded with zero
bytes. A prompt is therefore kept as plain `bytes` whose length is a multiple of four, which makes prompts of a
million tokens cheap, and makes equal texts equal token sequences whichever way they were sent (text, or the ids that
`/tokenize` gave).

Real tokenizers average about four bytes per token for English, so lengths and block counts come out close to those of
a real server. Generated text is made of words that are exactly one token long, so that an answer which a client sends
back in its next turn is the same token sequence that the server generated, and finds its blocks in the prefix cache.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final

BYTES_PER_TOKEN: Final = 4
MAX_TOKEN_ID: Final = 2**32 - 1

# Three letters and a space: one token each.
_VOCABULARY: Final = (
    b"the and for you our all any new old one two ten few its her his was are can may let set get put run add "
    b"use see say ask try way day end top low big far own yet but not who how why now out off per via pod key "
)
_WORDS: Final = tuple(_VOCABULARY[at : at + BYTES_PER_TOKEN] for at in range(0, len(_VOCABULARY), BYTES_PER_TOKEN))
_ENDINGS: Final = (b"it. ", b"so. ", b"on. ", b"go. ")
_SENTENCE_TOKENS: Final = 11


def encode_text(text: str) -> bytes:
    """Return the token bytes of `text`: UTF-8, zero-padded to whole tokens. Lone surrogates are encoded as they are."""
    data = text.encode("utf-8", "surrogatepass")
    return data + b"\0" * (-len(data) % BYTES_PER_TOKEN)


def encode_ids(ids: Sequence[int]) -> bytes:
    """Return the token bytes of a list of token ids. Raises ValueError when an id is not in [0, 2**32)."""
    try:
        return struct.pack(f"<{len(ids)}I", *ids)
    except struct.error as error:
        raise ValueError(f"token ids must be integers between 0 and {MAX_TOKEN_ID}") from error


def decode_ids(data: bytes | bytearray) -> list[int]:
    """Return the token ids of token bytes."""
    return list(struct.unpack(f"<{len(data) // BYTES_PER_TOKEN}I", data))


def decode_text(data: bytes | bytearray) -> str:
    """Return the text of token bytes; padding is dropped, invalid UTF-8 becomes U+FFFD."""
    return bytes(data).replace(b"\0", b"").decode("utf-8", "replace")


def count(data: bytes | bytearray) -> int:
    """Return the number of tokens in token bytes."""
    return len(data) // BYTES_PER_TOKEN


def encode_chat(messages: Iterable[tuple[str, str]], add_generation_prompt: bool = True) -> bytes:
    """Return the token bytes of a conversation, given as (role, text) pairs, in a ChatML-like template.

    Every part is encoded on its own, as the special tokens of a real template are: so the tokens of one turn do not
    depend on the length of the turns before it, and the prompt of turn n is a prefix of that of turn n + 1.
    """
    parts: list[bytes] = []
    for role, text in messages:
        parts += (encode_text(f"<|{role}|>\n"), encode_text(text), encode_text("<|end|>\n"))
    if add_generation_prompt:
        parts.append(encode_text("<|assistant|>\n"))
    return b"".join(parts)


class TextGenerator:
    """The deterministic answer to a prompt: the same prompt and model give the same words on every instance."""

    __slots__ = ("_produced", "_state")

    def __init__(self, prompt: bytes, model: str) -> None:
        self._state = zlib.crc32(prompt, zlib.crc32(model.encode()))
        self._produced = 0

    def next(self) -> bytes:
        """Return the next token: four bytes of ASCII that need no escaping in JSON."""
        # A linear congruential generator (Knuth's MMIX constants); its high bits are the good ones.
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        self._produced += 1
        table = _ENDINGS if self._produced % _SENTENCE_TOKENS == 0 else _WORDS
        return table[(self._state >> 33) % len(table)]


def natural_length(prompt: bytes, model: str, mean: float) -> int:
    """Return how many tokens the model "wants" to answer before its end-of-sequence token.

    Deterministic per prompt, and spread evenly over [mean / 2, 3 * mean / 2], at least 1.
    """
    spread = zlib.crc32(model.encode(), zlib.crc32(prompt)) / 2**32
    return max(1, round(mean * (0.5 + spread)))
