# SPDX-License-Identifier: GPL-3.0-or-later
"""A bit for each endpoint, so that one integer says which endpoints hold something.

What is done for each of thousands of endpoints is left to C: an integer of thousands of bits is no place to look for
them one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Final, cast

from epp.datalayer.columns import Candidates
from epp.model import Endpoint

EVERYBODY: Final = -1
"""All bits, those that nobody has as well."""
MANY: Final = 64
"""Endpoints from which on a mask costs more than to look at the outcome."""
_FLAGS: Final = bytes.maketrans(b"01", b"\0\1")


class Slots:
    """Bits of endpoints; those of endpoints that are gone are used again, so none of them may be left standing."""

    def __init__(self) -> None:
        self._numbers: dict[Endpoint, int] = {}
        self._owners: list[Endpoint | None] = []
        self._free: list[int] = []

    def __contains__(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint has a bit."""
        return endpoint in self._numbers

    def items(self) -> Iterable[tuple[Endpoint, int]]:
        """Endpoints and their numbers, as they are now."""
        return list(self._numbers.items())

    def number(self, endpoint: Endpoint) -> int:
        """Which bit is the endpoint's; it gets one if it has none."""
        number = self._numbers.get(endpoint)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._owners[number] = endpoint
            else:
                number = len(self._owners)
                self._owners.append(endpoint)
            self._numbers[endpoint] = number
        return number

    def drop(self, endpoint: Endpoint) -> int | None:
        """The endpoint is gone; returns the number that it had, which is free now."""
        number = self._numbers.pop(endpoint, None)
        if number is not None:
            self._owners[number] = None
            self._free.append(number)
        return number

    def mask(self, endpoints: Sequence[Endpoint]) -> int:
        """The bits of these endpoints, or EVERYBODY where they are many: see :meth:`among`."""
        if len(endpoints) > MANY:
            return EVERYBODY
        numbers, bits = self._numbers, 0
        for endpoint in endpoints:
            number = numbers.get(endpoint)
            if number is not None:
                bits |= 1 << number
        return bits

    def note(self, bits: int, depth: int, found: dict[Endpoint, int]) -> None:
        """Write ``depth``, if it is any, for the endpoint of each bit."""
        if not depth:
            return
        owners = self._owners
        if bits.bit_count() < MANY:
            while bits:
                low = bits & -bits
                owner = owners[low.bit_length() - 1]
                assert owner is not None
                found[owner] = depth
                bits ^= low
            return
        flags = bin(bits)[:1:-1].encode().translate(_FLAGS)
        holders = compress(cast("list[Endpoint]", owners), flags)  # no bit is set that has no owner
        found.update(dict.fromkeys(holders, depth))

    def among(self, found: dict[Endpoint, int], endpoints: Sequence[Endpoint]) -> dict[Endpoint, int]:
        """What was found of these endpoints, by a search that began with their :meth:`mask`."""
        if len(endpoints) <= MANY or not found:
            return found
        if isinstance(endpoints, Candidates):
            for endpoint in endpoints.refused:
                found.pop(endpoint, None)
            return found
        wanted = set(endpoints)
        if found.keys() <= wanted:
            return found
        return {endpoint: depth for endpoint, depth in found.items() if endpoint in wanted}
