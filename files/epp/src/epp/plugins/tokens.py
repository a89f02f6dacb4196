# SPDX-License-Identifier: GPL-3.0-or-later
"""How plugins find a prompt's token ids: from a producer, or in the request itself."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import msgspec

from epp.model import InferenceRequest
from epp.scheduling.api import TOKENS, TokenizedPrompt

_one = msgspec.json.Decoder(list[int])
_many = msgspec.json.Decoder(list[list[int]])


def tokens_of(request: InferenceRequest) -> TokenizedPrompt | None:
    """What a producer said of the prompt, or the ids that the client sent in its place; None if nobody knows them."""
    found = request.attributes.get(TOKENS)
    return found if isinstance(found, TokenizedPrompt) else sent_tokens(request.prompt)


def sent_tokens(prompt: bytes) -> TokenizedPrompt | None:
    """The ids of a prompt that is written as such: ``[1, 2]``, or ``[[1, 2], [3]]`` for a batch."""
    start = prompt[:16].replace(b" ", b"")
    try:
        if start[:1] == b"[" and start[1:2].isdigit():
            return TokenizedPrompt([array("I", _one.decode(prompt))])
        if start[:2] == b"[[":
            return TokenizedPrompt([array("I", each) for each in _many.decode(prompt)])
    except (msgspec.DecodeError, OverflowError):
        pass  # cut short, or no ids after all
    return None


def extras_of(tokenized: TokenizedPrompt, block_tokens: int, salt: str) -> Mapping[int, tuple[str, ...]]:
    """What the first prompt's blocks depend on besides tokens: pictures by the blocks they lie in, then the salt."""
    found: dict[int, tuple[str, ...]] = {}
    for identifier, offset, length in tokenized.features:
        for number in range(offset // block_tokens, (offset + max(1, length) - 1) // block_tokens + 1):
            found[number] = (*found.get(number, ()), identifier)
    if salt:
        found[0] = (*found.get(0, ()), salt)
    return found
