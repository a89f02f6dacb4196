# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC health service: every name, every state, Check, List and Watch."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from conformance.kit.cluster import NEW
from conformance.kit.picker import Picker
from conformance.kit.talk import talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
NAMES = ["", "readiness", "liveness", EXT_PROC, "inference-extension", "anything"]
WATCH = "v1.3 does not implement Watch"
STICKS = "v1.3 keeps an InferencePool that is deleted"


@pytest.mark.parametrize("name", NAMES)
def test_ready(picker: Picker, name: str) -> None:
    """A picker that knows its pool serves, by whatever name it is asked."""
    assert picker.health.check(name) == "SERVING"


def test_list(picker: Picker) -> None:
    """List has the ext_proc service, SERVING."""
    found = picker.health.list()
    assert isinstance(found, dict)
    assert found[EXT_PROC] == "SERVING"
    assert set(found.values()) == {"SERVING"}


@pytest.mark.differs(go=WATCH)
@pytest.mark.parametrize("name", ["", EXT_PROC])
def test_watch(picker: Picker, name: str) -> None:
    """Watch begins with the present status."""
    watch = picker.health.watch(name)
    assert watch.next() == "SERVING"
    watch.close()


def test_not_on_the_main_port(picker: Picker) -> None:
    """Without --health-checking the ext_proc port has no health service."""
    assert picker.channel(picker.ports.grpc, tls=False).check("") == "UNIMPLEMENTED"


def test_on_the_main_port(around: World, pool: Pool) -> None:
    """With --health-checking it has one, and that serves."""
    with around.picker(pool.name, "--health-checking=true") as found:
        channel = found.channel(found.ports.grpc, tls=False)
        assert channel.check("") == "SERVING"
        assert channel.check(EXT_PROC) == "SERVING"


@pytest.fixture(scope="module")
def poolless(around: World) -> Iterator[Picker]:
    """A picker whose pool does not exist."""
    with around.picker("absent", serving=False) as found:
        yield found


class TestWithoutPool:
    @pytest.mark.parametrize("name", ["", "readiness", EXT_PROC, "inference-extension"])
    def test_not_ready(self, poolless: Picker, name: str) -> None:
        """A picker that does not know its pool does not serve."""
        assert poolless.health.check(name) == "NOT_SERVING"

    @pytest.mark.differs(go="v1.3 without leader election calls a picker dead that has no pool, and probes restart it")
    def test_alive(self, poolless: Picker) -> None:
        """But it is alive."""
        assert poolless.health.check("liveness") == "SERVING"

    def test_list(self, poolless: Picker) -> None:
        """List says so."""
        found = poolless.health.list()
        assert isinstance(found, dict)
        assert found[EXT_PROC] == "NOT_SERVING"

    def test_then_there_is_one(self, around: World, poolless: Picker) -> None:
        """The pool comes: the picker is ready; the pool goes: it is not."""
        around.space.create_pool("absent", {"pool": "absent"}, (8000,))
        try:
            eventually(lambda: poolless.health.check("") == "SERVING")
        finally:
            around.space.delete(NEW, "v1", "InferencePool", "absent")
        eventually(lambda: poolless.health.check("") == "NOT_SERVING")

    @pytest.mark.differs(go=WATCH)
    def test_watching(self, around: World, poolless: Picker) -> None:
        """Watch tells of both."""
        watch = poolless.health.watch("")
        assert watch.next() == "NOT_SERVING"
        around.space.create_pool("absent", {"pool": "absent"}, (8000,))
        try:
            assert watch.next() == "SERVING"
        finally:
            around.space.delete(NEW, "v1", "InferencePool", "absent")
        assert watch.next() == "NOT_SERVING"
        watch.close()


@pytest.mark.differs(go="v1.3 closes its ports at once")
def test_draining(around: World, pool: Pool) -> None:
    """After SIGTERM, with a request still open: not ready, but alive, until the request has its answer."""
    with around.picker(pool.name) as found, talk(found) as one:
        one.ask()
        watch = found.health.watch("")
        assert watch.next() == "SERVING"
        found.process.signal(signal.SIGTERM)
        assert watch.next() == "NOT_SERVING"
        for name in ("", "readiness", EXT_PROC):
            assert found.health.check(name) == "NOT_SERVING"
        assert found.health.check("liveness") == "SERVING"
        watch.close()
        one.answer(b"{}")
        assert one.finish() == "OK"
        assert found.process.wait() == 0
