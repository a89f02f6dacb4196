# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway's subset of endpoints: metadata ``envoy.lb.subset_hint`` / ``x-gateway-destination-endpoint-subset``."""

from __future__ import annotations

import pytest

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import completion, destinations, refuse, route
from conformance.kit.world import Pool, World

STRING = "v1.3 reads the hint as a list only, and ignores a string"
ADDRESS = "v1.3 compares addresses only, not ports"
HEADERS_ONLY = "v1.3 sends requests without a body to any pod of the pool, whatever the hint"


def hint(form: str, hostports: list[str]) -> wire.Hint:
    """The same endpoints in one of the forms that gateways use."""
    addresses = [each.partition(":")[0] for each in hostports]
    return {
        "list of ip:port": hostports,
        "list of ip": addresses,
        "string of ip:port": ",".join(hostports),
        "string of ip": ",".join(addresses),
        "string with spaces": ", ".join(hostports),
    }[form]


FORMS = [
    "list of ip:port",
    "list of ip",
    *(
        pytest.param(each, marks=pytest.mark.differs(go=STRING))
        for each in ("string of ip:port", "string of ip", "string with spaces")
    ),
]


@pytest.mark.parametrize("form", FORMS)
def test_one(picker: Picker, pool: Pool, form: str) -> None:
    """A hint with one endpoint is followed, for each of the endpoints."""
    for each in pool.hostports:
        assert destinations(picker, 3, hint=hint(form, [each])) == {each}


@pytest.mark.parametrize("form", FORMS)
def test_two(picker: Picker, pool: Pool, form: str) -> None:
    """Of three endpoints two are allowed: the third gets nothing, both others something."""
    allowed = pool.hostports[1:]
    assert destinations(picker, 24, hint=hint(form, allowed)) == set(allowed)


@pytest.mark.parametrize("form", FORMS)
def test_strangers_only(picker: Picker, form: str) -> None:
    """Endpoints that the pool does not have: 503."""
    assert refuse(picker, hint=hint(form, ["10.9.9.9:8000", "10.9.9.8:8000"])).status == 503


def test_strangers_beside(picker: Picker, pool: Pool) -> None:
    """Endpoints that the pool does not have are passed over."""
    assert destinations(picker, 8, hint=["10.9.9.9:8000", pool.hostports[2]]) == {pool.hostports[2]}


@pytest.mark.differs(go=ADDRESS)
def test_another_port(picker: Picker, pool: Pool) -> None:
    """The address of an endpoint with another port is another endpoint."""
    address = pool.engines[0].address
    assert refuse(picker, hint=[f"{address}:9999"]).status == 503


def test_an_empty_list(picker: Picker) -> None:
    """An empty list allows nothing."""
    assert refuse(picker, hint=[]).status == 503


@pytest.mark.differs(go=STRING)
def test_an_empty_string(picker: Picker) -> None:
    """An empty string allows nothing, too."""
    assert refuse(picker, hint="").status == 503


def test_no_strings(picker: Picker, pool: Pool) -> None:
    """What is not a string in the list is passed over."""
    assert destinations(picker, 8, hint=[1, None, pool.hostports[0]]) == {pool.hostports[0]}


def test_no_hint_in_the_namespace(picker: Picker, pool: Pool) -> None:
    """The namespace without the key restricts nothing."""
    metadata = {"envoy.lb.subset_hint": {"other": "value"}}
    assert destinations(picker, 30, metadata=metadata) == set(pool.hostports)


def test_other_namespaces(picker: Picker, pool: Pool) -> None:
    """The key in another namespace restricts nothing."""
    metadata = {"envoy.lb": {wire.SUBSET: [pool.hostports[0]]}}
    assert destinations(picker, 30, metadata=metadata) == set(pool.hostports)


def test_no_metadata(picker: Picker, pool: Pool) -> None:
    """Without a hint every endpoint gets something."""
    assert destinations(picker, 30) == set(pool.hostports)


@pytest.mark.differs(go=HEADERS_ONLY)
def test_without_a_body(picker: Picker, pool: Pool) -> None:
    """A request that ends with its headers keeps to the hint."""
    allowed = pool.hostports[:1]
    found = {route(picker, b"", method="GET", path="/v1/models", hint=allowed).destination for _ in range(16)}
    assert found == set(allowed)


@pytest.mark.differs(go=HEADERS_ONLY)
def test_strangers_without_a_body(picker: Picker) -> None:
    """And is refused like any other."""
    assert refuse(picker, b"", method="GET", path="/v1/models", hint=["10.9.9.9:8000"]).status == 503


def test_the_hint_beats_the_prefix(picker: Picker, pool: Pool) -> None:
    """An endpoint with the prompt's prefix that is not allowed is not chosen."""
    body = completion("a prefix that one endpoint gets to know " * 40)
    known = route(picker, body).destination
    others = [each for each in pool.hostports if each != known]
    assert route(picker, body, hint=others).destination in others


def test_switched_off(around: World, pool: Pool) -> None:
    """With --disable-endpoint-subset-filter the hint restricts nothing."""
    with around.picker(pool.name, "--disable-endpoint-subset-filter=true") as found:
        assert destinations(found, 30, hint=pool.hostports[:1]) == set(pool.hostports)
