# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a completion is what was expected: its status, who served it, how fast it began and ended, what it says."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Mapping

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError

Json = Dict[str, Any]

SHOWN = 120  # characters of an answer in a sentence
EXPECTATIONS: Json = {
    "status": {"type": "list", "elements": "int", "default": [200]},
    "served_by": {"type": "list", "elements": "str"},
    "text": {"type": "str"},
    "finish_reason": {"type": "list", "elements": "str"},
    # A time; the name makes ansible-test think of a secret.
    "max_first_token_seconds": {"type": "float", "no_log": False},
    "max_seconds": {"type": "float"},
    "min_servers": {"type": "int"},
}


class Judge:
    """What is expected of every answer, and of all of them together."""

    def __init__(self, expected: Mapping[str, Any]) -> None:
        """Raises InputError for a text that is no regular expression."""
        self._expected = expected
        try:
            self._text = re.compile(expected["text"], re.DOTALL) if expected["text"] else None
        except re.error as error:
            raise InputError(f"expect.text: {expected['text']!r} is no regular expression: {error}") from error

    def problems(self, answers: List[Json]) -> List[str]:
        """A sentence for each expectation that was not met; empty when all were."""
        found = [
            f"request {index}: {problem}" for index, answer in enumerate(answers) for problem in self._problems(answer)
        ]
        servers = {answer["served_by"] for answer in answers if answer["served_by"]}
        wanted = self._expected["min_servers"]
        if wanted and len(servers) < wanted:
            found.append(f"{len(servers)} servers answered, expected at least {wanted}: {', '.join(sorted(servers))}")
        return found

    def _problems(self, answer: Json) -> List[str]:
        expected, found = self._expected, []
        if answer["status"] not in expected["status"]:
            error = f" ({answer['error']})" if answer["error"] else ""
            return [f"status {answer['status']}{error}, expected {_either(expected['status'])}"]
        if answer["error"] and answer["status"] == 200:
            return [answer["error"]]
        if expected["served_by"] and not _served(answer["served_by"], expected["served_by"]):
            found.append(
                f"served by {answer['served_by'] or 'nobody known'}, expected {_either(expected['served_by'])}"
            )
        if self._text and not self._text.search(answer["text"]):
            found.append(f"the text {answer['text'][:SHOWN]!r} does not match {self._text.pattern!r}")
        if expected["finish_reason"] and answer["finish_reason"] not in expected["finish_reason"]:
            found.append(f"it ended by {answer['finish_reason']}, expected {_either(expected['finish_reason'])}")
        return found + self._slow(answer)

    def _slow(self, answer: Json) -> List[str]:
        found = []
        first, most = answer["first_token_seconds"], self._expected["max_first_token_seconds"]
        if most is not None and (first is None or first > most):
            found.append(f"the first token came after {first} s, expected {most} s at most")
        if self._expected["max_seconds"] is not None and answer["seconds"] > self._expected["max_seconds"]:
            found.append(f"it took {answer['seconds']} s, expected {self._expected['max_seconds']} s at most")
        return found


def _served(who: str, wanted: List[str]) -> bool:
    """``who`` is an address with a port; what is wanted may be a glob of that, or of the address alone."""
    return any(fnmatchcase(name, glob) for glob in wanted for name in (who, who.rpartition(":")[0]))


def _either(values: List[Any]) -> str:
    return " or ".join(str(value) for value in values)
