# SPDX-License-Identifier: GPL-3.0-or-later
"""How a configuration is refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot be used; the text is ``SOURCE:LINE: FIELD: what is wrong; what to do``."""

    def __init__(self, source: str, line: int, path: str, message: str) -> None:
        place = f"{source}:{line}" if line else source
        super().__init__(f"{place}: {path}: {message}" if path else f"{place}: {message}")
        self.source = source
        self.line = line
        self.path = path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Advice for a word that is not known: the nearest one that is, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known are " + ", ".join(names) if names else "nothing is allowed here"
